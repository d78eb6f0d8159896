"""Promotion: the best model on held-out sources becomes the champion in MLflow's registry.

Only here do the aliases move. No target is looked at: a model that was trained without validation
cannot be promoted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from muva.data.artifacts import Artifact, artifact_at, fingerprint
from muva.data.lineage import Node, Role, node_at
from muva.data.shards import open_dataset
from muva.errors import MuvaError
from workflows.session import Session
from workflows.steps.encoder import HELD_OUT
from workflows.steps.run_lineage import served_model, training_of


@dataclass(frozen=True, kw_only=True)
class HeldOutValue:
    """The score of a model on people of its sources that it was not trained on."""

    value: float
    """mAP, a fraction."""
    validated_on: str
    """A hash of who these people are."""


def held_out_value(model: Artifact) -> HeldOutValue:
    """Raises MuvaError for a model that was not validated on held-out sources."""
    node = node_at(model.store, model.address)
    training = training_of(node)
    assert node.manifest is not None
    summary = node.manifest["summary"]
    results = summary.get("verdicts") or []
    result: dict[str, Any] | None = summary.get("verdict") or (results[-1] if results else None)
    validation = (training.manifest or {"config": {}})["config"].get("validation")
    if result is None or validation is None:
        raise MuvaError(
            f"{model.uri}: was not validated on held-out sources, so only targets could say how "
            "good it is, and they must not choose. Train with --set 'validation={}' "
            "(docs/choosing.md), and promote NAME-chosen or NAME"
        )
    return HeldOutValue(value=result[HELD_OUT], validated_on=_validated_on(training, validation))


def _validated_on(training: Node, validation: dict[str, Any]) -> str:
    if held_out := training.inputs.get(Role.HELD_OUT):
        return fingerprint(["domain", _content(training.artifact, held_out[0])])
    sources = sorted(
        _content(training.artifact, address) for address in training.inputs.get(Role.SOURCE, ())
    )
    return fingerprint(["identities", validation["identities"], sources])


def _content(model: Artifact, address: str) -> str:
    dataset = artifact_at(model.store, address)
    if dataset.manifest() is None:
        raise MuvaError(
            f"{model.address} was trained on {address}, which is not in the store any more, so "
            "nothing says whom it was validated on. Import the data set again, or promote a model "
            "that was trained since"
        )
    return open_dataset(dataset).fingerprint


def promote(session: Session, model: Artifact, *, name: str) -> dict[str, Any]:
    """Registers a model as champion or challenger; alias -> version afterwards.

    Raises:
        MuvaError: it was not validated on held-out sources, or on others than the champion was.
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
                    f"{model.address} was validated on other people than the champion of {name}, "
                    f"{champion.address}, so their scores cannot be compared. Train both with the "
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
        run.set_description(_description(name, after))
    return {alias: asdict(one) if one else None for alias, one in after.items()}


def _description(name: str, after: dict[str, Any]) -> str:
    lines = [f"Registered model **{name}**, by mAP on held-out sources, per cent", ""]
    for alias, one in after.items():
        if one is not None:
            lines.append(f"- {alias}: version {one.number}, {one.address}, {100 * one.value:.1f}")
    return "\n".join(lines)
