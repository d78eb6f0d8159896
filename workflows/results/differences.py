"""Two runs side by side: settings and metrics that differ, and the queries that flipped.

What is compared are evaluations, in the store: of a run in MLflow those that it or its children
made, of a model in the store those of that name.
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
from muva.retrieval.results import Interval, Scores
from muva.retrieval.scores import bootstrap_interval
from workflows.results.comparison import made_of
from workflows.session import Session
from workflows.steps.embed import EvaluationSet
from workflows.steps.score import QueryScores
from workflows.steps.step import ARTIFACT_TAG


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one of the sides reached on a target."""

    target: str
    method: str
    artifact: Artifact
    dataset: Artifact
    held_out: bool
    """Whether it is an evaluation on held-out training images."""
    scores: Scores
    settings: Mapping[str, Any]
    """Dotted setting -> value, of the model and of its evaluation."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A query whose nearest image is right on one side alone."""

    image_id: str
    pid: str
    ranks: tuple[int, int]
    """Of the first match on both sides; 1 is the nearest."""
    average_precision: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second side less the first, on a target."""

    target: str
    methods: tuple[str, str]
    mean_ap: tuple[float, float]
    rank1: tuple[float, float]
    mean_ap_difference: Interval
    """95 %, by a bootstrap over the people asked for, whose queries are compared in pairs."""
    rank1_difference: Interval
    settings: Mapping[str, tuple[Any, Any]]
    """Those that differ; None where a side has no such setting."""
    gained: tuple[Flip, ...]
    """Right on the second side alone, the largest gain in average precision first."""
    lost: tuple[Flip, ...]


def differences_between(session: Session, first: str, second: str) -> list[Difference]:
    """Both sides on each target that both were judged on.

    A side is the id or the name of a run in MLflow, the address of metrics, or a model's name.

    Raises:
        MuvaError: no such run or model, or no target in common.
    """
    lineage = Lineage.of(session.store)
    sides = [evaluations_of(session, lineage, reference) for reference in (first, second)]
    made = []
    for one in sides[0]:
        others = [other for other in sides[1] if other.target == one.target]
        same = [other for other in others if other.method == one.method]
        if other := next(iter(same or (others if len(others) == 1 else [])), None):
            if other.artifact.address == one.artifact.address:
                continue
            made.append(_difference(one, other))
    if not made:
        told = [", ".join(sorted({f"{e.method} on {e.target}" for e in side})) for side in sides]
        raise MuvaError(
            f"{first} and {second} have no two evaluations to compare: expected others on the same "
            f"target by one method each, found {told[0]}; and {told[1]}"
        )
    return made


def evaluations_of(session: Session, lineage: Lineage, reference: str) -> list[Evaluation]:
    """The finished evaluations of a run, or the newest ones of a model on each target."""
    addresses = _addresses_of_run(session, reference)
    every = [node for node in lineage.complete("metrics") if Role.FEATURES in node.inputs]
    found = [
        node
        for node in every
        if node.artifact.address in (*addresses, f"metrics/{reference}", reference)
    ]
    if not found:
        newest: dict[str, Node] = {}
        for node in sorted(every, key=lambda node: (node.manifest or {})["created"]):
            if node.facts.get("method") == reference:
                newest[node.artifact.name] = node
        found = list(newest.values())
    if not found:
        names = sorted({node.facts.get("method", "") for node in every})
        raise MuvaError(
            f"{reference}: no run with this id or name has evaluations with metrics in the store "
            f"{session.store.uri}, and no model with this name was evaluated. Expected a run of "
            f"`muva run` or `muva evaluate`, or a model; {closest(reference, names)}"
        )
    return [_evaluation(lineage, node) for node in found]


def _addresses_of_run(session: Session, reference: str) -> list[str]:
    """The artifacts of the runs of this id or name, and of their children."""
    from tracking.runs import artifacts_of_run

    return artifacts_of_run(session.tracking_uri, reference, tag=ARTIFACT_TAG)


def _evaluation(lineage: Lineage, node: Node) -> Evaluation:
    assert node.manifest is not None
    features = lineage[node.inputs[Role.FEATURES][0]]
    dataset = features.inputs[Role.DATASET][0]
    sections: dict[str, Any] = {**node.manifest["config"]}
    if given := features.inputs.get(Role.MODEL):
        made = made_of(lineage, given[0])
        for settings in made.settings:
            sections |= settings
        sections["seed"] = made.seed
        sections["checkpoint"] = made.checkpoint
        sections["sources"] = sorted(lineage[one].artifact.name for one in made.sources)
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
            f"images of {one.target}: evaluate both again on the present data set, with `muva "
            "evaluate`"
        )
    images = EvaluationSet(dataset=one.dataset, held_out=one.held_out)
    rows = images.rows().to_pydict()
    pids = np.array(rows["pid"])[scores[0].query]
    precisions = np.stack([side.average_precision for side in scores])
    ranks = np.stack([side.first_match_rank for side in scores])
    valid = ~np.isnan(precisions).any(axis=0)
    right = ranks == 1
    flips = {}
    for name, which in (("gained", right[1] & ~right[0]), ("lost", right[0] & ~right[1])):
        places = np.flatnonzero(which & valid)
        change = precisions[1] - precisions[0]
        places = places[np.argsort(-np.abs(change[places]), kind="stable")]
        flips[name] = tuple(
            Flip(
                image_id=rows["image_id"][scores[0].query[place]],
                pid=str(pids[place]),
                ranks=(int(ranks[0, place]), int(ranks[1, place])),
                average_precision=(float(precisions[0, place]), float(precisions[1, place])),
            )
            for place in places
        )
    return Difference(
        target=one.target,
        methods=(one.method, other.method),
        mean_ap=(one.scores.mean_ap, other.scores.mean_ap),
        rank1=(one.scores.rank1, other.scores.rank1),
        mean_ap_difference=bootstrap_interval((precisions[1] - precisions[0])[valid], pids[valid]),
        rank1_difference=bootstrap_interval(
            (right[1].astype(float) - right[0])[valid], pids[valid]
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
