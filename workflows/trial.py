"""A trial: settings, trained without one source at a time and judged on that one.

Its steps are artifacts, so trials that differ in mask settings share data, labels and prompts. No
target is ever opened here: a trial knows the sources alone.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from muva.config import ExperimentConfig, GroundingConfig, TuneConfig, with_settings
from muva.data.artifacts import Artifact, fingerprint
from muva.errors import SettingsError
from workflows.evaluate import evaluate_on
from workflows.session import Session
from workflows.train import train
from workflows.workers import Workers

MEAN = "held-out/mAP"
"""Mean over the held-out domains, each the mean over the seeds."""
WORST = "held-out/worst-mAP"
"""Of the domain that is recognised worst."""
DEVIATION = "held-out/mAP-deviation"
"""Standard deviation of the mean over the domains, between seeds."""
AIMS = {"mean": (MEAN,), "worst": (WORST,), "both": (MEAN, WORST)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialInputs:
    """What a trial works with: source domains, and nothing else."""

    session: Session
    config: ExperimentConfig
    sources: tuple[Artifact, ...]
    labels: Mapping[str, tuple[Artifact, ...]]
    """`grounding_key` -> the sources' pseudo-labels of that expert."""
    workers: Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """How far a trial has come."""

    rung: int
    """Trainings so far, over held-out domains and seeds: at equal ones trials are compared."""
    complete: bool
    metrics: dict[str, float]
    by_seed: list[float]
    """Mean mAP of each seed, over the domains that it was judged on."""
    seconds: float


def folds_of(settings: TuneConfig, sources: int) -> int:
    """How many of so many sources are held out in turn."""
    return min(settings.folds or sources, sources)


def aims_of(settings: TuneConfig, held_out: Sequence[str]) -> tuple[str, ...]:
    """The metrics that the search raises. Raises SettingsError for one that no trial reports."""
    aim = settings.aim
    if aim == "both" and len(held_out) < 2:
        raise SettingsError(
            f"aim both: with {held_out[0]} alone held out, mean and worst domain are the same: "
            "hold out two domains or more with --folds, or aim at the mean"
        )
    if aim in AIMS:
        return AIMS[aim]
    if aim in held_out:
        return (f"{aim}/mAP",)
    raise SettingsError(
        f"aim {aim}: no trial reports it: expected {', '.join(AIMS)} or a domain that is held "
        f"out: {', '.join(held_out)}"
    )


def rungs_of(settings: TuneConfig, sources: int) -> int:
    """The rung of a complete trial."""
    return folds_of(settings, sources) * settings.seeds


def grounding_key(grounding: GroundingConfig | None) -> str:
    """What labels are of that a grounding makes."""
    return fingerprint(grounding and grounding.model_dump(mode="json"))


def trial_config(
    config: ExperimentConfig, settings: TuneConfig, params: Mapping[str, Any]
) -> ExperimentConfig:
    """The experiment of a trial with these settings; its epochs are the search's."""
    epochs = {"stage1.epochs": settings.stage1_epochs, "stage2.epochs": settings.stage2_epochs}
    short = {setting: count for setting, count in epochs.items() if count is not None}
    return with_settings(config, {**short, **params}, where=f"{config.name}, a trial")


def run_trial(
    params: Mapping[str, Any],
    *,
    inputs: TrialInputs,
    settings: TuneConfig,
    report: Callable[[Reached], None],
) -> None:
    """Trains and judges, and reports after each training; the last report is the complete one.

    All domains are held out with the first seed before any is with the next.
    """
    began_at = time.monotonic()
    config = trial_config(inputs.config, settings, params)
    folds, rungs = folds_of(settings, len(inputs.sources)), rungs_of(settings, len(inputs.sources))
    labels = inputs.labels[grounding_key(config.grounding)] if config.model.parts else ()
    reached: dict[str, list[float]] = {}
    by_seed: list[dict[str, float]] = []
    for rung in range(rungs):
        seed, fold = divmod(rung, folds)
        if fold == 0:
            by_seed.append({})
        held_out = inputs.sources[fold]
        others = [place for place in range(len(inputs.sources)) if place != fold]
        seeded = config.model_copy(update={"seed": config.seed + seed})
        name = f"trial-without-{held_out.name}"
        trained = train(
            inputs.session,
            seeded,
            sources=[inputs.sources[place] for place in others],
            labels=[labels[place] for place in others] if labels else None,
            workers=inputs.workers,
            name=name,
        )
        found = evaluate_on(
            inputs.session, trained.model.uri, held_out, seeded, name=name, held_out=True
        )
        reached.setdefault(f"{held_out.name}/mAP", []).append(found.mean_ap)
        reached.setdefault(f"{held_out.name}/rank-1", []).append(found.rank1)
        by_seed[-1][held_out.name] = found.mean_ap
        report(
            Reached(
                rung=rung + 1,
                complete=rung + 1 == rungs,
                metrics=metrics_of(reached, by_seed),
                by_seed=[statistics.fmean(one.values()) for one in by_seed],
                seconds=round(time.monotonic() - began_at, 1),
            )
        )


def metrics_of(
    reached: Mapping[str, Sequence[float]], by_seed: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Each domain's figures, the mean over its seeds, and what a trial is judged by."""
    metrics = {key: statistics.fmean(values) for key, values in reached.items()}
    domains = [value for key, value in metrics.items() if key.endswith("/mAP")]
    metrics |= {MEAN: statistics.fmean(domains), WORST: min(domains)}
    whole = [one for one in by_seed if len(one) == len(domains)]
    if len(whole) > 1:
        metrics[DEVIATION] = statistics.stdev(statistics.fmean(one.values()) for one in whole)
    return metrics
