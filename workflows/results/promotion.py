"""The best model by held-out sources becomes the champion in MLflow's registry."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from muva.data.artifacts import Artifact, artifact_at, fingerprint
from muva.data.shards import open_dataset
from muva.errors import MuvaError
from workflows.session import Session
from workflows.steps.encoder import HELD_OUT_ROLE, TRAINING
from workflows.steps.run_lineage import served_model
from workflows.steps.validation import HELD_OUT


@dataclass(frozen=True, kw_only=True)
class HeldOutValue:
    """What a model reached on the people of its sources that it did not learn from."""

    value: float
    """mAP, a fraction."""
    validated_on: str
    """A hash of who they are."""


def held_out_value(model: Artifact) -> HeldOutValue:
    """Raises MuvaError for a model that was not judged on held-out sources."""
    manifest = model.manifest()
    assert manifest is not None
    summary, training = manifest["summary"], manifest
    if TRAINING in manifest["inputs"]:
        made_from = artifact_at(model.store, manifest["inputs"][TRAINING]).manifest()
        training = made_from or {"config": {}, "inputs": {}, "summary": {}}
    verdicts = summary.get("verdicts") or []
    verdict: dict[str, Any] | None = summary.get("verdict") or (verdicts[-1] if verdicts else None)
    validation = training["config"].get("validation")
    if verdict is None or validation is None:
        raise MuvaError(
            f"{model.uri}: it was not judged on held-out sources, so nothing says how good it is "
            "but targets, which must not choose. Train with --set 'validation={}' "
            "(docs/choosing.md), and promote NAME-chosen or NAME"
        )
    return HeldOutValue(
        value=verdict[HELD_OUT], validated_on=_judged_by(model, training, validation)
    )


def _judged_by(model: Artifact, training: dict[str, Any], validation: dict[str, Any]) -> str:
    inputs = training["inputs"]
    if HELD_OUT_ROLE in inputs:
        return fingerprint(["domain", _content(model, inputs[HELD_OUT_ROLE])])
    sources = sorted(
        _content(model, address) for role, address in inputs.items() if role.startswith("source ")
    )
    return fingerprint(["identities", validation["identities"], sources])


def _content(model: Artifact, address: str) -> str:
    dataset = artifact_at(model.store, address)
    if dataset.manifest() is None:
        raise MuvaError(
            f"{model.address} learned from {address}, which is in the store no more: nothing tells "
            "whom it was judged by. Import the data set again, or promote a model trained since"
        )
    return open_dataset(dataset).fingerprint


def promote(session: Session, model: Artifact, *, name: str) -> dict[str, Any]:
    """Registers a model, and makes it champion or challenger; who is what afterwards.

    Raises:
        MuvaError: it was not judged on held-out sources, or on others than the champion was.
    """
    from tracking.addresses import failures_explained, reached_client
    from tracking.registry import CHALLENGER, CHAMPION, Registry

    found = held_out_value(model)
    assert session.tracking_uri is not None
    with session.run(
        f"promote {model.name}", key=f"promotion-{name}-{model.address}", params={}
    ) as run:
        assert run is not None
        model_id = served_model(run, model)
        with failures_explained(run.ref.tracking_uri):
            registry = Registry(reached_client(run.ref.tracking_uri), name)
            champion = registry.version_with_alias(CHAMPION)
            if champion is not None and champion.validated_on != found.validated_on:
                raise MuvaError(
                    f"{model.address} was judged by other people than the champion of {name}, "
                    f"{champion.address}: their values cannot be compared. Train both with the "
                    "same sources and validation, or register this one by another name with --as"
                )
            version = registry.register(
                model_id=model_id,
                run_id=run.ref.run_id,
                address=model.address,
                value=found.value,
                validated_on=found.validated_on,
            )
            if champion is None or found.value > champion.value:
                registry.set_alias(CHAMPION, version)
                registry.set_alias(CHALLENGER, champion)
            elif champion.address != version.address:
                registry.set_alias(CHALLENGER, version)
            after = {alias: registry.version_with_alias(alias) for alias in (CHAMPION, CHALLENGER)}
        run.log_metrics({HELD_OUT: found.value})
        run.set_description(_told(name, after))
    return {alias: asdict(one) if one else None for alias, one in after.items()}


def _told(name: str, after: dict[str, Any]) -> str:
    lines = [f"Registered model **{name}**, by mAP on held-out sources, per cent", ""]
    for alias, one in after.items():
        if one is not None:
            lines.append(f"- {alias}: version {one.number}, {one.address}, {100 * one.value:.1f}")
    return "\n".join(lines)
