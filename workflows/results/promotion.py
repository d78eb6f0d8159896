"""Promotion: the best model on held-out sources becomes the champion in MLflow's registry.

Nothing else moves the aliases. Targets play no role: a model that was trained without validation
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
from workflows.steps.mlflow_records import served_model, training_of


@dataclass(frozen=True, kw_only=True)
class HeldOutValue:
    """The score of a model on people of its sources that it was not trained on."""

    value: float
    """mAP, a fraction."""
    validated_on: str
    """A hash that identifies these people."""


def held_out_value(model: Artifact) -> HeldOutValue:
    """The score of a model on held-out sources.

    Raises:
        MuvaError: the model was not validated on held-out sources.
    """
    node = node_at(model.store, model.address)
    training = training_of(node)
    assert node.manifest is not None
    summary = node.manifest["summary"]
    results = summary.get("verdicts") or []
    result: dict[str, Any] | None = summary.get("verdict") or (results[-1] if results else None)
    validation = (training.manifest or {"config": {}})["config"].get("validation")
    if result is None or validation is None:
        raise MuvaError(
            f"{model.uri}: was not validated on held-out sources, and targets must not be used to "
            "choose a model. Train with --set 'validation={}' (docs/choosing.md), and promote "
            "NAME-chosen or NAME"
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
            f"{model.address} was trained on {address}, which is no longer in the store, so the "
            "people whom it was validated on are unknown. Import the data set again, or promote a "
            "model that was trained later"
        )
    return open_dataset(dataset).fingerprint


def promote(session: Session, model: Artifact, *, name: str) -> dict[str, Any]:
    """Registers a model as champion or challenger; returns alias -> version afterwards.

    Raises:
        MuvaError: it was not validated on held-out sources, or on other people than the champion.
    """
    from tracking.connection import failures_explained, reached_client
    from tracking.registry import CHALLENGER, CHAMPION, Registry

    held_out = held_out_value(model)
    assert session.tracking_uri is not None
    with session.run(
        f"promote {model.name}", key=f"promotion-{name}-{model.address}", params={}
    ) as run:
        assert run is not None
        model_id = served_model(run, model)
        with failures_explained(run.ref.tracking_uri):
            registry = Registry(reached_client(run.ref.tracking_uri), name)
            champion = registry.version_with_alias(CHAMPION)
            if champion is not None and champion.validated_on != held_out.validated_on:
                raise MuvaError(
                    f"{model.address} was validated on other people than the champion of {name}, "
                    f"{champion.address}, so their scores cannot be compared. Train both with the "
                    "same sources and validation, or register this one under another name with --as"
                )
            version = registry.register(
                model_id=model_id,
                run_id=run.ref.run_id,
                address=model.address,
                value=held_out.value,
                validated_on=held_out.validated_on,
            )
            if champion is None or held_out.value > champion.value:
                registry.set_alias(CHAMPION, version)
                registry.set_alias(CHALLENGER, champion)
            elif champion.address != version.address:
                registry.set_alias(CHALLENGER, version)
            aliases = (CHAMPION, CHALLENGER)
            versions = {alias: registry.version_with_alias(alias) for alias in aliases}
        run.log_metrics({HELD_OUT: held_out.value})
        run.set_description(_description(name, versions))
    return {alias: asdict(one) if one else None for alias, one in versions.items()}


def _description(name: str, versions: dict[str, Any]) -> str:
    lines = [f"Registered model **{name}**, by mAP on held-out sources, per cent", ""]
    for alias, one in versions.items():
        if one is not None:
            lines.append(f"- {alias}: version {one.number}, {one.address}, {100 * one.value:.1f}")
    return "\n".join(lines)
