"""Two runs side by side: settings and metrics that differ, and the queries that flipped.

What is compared are evaluations, in the store: of a run in MLflow those that it or its children
made, of a model in the store those of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from muva.data.artifacts import Artifact, artifact_at, list_artifacts
from muva.data.shards import open_dataset
from muva.errors import MuvaError, closest
from muva.retrieval.scores import Interval, bootstrap_interval
from workflows.results.comparison import made_of, manifest_at
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
    manifest: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Dotted setting -> value, of the model and of how it was judged."""


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
    sides = [evaluations_of(session, reference) for reference in (first, second)]
    made = []
    for one in sides[0]:
        others = [other for other in sides[1] if other.target == one.target]
        same = [other for other in others if other.method == one.method]
        if other := next(iter(same or (others if len(others) == 1 else [])), None):
            if other.artifact.address == one.artifact.address:
                continue
            made.append(_difference(session, one, other))
    if not made:
        told = [", ".join(sorted({f"{e.method} on {e.target}" for e in side})) for side in sides]
        raise MuvaError(
            f"{first} and {second} have no two evaluations to compare: expected others on the same "
            f"target by one method each, found {told[0]}; and {told[1]}"
        )
    return made


def evaluations_of(session: Session, reference: str) -> list[Evaluation]:
    """The finished evaluations of a run or a model."""
    addresses = _addresses_of_run(session, reference)
    every = [a for a in list_artifacts(session.store, "metrics") if "-on-" in a.name]
    found = [a for a in every if a.address in (*addresses, f"metrics/{reference}", reference)]
    if not found:
        found = [a for a in every if a.name.startswith(f"{reference}-on-")]
        newest: dict[str, Artifact] = {}
        for artifact in sorted(found, key=lambda a: (a.manifest() or {})["created"]):
            newest[artifact.name] = artifact
        found = list(newest.values())
    evaluations = [one for one in map(_evaluation, found) if one is not None]
    if not evaluations:
        names = sorted({a.name.partition("-on-")[0] for a in every})
        raise MuvaError(
            f"{reference}: no run of that id or name has evaluations with metrics in the store "
            f"{session.store.uri}, and no model of that name was judged: expected a run of `muva "
            f"run` or `muva evaluate`, or a model; {closest(reference, names)}"
        )
    return evaluations


def _addresses_of_run(session: Session, reference: str) -> list[str]:
    """The artifacts of the runs of this id or name, and of their children."""
    from tracking.runs import artifacts_of_run

    return artifacts_of_run(session.tracking_uri, reference, tag=ARTIFACT_TAG)


def _evaluation(artifact: Artifact) -> Evaluation | None:
    manifest = artifact.manifest()
    if manifest is None or "features" not in manifest["inputs"]:
        return None
    store = artifact.store
    features = manifest_at(store, manifest["inputs"]["features"])
    target = artifact_at(store, features["inputs"]["dataset"]).name
    sections: dict[str, Any] = {**manifest["config"]}
    if "model" in features["inputs"]:
        made = made_of(store, features["inputs"]["model"])
        for settings in made.settings:
            sections |= settings
        sections["seed"] = made.seed
        sections["epoch"] = made.number
        sections["sources"] = sorted(
            artifact_at(store, address).name
            for role, address in made.inputs.items()
            if role.startswith("source ")
        )
    return Evaluation(
        target=target,
        method=artifact.name.removesuffix(f"-on-{target}"),
        artifact=artifact,
        manifest=manifest,
        settings=_flat(sections),
    )


def _difference(session: Session, one: Evaluation, other: Evaluation) -> Difference:
    summaries = [side.manifest["summary"] for side in (one, other)]
    scores = [QueryScores.read(side.artifact) for side in (one, other)]
    features = manifest_at(session.store, one.manifest["inputs"]["features"])
    other_features = manifest_at(session.store, other.manifest["inputs"]["features"])
    dataset = artifact_at(session.store, features["inputs"]["dataset"])
    fingerprints = {
        open_dataset(artifact_at(session.store, side["inputs"]["dataset"])).fingerprint
        for side in (features, other_features)
    }
    if len(fingerprints) > 1 or not np.array_equal(scores[0].query, scores[1].query):
        raise MuvaError(
            f"{one.artifact.address} and {other.artifact.address} were judged on other images of "
            f"{one.target}: judge both again on the data set of today, with `muva evaluate`"
        )
    held_out = list(features["config"]["splits"]) == ["train"]
    rows = EvaluationSet(dataset=dataset, held_out=held_out).rows().to_pydict()
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
        mean_ap=(summaries[0]["mean_ap"], summaries[1]["mean_ap"]),
        rank1=(summaries[0]["curve"]["1"], summaries[1]["curve"]["1"]),
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
