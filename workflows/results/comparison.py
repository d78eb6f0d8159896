"""The results in a store beside the published ones for the same sources and target.

Manifests record the model, sources, recipe and seed of each result.
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
"""The name of the paper's method in our runs."""
ABLATION = "ablation-"
"""The prefix of the names of ablation recipes."""
TRAINING_SECTIONS = ("model", "prompts", "stage1", "stage2")
"""The sections of a recipe that determine a model."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one model on one target."""

    sources: tuple[str, ...]
    """Sorted; empty for zero-shot CLIP."""
    target: str
    method: str
    seed: int | None
    settings: str
    """A hash of all settings of the model except the seed."""
    checkpoint: str
    """Which checkpoint of a training: the last epoch, the one chosen on held-out sources, or
    another epoch."""
    altered: tuple[str, ...]
    """Its data sets whose images differ from the published ones."""
    created: str
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A method's mean over its seeds on a target, beside the published results."""

    sources: tuple[str, ...]
    target: str
    method: str
    checkpoint: str
    """Like `Result.checkpoint`."""
    seeds: int
    altered: tuple[str, ...]
    reranked: bool
    mean_ap: float
    rank1: float
    queries: int
    valid_queries: int
    """Queries with a match in the gallery, of all `queries`; the same for every seed."""
    published: Published | None
    """The paper's result for MUVA."""
    best: Published | None
    """The published result with the highest mAP for these sources and target, by any method."""

    @property
    def differences(self) -> tuple[float | None, float | None]:
        """Ours minus the paper's: mAP and rank-1."""
        paper = self.published
        if paper is None:
            return None, None
        return (
            None if paper.mean_ap is None else self.mean_ap - paper.mean_ap,
            None if paper.rank1 is None else self.rank1 - paper.rank1,
        )


def results_in(store: Store) -> list[Result]:
    """All finished evaluations of complete targets; unreadable ones are reported and skipped."""
    lineage = Lineage.of(store)
    results = []
    for node in lineage.nodes("metrics"):
        try:
            results.append(_result(lineage, node))
        except KeyError as error:
            say(f"Skipped: {node.artifact.address}: {error.args[0]}")
    return [result for result in results if result is not None]


def compare_results(results: Sequence[Result]) -> list[Comparison]:
    """The newest settings of each method on each target, averaged over their seeds."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in sorted(results, key=lambda result: result.created):
        reranked = result.scores.reranked
        key = (result.sources, result.target, result.method, result.checkpoint, reranked)
        groups.setdefault(key, []).append(result)
    comparisons = []
    for (sources, target, method, checkpoint, reranked), group in groups.items():
        newest = group[-1]
        by_seed = {one.seed: one.scores for one in group if one.settings == newest.settings}
        published = published_for(sources, target)
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
                queries=newest.scores.queries,
                valid_queries=newest.scores.valid_queries,
                published=next((one for one in published if one.method == PAPER), None),
                best=max(
                    (one for one in published if one.mean_ap is not None),
                    key=lambda one: one.mean_ap or 0,
                    default=None,
                ),
            )
        )
    return sorted(
        comparisons, key=lambda one: (len(one.sources), one.sources, one.target, one.method)
    )


def _result(lineage: Lineage, node: Node) -> Result | None:
    """None for domain maps, unfinished evaluations and evaluations on held-out training images."""
    if node.manifest is None or Role.FEATURES not in node.inputs or node.facts.get("held_out"):
        return None
    features = lineage[node.inputs[Role.FEATURES][0]]
    [target] = features.inputs[Role.DATASET]
    origin = ModelOrigin()
    if Role.MODEL in features.inputs:
        origin = model_origin(lineage, features.inputs[Role.MODEL][0])
    scores = Scores.from_json(node.manifest["summary"])
    names = [lineage[one].artifact.name for one in origin.sources]
    return Result(
        sources=tuple(sorted(names)),
        target=lineage[target].artifact.name,
        method=method_of(origin, node),
        seed=origin.seed,
        settings=fingerprint([origin.settings, node.manifest["config"]]),
        checkpoint=origin.checkpoint,
        altered=tuple(
            sorted(
                lineage[one].artifact.name
                for one in (target, *origin.sources)
                if (lineage[one].manifest or {"config": {}})["config"].get("altered")
            )
        ),
        created=node.manifest["created"],
        scores=scores,
    )


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """What a model was made from; empty for zero-shot CLIP."""

    name: str | None = None
    """The name of the trained model."""
    recipe: str | None = None
    """The recipe of the pipeline that trained it."""
    variant: str | None = None
    """The variant of the recipe that was trained."""
    sources: tuple[str, ...] = ()
    """Addresses of the data sets that it was trained on."""
    init: str | None = None
    """The name of the model that its training started from."""
    settings: Sequence[Mapping[str, Any]] = ()
    """The sections of settings, without the seed."""
    seed: int | None = None
    ablation: str = ""
    checkpoint: str = LAST_EPOCH
    """Which checkpoint of its training the model is."""


def model_origin(lineage: Lineage, address: str) -> ModelOrigin:
    """What the model at an address was made from.

    Raises:
        KeyError: an artifact that it was made from no longer exists.
    """
    model = lineage[address]
    checkpoint = model.facts.get("checkpoint", LAST_EPOCH)
    if training := model.inputs.get(Role.TRAINING):
        model = lineage[training[0]]
    steps = [model]
    if prompts := model.inputs.get(Role.PROMPTS):  # imported models have no prompts or sources
        steps.append(lineage[prompts[0]])
    configs = [(step.manifest or {"config": {}})["config"] for step in steps]
    settings = [{k: v for k, v in config.items() if k != "seed"} for config in configs]
    init = model.inputs.get(Role.INIT)
    return ModelOrigin(
        name=model.artifact.name,
        recipe=model.facts.get("recipe"),
        variant=model.facts.get("variant"),
        sources=model.inputs.get(Role.SOURCE, ()),
        # The address contains the name, so this works even if the model has been deleted.
        init=artifact_at(model.artifact.store, init[0]).name if init else None,
        settings=settings,
        seed=configs[0].get("seed"),
        ablation=ablation_of({**settings[1], **settings[0]}) if len(steps) == 2 else "",
        checkpoint=checkpoint,
    )


def method_of(origin: ModelOrigin, evaluation: Node) -> str:
    """The name of a method in tables: a variant or a model's name, and what distinguishes it."""
    variant = (origin.variant or "").replace("_", "-")
    method = variant or origin.name or evaluation.facts.get("method") or evaluation.artifact.name
    notes = [origin.ablation] if origin.ablation and method == OURS else []
    if origin.init is not None:  # the sources of the initial model count as sources too
        notes.append(f"initialised from {origin.init}")
    recipe = origin.recipe
    if recipe in (None, "base") or recipe == f"{ABLATION}{origin.ablation}":
        return ", ".join([method, *notes])
    return ", ".join([f"{method} ({recipe})", *notes])


