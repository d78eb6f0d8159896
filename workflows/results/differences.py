"""Compares two runs: settings and metrics that differ, and the queries that flipped.

It compares evaluations in the store: those that a run in MLflow or its children made, or those of
models with a given name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from muva.data.artifacts import Artifact
from muva.data.lineage import Lineage, Node, Role
from muva.data.shards import open_dataset
from muva.errors import MuvaError, closest
from muva.retrieval.metrics import bootstrap_interval
from muva.retrieval.results import Interval, Scores
from workflows.results.comparison import model_origin
from workflows.session import Session
from workflows.steps.embed import EvaluationSet
from workflows.steps.score import QueryScores
from workflows.steps.step import ARTIFACT_TAG


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of one side on a target."""

    target: str
    method: str
    artifact: Artifact
    dataset: Artifact
    held_out: bool
    """Whether it was evaluated on held-out training images."""
    scores: Scores
    settings: Mapping[str, Any]
    """Dotted setting -> value, for the model and its evaluation."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A query whose nearest image is right on only one side."""

    image_id: str
    pid: str
    ranks: tuple[int, int]
    """The rank of the first match on each side; 1 is the nearest image."""
    average_precision: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second side minus the first, on a target."""

    target: str
    methods: tuple[str, str]
    mean_ap: tuple[float, float]
    rank1: tuple[float, float]
    queries: int
    valid_queries: int
    """Queries with a match in the gallery on both sides, of all `queries`."""
    mean_ap_difference: Interval | None
    """The 95 % confidence interval of a paired bootstrap over the people of the valid queries; None
    if they are too few."""
    rank1_difference: Interval | None
    settings: Mapping[str, tuple[Any, Any]]
    """Settings that differ; None if a side does not have the setting."""
    gained: tuple[Flip, ...]
    """Queries that are right only on the second side, largest gain in average precision first."""
    lost: tuple[Flip, ...]
    """Queries that are right only on the first side, largest loss first."""


def differences_between(session: Session, first: str, second: str) -> list[Difference]:
    """The differences on each target that both sides were evaluated on.

    A side is the id or name of a run in MLflow, the address of metrics, or a model's name.

    Raises:
        MuvaError: no such run or model, or no target in common.
    """
    lineage = Lineage.of(session.store)
    sides = [evaluations_of(session, lineage, reference) for reference in (first, second)]
    differences = []
    for one in sides[0]:
        same_target = [other for other in sides[1] if other.target == one.target]
        same_method = [other for other in same_target if other.method == one.method]
        candidates = same_method or (same_target if len(same_target) == 1 else [])
        if candidates and candidates[0].artifact.address != one.artifact.address:
            differences.append(_difference(one, candidates[0]))
    if not differences:
        listed = [", ".join(sorted({f"{e.method} on {e.target}" for e in side})) for side in sides]
        raise MuvaError(
            f"{first} and {second} have no evaluations to compare: expected different evaluations "
            f"on the same target, one per method, found {listed[0]}; and {listed[1]}"
        )
    return differences


def evaluations_of(session: Session, lineage: Lineage, reference: str) -> list[Evaluation]:
    """The finished evaluations of a run, or the newest ones of a model on each target."""
    addresses = _addresses_of_run(session, reference)
    evaluations = [node for node in lineage.complete("metrics") if Role.FEATURES in node.inputs]
    selected = [
        node
        for node in evaluations
        if node.artifact.address in (*addresses, f"metrics/{reference}", reference)
    ]
    if not selected:
        newest: dict[str, Node] = {}
        for node in sorted(evaluations, key=lambda node: (node.manifest or {})["created"]):
            if node.facts.get("method") == reference:
                newest[node.artifact.name] = node
        selected = list(newest.values())
    if not selected:
        names = sorted({node.facts.get("method", "") for node in evaluations})
        raise MuvaError(
            f"{reference}: no run with this id or name has evaluations with metrics in the store "
            f"{session.store.uri}, and no model with this name was evaluated. Expected a run of "
            f"`muva run` or `muva evaluate`, or a model; {closest(reference, names)}"
        )
    return [_evaluation(lineage, node) for node in selected]


def _addresses_of_run(session: Session, reference: str) -> list[str]:
    """The artifacts of the runs with this id or name, and of their children."""
    from tracking.runs import artifacts_of_run

    return artifacts_of_run(session.tracking_uri, reference, tag=ARTIFACT_TAG)


def _evaluation(lineage: Lineage, node: Node) -> Evaluation:
    assert node.manifest is not None
    features = lineage[node.inputs[Role.FEATURES][0]]
    dataset = features.inputs[Role.DATASET][0]
    sections: dict[str, Any] = {**node.manifest["config"]}
    if model := features.inputs.get(Role.MODEL):
        origin = model_origin(lineage, model[0])
        for settings in origin.settings:
            sections |= settings
        sections["seed"] = origin.seed
        sections["checkpoint"] = origin.checkpoint
        sections["sources"] = sorted(lineage[one].artifact.name for one in origin.sources)
    return Evaluation(
        target=lineage[dataset].artifact.name,
        method=node.facts.get("method", node.artifact.name),
        artifact=node.artifact,
        dataset=lineage[dataset].artifact,
        held_out=bool(node.facts.get("held_out")),
        scores=Scores.from_json(node.manifest["summary"]),
        settings=_flat(sections),
    )


def _difference(one: Evaluation, other: Evaluation) -> Difference:
    scores = [QueryScores.read(side.artifact) for side in (one, other)]
    fingerprints = {open_dataset(side.dataset).fingerprint for side in (one, other)}
    if len(fingerprints) > 1 or not np.array_equal(scores[0].query, scores[1].query):
        raise MuvaError(
            f"{one.artifact.address} and {other.artifact.address} were evaluated on different "
            f"images of {one.target}: evaluate both again on the current data set with `muva "
            "evaluate`"
        )
    images = EvaluationSet(dataset=one.dataset, held_out=one.held_out)
    rows = images.rows().to_pydict()
    pids = np.array(rows["pid"])[scores[0].query]
    precisions = np.stack([side.average_precision for side in scores])
    ranks = np.stack([side.first_match_rank for side in scores])
    valid = ~np.isnan(precisions).any(axis=0)
    correct = ranks == 1
    flips = {}
    for name, mask in (("gained", correct[1] & ~correct[0]), ("lost", correct[0] & ~correct[1])):
        queries = np.flatnonzero(mask & valid)
        change = precisions[1] - precisions[0]
        queries = queries[np.argsort(-np.abs(change[queries]), kind="stable")]
        flips[name] = tuple(
            Flip(
                image_id=rows["image_id"][scores[0].query[query]],
                pid=str(pids[query]),
                ranks=(int(ranks[0, query]), int(ranks[1, query])),
                average_precision=(float(precisions[0, query]), float(precisions[1, query])),
            )
            for query in queries
        )
    return Difference(
        target=one.target,
        methods=(one.method, other.method),
        mean_ap=(one.scores.mean_ap, other.scores.mean_ap),
        rank1=(one.scores.rank1, other.scores.rank1),
        queries=len(pids),
        valid_queries=int(valid.sum()),
        mean_ap_difference=bootstrap_interval((precisions[1] - precisions[0])[valid], pids[valid]),
        rank1_difference=bootstrap_interval(
            (correct[1].astype(float) - correct[0])[valid], pids[valid]
        ),
        settings={
            name: (one.settings.get(name), other.settings.get(name))
            for name in sorted({*one.settings, *other.settings})
            if one.settings.get(name) != other.settings.get(name)
        },
        **flips,
    )


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
