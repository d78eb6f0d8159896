"""What was reached here, beside what was published for the same sources and target."""

from __future__ import annotations

import csv
import functools
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muva.config import differences, load_recipe, shipped_recipes
from muva.data.artifacts import (
    Artifact,
    DamagedManifestError,
    artifact_at,
    fingerprint,
    list_artifacts,
)
from muva.data.store import Store
from muva.paper import Published, published_for, rows
from workflows.progress import say
from workflows.steps.encoder import CHOSEN, TRAINING

LAST_EPOCH, ON_SOURCES = "last epoch", "chosen on held-out sources"
"""Which of a training's models a number is of: the last, chosen by nothing, or the one chosen."""


PAPER = "MUVA"


OURS = "muva"
"""What its runs call the method."""


ABLATION = "ablation-"
"""What the names of such recipes begin with."""


TRAINED = ("model", "prompts", "stage1", "stage2")
"""The sections that a model is made with."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model's figures on one target, as fractions."""

    sources: tuple[str, ...]
    """Sorted; none for a CLIP as it is."""
    target: str
    method: str
    seed: int | None
    settings: str
    """A hash of what the model was made with, besides the seed."""
    number: str
    """Which of a training's models: last epoch, chosen on held-out sources, or another epoch."""
    altered: tuple[str, ...]
    """Its data sets that hold other images than were published."""
    reranked: bool
    created: str
    mean_ap: float
    rank1: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A method on a target, the mean over its seeds, beside what was published."""

    sources: tuple[str, ...]
    target: str
    method: str
    number: str
    """As a result's."""
    seeds: int
    altered: tuple[str, ...]
    reranked: bool
    mean_ap: float
    rank1: float
    published: Published | None
    """The paper's MUVA."""
    best: Published | None
    """The highest mAP published for these, by whatever method."""

    @property
    def differences(self) -> tuple[float | None, float | None]:
        """Ours less the paper's: mAP and rank-1."""
        paper = self.published
        if paper is None:
            return None, None
        return (
            None if paper.mean_ap is None else self.mean_ap - paper.mean_ap,
            None if paper.rank1 is None else self.rank1 - paper.rank1,
        )


def results_in(store: Store) -> list[Result]:
    """All finished evaluations of whole targets; what cannot be read is told and left out."""
    found = []
    for artifact in list_artifacts(store, "metrics"):
        try:
            found.append(_result(store, artifact))
        except (KeyError, DamagedManifestError) as error:
            say(f"Not compared: {artifact.address}: {error}")
    return [result for result in found if result is not None]


def compared(results: Sequence[Result]) -> list[Comparison]:
    """The newest settings of each method on each target, the mean over their seeds."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in sorted(results, key=lambda result: result.created):
        key = (result.sources, result.target, result.method, result.number, result.reranked)
        groups.setdefault(key, []).append(result)
    made = []
    for (sources, target, method, number, reranked), every in groups.items():
        newest = every[-1]
        by_seed = {one.seed: one for one in every if one.settings == newest.settings}
        known = published_for(sources, target)
        made.append(
            Comparison(
                sources=sources,
                target=target,
                method=method,
                number=number,
                seeds=len(by_seed),
                altered=newest.altered,
                reranked=reranked,
                mean_ap=statistics.fmean(one.mean_ap for one in by_seed.values()),
                rank1=statistics.fmean(one.rank1 for one in by_seed.values()),
                published=next((one for one in known if one.method == PAPER), None),
                best=max(
                    (one for one in known if one.mean_ap is not None),
                    key=lambda one: one.mean_ap or 0,
                    default=None,
                ),
            )
        )
    return sorted(made, key=lambda one: (len(one.sources), one.sources, one.target, one.method))


def _result(store: Store, artifact: Artifact) -> Result | None:
    """None for searches, and for people who were held out of a training."""
    manifest = artifact.manifest()
    assert manifest is not None
    if "features" not in manifest["inputs"]:
        return None
    features = manifest_at(store, manifest["inputs"]["features"])
    if list(features["config"]["splits"]) == ["train"]:
        return None
    made = Made(inputs={})
    if "model" in features["inputs"]:
        made = made_of(store, features["inputs"]["model"])
    sources = [address for role, address in made.inputs.items() if role.startswith("source ")]
    datasets = [features["inputs"]["dataset"], *sources]
    summary = manifest["summary"]
    target = artifact_at(store, datasets[0]).name
    method = artifact.name.removesuffix(f"-on-{target}")
    if made.number == ON_SOURCES:
        method = method.removesuffix(f"-{CHOSEN}")
    notes = [made.ablation] if made.ablation and method == OURS else []
    if "init" in made.inputs:  # whose sources are its as well
        notes.append(f"begun from {artifact_at(store, made.inputs['init']).name}")
    return Result(
        sources=tuple(sorted(artifact_at(store, address).name for address in sources)),
        target=target,
        method=", ".join([method, *notes]),
        seed=made.seed,
        settings=fingerprint([made.settings, manifest["config"]]),
        number=made.number,
        altered=tuple(
            sorted(
                artifact_at(store, address).name
                for address in datasets
                if manifest_at(store, address)["config"].get("altered")
            )
        ),
        reranked=summary["reranked"],
        created=manifest["created"],
        mean_ap=summary["mean_ap"],
        rank1=summary["curve"]["1"],
    )


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a model was made of; nothing for a CLIP as it is."""

    inputs: Mapping[str, str]
    settings: Sequence[Any] = ()
    """Besides the seed."""
    seed: int | None = None
    ablation: str = ""
    number: str = LAST_EPOCH
    """Which of a training's models it is."""