@functools.cache
def _ablations() -> dict[str, dict[str, Any]]:
    """Ablation of the model -> dotted setting -> value that differs from `base`."""
    base = load_recipe("base")
    ablations = {}
    for name in shipped_recipes():
        changes = differences(load_recipe(name), base)
        of_model = {k: v for k, v in changes.items() if k.partition(".")[0] in TRAINING_SECTIONS}
        if name.startswith(ABLATION) and of_model:
            ablations[name.removeprefix(ABLATION)] = of_model
    return ablations


def ablation_of(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The ablation that a model's settings correspond to; empty for `base` and other combinations.

    `settings` are the sections that determine a model. Settings that no ablation changes may have
    any value.
    """
    base = load_recipe("base").model_dump(mode="json")
    ablated = {key for changes in _ablations().values() for key in changes}
    changed = {}
    for key in ablated:
        section, name = key.split(".")
        value = settings[section][name]
        if value != base[section][name]:
            changed[key] = value
    return next((name for name, changes in _ablations().items() if changes == changed), "")


COLUMNS = (
    "sources",
    "target",
    "method",
    "checkpoint",
    "seeds",
    "valid queries",
    "mAP",
    "rank-1",
    "published mAP",
    "published rank-1",
    "mAP difference",
    "rank-1 difference",
    "best published",
)


def cells(one: Comparison) -> tuple[str, ...]:
    """A comparison in the order of `COLUMNS`, in per cent; an asterisk marks altered data sets."""
    sources = [f"{name}*" if name in one.altered else name for name in one.sources]
    paper, best = one.published, one.best
    difference = one.differences
    return (
        " + ".join(sources) or "none",
        f"{one.target}*" if one.target in one.altered else one.target,
        one.method + (", re-ranked" if one.reranked else ""),
        one.checkpoint,
        str(one.seeds),
        f"{one.valid_queries} of {one.queries}",
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
    """The table in Markdown."""
    rule = "|".join(["---"] * 5 + ["---:"] * (len(COLUMNS) - 6) + ["---"])
    rows_ = [" | ".join(line) for line in (COLUMNS, *lines)]
    return "\n".join([f"| {rows_[0]} |", f"|{rule}|", *(f"| {row} |" for row in rows_[1:])])


def as_csv(lines: Sequence[Sequence[str]]) -> str:
    """The table in CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *lines])
    return text.getvalue().rstrip("\n")


def protocol_rows(protocol: str) -> dict[tuple[tuple[str, ...], str], str]:
    """A protocol's sources (sorted) and target -> the row as text."""
    return {
        (tuple(sorted(row.sources)), target): f"{' + '.join(row.sources)} -> {target}"
        for row in rows(protocol)
        for target in row.targets
    }
