"""Results of this store, beside what was published for the same sources and target.

The manifests say of which model, sources, recipe and seed each result is.
"""

from __future__ import annotations

import csv
import functools
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muva.config import differences, load_recipe, shipped_recipes
from muva.data.artifacts import artifact_at, fingerprint
from muva.data.lineage import Lineage, Node, Role
from muva.data.store import Store
from muva.paper import Published, published_for, rows
from muva.retrieval.results import Scores
from workflows.progress import say
from workflows.steps.encoder import LAST_EPOCH

PAPER = "MUVA"
OURS = "muva"
"""What our runs call the method of the paper."""
ABLATION = "ablation-"
"""Prefix of the names of such recipes."""
TRAINED = ("model", "prompts", "stage1", "stage2")
"""The sections that a model is made with."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one model on one target."""

    sources: tuple[str, ...]
    """Sorted; none for a CLIP as it is."""
    target: str
    method: str
    seed: int | None
    settings: str
    """A hash of what the model was made with, besides the seed."""
    checkpoint: str
    """Which of a training's models: last epoch, chosen on held-out sources, or another epoch."""
    altered: tuple[str, ...]
    """Its data sets that hold other images than were published."""
    created: str
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A method on a target, the mean over its seeds, beside what was published."""

    sources: tuple[str, ...]
    target: str
    method: str
    checkpoint: str
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
    """All finished evaluations of whole targets; unreadable ones are reported and skipped."""
    lineage = Lineage.of(store)
    results = []
    for node in lineage.nodes("metrics"):
        try:
            results.append(_result(lineage, node))
        except KeyError as error:
            say(f"Not compared: {node.artifact.address}: {error.args[0]}")
    return [result for result in results if result is not None]


def compared(results: Sequence[Result]) -> list[Comparison]:
    """The newest settings of each method on each target, the mean over their seeds."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in sorted(results, key=lambda result: result.created):
        reranked = result.scores.reranked
        key = (result.sources, result.target, result.method, result.checkpoint, reranked)
        groups.setdefault(key, []).append(result)
    comparisons = []
    for (sources, target, method, checkpoint, reranked), every in groups.items():
        newest = every[-1]
        by_seed = {one.seed: one.scores for one in every if one.settings == newest.settings}
        known = published_for(sources, target)
        comparisons.append(
            Comparison(
                sources=sources,
                target=target,
                method=method,
                checkpoint=checkpoint,
                seeds=len(by_seed),
                altered=newest.altered,
                reranked=reranked,
                mean_ap=statistics.fmean(scores.mean_ap for scores in by_seed.values()),
                rank1=statistics.fmean(scores.rank1 for scores in by_seed.values()),
                published=next((one for one in known if one.method == PAPER), None),
                best=max(
                    (one for one in known if one.mean_ap is not None),
                    key=lambda one: one.mean_ap or 0,
                    default=None,
                ),
            )
        )
    return sorted(
        comparisons, key=lambda one: (len(one.sources), one.sources, one.target, one.method)
    )


def _result(lineage: Lineage, node: Node) -> Result | None:
    """None for domain maps, unfinished evaluations, and people who were held out of a training."""
    if node.manifest is None or Role.FEATURES not in node.inputs or node.facts.get("held_out"):
        return None
    features = lineage[node.inputs[Role.FEATURES][0]]
    [target] = features.inputs[Role.DATASET]
    made = Made()
    if Role.MODEL in features.inputs:
        made = made_of(lineage, features.inputs[Role.MODEL][0])
    scores = Scores.from_json(node.manifest["summary"])
    names = [lineage[one].artifact.name for one in made.sources]
    return Result(
        sources=tuple(sorted(names)),
        target=lineage[target].artifact.name,
        method=method_of(made, node),
        seed=made.seed,
        settings=fingerprint([made.settings, node.manifest["config"]]),
        checkpoint=made.checkpoint,
        altered=tuple(
            sorted(
                lineage[one].artifact.name
                for one in (target, *made.sources)
                if (lineage[one].manifest or {"config": {}})["config"].get("altered")
            )
        ),
        created=node.manifest["created"],
        scores=scores,
    )


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a model was made from; nothing for a CLIP as it is."""

    name: str | None = None
    """What the training is called."""
    recipe: str | None = None
    """Of the pipeline that trained it."""
    variant: str | None = None
    """Of the pipeline likewise."""
    sources: tuple[str, ...] = ()
    """Addresses of the data sets that it was trained on."""
    init: str | None = None
    """The name of the model that its training started from."""
    settings: Sequence[Mapping[str, Any]] = ()
    """Besides the seed."""
    seed: int | None = None
    ablation: str = ""
    checkpoint: str = LAST_EPOCH
    """Which of a training's models it is."""


def made_of(lineage: Lineage, address: str) -> Made:
    """What the model at an address was made from; KeyError where some of that is gone."""
    model = lineage[address]
    checkpoint = model.facts.get("checkpoint", LAST_EPOCH)
    if given := model.inputs.get(Role.TRAINING):
        model = lineage[given[0]]
    steps = [model]
    if given := model.inputs.get(Role.PROMPTS):  # imported models have no prompts or sources
        steps.append(lineage[given[0]])
    configs = [(step.manifest or {"config": {}})["config"] for step in steps]
    settings = [{k: v for k, v in config.items() if k != "seed"} for config in configs]
    init = model.inputs.get(Role.INIT)
    return Made(
        name=model.artifact.name,
        recipe=model.facts.get("recipe"),
        variant=model.facts.get("variant"),
        sources=model.inputs.get(Role.SOURCE, ()),
        # Its own address names it, also where it has been deleted since.
        init=artifact_at(model.artifact.store, init[0]).name if init else None,
        settings=settings,
        seed=configs[0].get("seed"),
        ablation=ablation_of({**settings[1], **settings[0]}) if len(steps) == 2 else "",
        checkpoint=checkpoint,
    )


def method_of(made: Made, evaluation: Node) -> str:
    """What tables call the method: a variant or a model's name, and what tells it from others."""
    variant = (made.variant or "").replace("_", "-")
    method = variant or made.name or evaluation.facts.get("method") or evaluation.artifact.name
    notes = [made.ablation] if made.ablation and method == OURS else []
    if made.init is not None:  # whose sources are its sources as well
        notes.append(f"begun from {made.init}")
    recipe = made.recipe
    if recipe in (None, "base") or recipe == f"{ABLATION}{made.ablation}":
        return ", ".join([method, *notes])
    return ", ".join([f"{method} ({recipe})", *notes])


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


COLUMNS = (
    "sources",
    "target",
    "method",
    "checkpoint",
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
        one.checkpoint,
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