def made_of(store: Store, address: str) -> Made:
    """What the model of an address was made of."""
    model = manifest_at(store, address)
    number = LAST_EPOCH
    if TRAINING in model["inputs"]:
        kept = model["config"].get("epoch")
        number = ON_SOURCES if kept is None else f"epoch {kept}"
        model = manifest_at(store, model["inputs"][TRAINING])
    steps = [model]
    if "prompts" in model["inputs"]:  # an imported model has none, nor sources that are known
        steps.append(manifest_at(store, model["inputs"]["prompts"]))
    settings = [{k: v for k, v in one["config"].items() if k != "seed"} for one in steps]
    trained = len(steps) == 2
    return Made(
        inputs=model["inputs"],
        settings=settings,
        seed=model["config"]["seed"],
        ablation=ablation_of({**settings[1], **settings[0]}) if trained else "",
        number=number,
    )


@functools.cache
def _ablations() -> dict[str, dict[str, Any]]:
    """Ablation of the model -> dotted setting -> value where it differs from `base`."""
    base = load_recipe("base")
    found = {}
    for name in shipped_recipes():
        changes = differences(load_recipe(name), base)
        trained = {key: v for key, v in changes.items() if key.partition(".")[0] in TRAINED}
        if name.startswith(ABLATION) and trained:
            found[name.removeprefix(ABLATION)] = trained
    return found


def ablation_of(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The ablation that a model's settings are, none for `base` and for other mixtures.

    `settings` are the sections that it was made with. What no ablation touches may be anything.
    """
    base = load_recipe("base").model_dump(mode="json")
    touched = {key for changes in _ablations().values() for key in changes}
    here = {}
    for key in touched:
        section, name = key.split(".")
        value = settings[section][name]
        if value != base[section][name]:
            here[key] = value
    return next((name for name, changes in _ablations().items() if changes == here), "")


def manifest_at(store: Store, address: str) -> dict[str, Any]:
    """The manifest of an artifact; KeyError where it is gone."""
    manifest = artifact_at(store, address).manifest()
    if manifest is None:
        raise KeyError(f"{address}, which it was made from, is gone")
    return manifest


COLUMNS = (
    "sources",
    "target",
    "method",
    "number",
    "seeds",
    "mAP",
    "rank-1",
    "published mAP",
    "published rank-1",
    "mAP difference",
    "rank-1 difference",
    "best published",
)


def cells(one: Comparison) -> tuple[str, ...]:
    """A comparison in the order of `COLUMNS`, in per cent; * marks altered data sets."""
    marked = [f"{name}*" if name in one.altered else name for name in one.sources]
    paper, best = one.published, one.best
    difference = one.differences
    return (
        " + ".join(marked) or "none",
        f"{one.target}*" if one.target in one.altered else one.target,
        one.method + (", re-ranked" if one.reranked else ""),
        one.number,
        str(one.seeds),
        _per_cent(one.mean_ap),
        _per_cent(one.rank1),
        _per_cent(paper and paper.mean_ap),
        _per_cent(paper and paper.rank1),
        _per_cent(difference[0], sign=True),
        _per_cent(difference[1], sign=True),
        "" if best is None else f"{_per_cent(best.mean_ap)} {best.method}",
    )


def _per_cent(value: float | None, *, sign: bool = False) -> str:
    return "" if value is None else f"{100 * value:{'+' if sign else ''}.1f}"


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table for a paper's notes or an issue."""
    rule = "|".join(["---"] * 5 + ["---:"] * (len(COLUMNS) - 6) + ["---"])
    rows_ = [" | ".join(line) for line in (COLUMNS, *lines)]
    return "\n".join([f"| {rows_[0]} |", f"|{rule}|", *(f"| {row} |" for row in rows_[1:])])


def as_csv(lines: Sequence[Sequence[str]]) -> str:
    """The same for a spreadsheet."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *lines])
    return text.getvalue().rstrip("\n")


def protocol_rows(protocol: str) -> dict[tuple[tuple[str, ...], str], str]:
    """A protocol's sources (sorted) and targets, and each row in words."""
    return {
        (tuple(sorted(row.sources)), target): f"{' + '.join(row.sources)} -> {target}"
        for row in rows(protocol)
        for target in row.targets
    }
