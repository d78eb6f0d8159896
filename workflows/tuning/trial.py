"""A trial: settings, trained without one source at a time and judged on that one.

Its steps are artifacts, so trials that differ in mask settings share data, labels and prompts. No
target is ever opened here: a trial knows the sources alone.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from muva.config import ExperimentConfig, GroundingConfig, TuneConfig, with_settings
from muva.data.artifacts import Artifact, fingerprint
from muva.errors import SettingsError
from muva.training.divergence import NotFiniteError
from workflows.runtime.workers import Workers
from workflows.session import Session
from workflows.steps.evaluate import evaluate_on
from workflows.steps.train import train

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


State = Literal["complete", "stopped", "failed"]
"""How a trial ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """How far a trial has come."""

    rung: int
    """Trainings so far, over held-out domains and seeds; with a scheduler, their epochs of stage 2.

    At equal rungs trials are compared."""
    complete: bool
    metrics: dict[str, float]
    by_seed: list[float]
    """Mean mAP of each seed, over the domains that it was judged on."""
    seconds: float
    failed: str | None = None
    """Why there is no more: the training diverged, or its settings do not go together. There are no
    metrics then."""

    @property
    def state(self) -> State:
        """What a trial is of which this is the last report."""
        if self.failed is not None:
            return "failed"
        return "complete" if self.complete else "stopped"


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


def epochs_by_rung(config: ExperimentConfig, settings: TuneConfig) -> int:
    """Rungs of a training: its epochs of stage 2 where a scheduler may stop it in the midst."""
    if settings.scheduler == "none":
        return 1
    return settings.stage2_epochs or config.stage2.epochs


def rungs_of(config: ExperimentConfig, settings: TuneConfig, sources: int) -> int:
    """The rung of a complete trial."""
    trainings = folds_of(settings, sources) * settings.seeds
    return trainings * epochs_by_rung(config, settings)


def grounding_key(grounding: GroundingConfig | None) -> str:
    """What labels are of that a grounding makes."""
    return fingerprint(grounding and grounding.model_dump(mode="json"))


def trial_config(
    config: ExperimentConfig, settings: TuneConfig, params: Mapping[str, Any]
) -> ExperimentConfig:
    """The experiment of a trial with these settings; its epochs are the search's.

    A trial is worth what its last epochs are: `validation` chooses none.
    """
    epochs = {"stage1.epochs": settings.stage1_epochs, "stage2.epochs": settings.stage2_epochs}
    short = {setting: count for setting, count in epochs.items() if count is not None}
    changes = {"validation": None, **short, **params}
    return with_settings(config, changes, where=f"{config.name}, a trial")


def run_trial(
    params: Mapping[str, Any],
    *,
    inputs: TrialInputs,
    settings: TuneConfig,
    report: Callable[[Reached], None],
) -> None:
    """Trains and judges, and reports after each training; the last report is the complete one.

    All domains are held out with the first seed before any is with the next. With a scheduler it
    reports each epoch too, as judged beside the training. A training that diverges, or that its
    settings do not allow, ends the trial with a report that says why.
    """
    began_at = time.monotonic()
    config = trial_config(inputs.config, settings, params)
    folds = folds_of(settings, len(inputs.sources))
    trainings, epochs = folds * settings.seeds, epochs_by_rung(inputs.config, settings)
    labels = inputs.labels[grounding_key(config.grounding)] if config.model.parts else None
    found: list[Found] = []

    def tell(latest: Found, rung: int, *, complete: bool = False) -> None:
        so_far = [*found, latest]
        report(
            Reached(
                rung=rung,
                complete=complete,
                metrics=metrics_of(so_far),
                by_seed=[statistics.fmean(one) for one in by_seed(so_far)],
                seconds=round(time.monotonic() - began_at, 1),
            )
        )

    for training in range(trainings):
        seed, fold = divmod(training, folds)
        try:
            latest = _trained_and_judged(
                config.model_copy(update={"seed": config.seed + seed}),
                inputs=inputs,
                labels=labels,
                held_out=inputs.sources[fold],
                seed=seed,
                on_epoch=None
                if settings.scheduler == "none"
                # The last one is told by the evaluation behind it.
                else lambda epoch, latest, before=training * epochs: (
                    tell(latest, before + epoch) if epoch < epochs else None
                ),
            )
        except (NotFiniteError, SettingsError) as error:
            seconds = round(time.monotonic() - began_at, 1)
            report(
                Reached(
                    rung=training * epochs,
                    complete=False,
                    metrics={},
                    by_seed=[],
                    seconds=seconds,
                    failed=str(error),
                )
            )
            return
        tell(latest, (training + 1) * epochs, complete=training + 1 == trainings)
        found.append(latest)


def _trained_and_judged(
    config: ExperimentConfig,
    *,
    inputs: TrialInputs,
    labels: Sequence[Artifact] | None,
    held_out: Artifact,
    seed: int,
    on_epoch: Callable[[int, Found], None] | None,
) -> Found:
    """A training without one source, judged on it after its last epoch, and after each if asked."""
    name = f"trial-without-{held_out.name}"
    domain = held_out.name
    places = range(len(inputs.sources))
    if on_epoch is None:  # else the training judges by the source that it does not learn from
        places = [place for place in places if inputs.sources[place].name != domain]
    else:
        config = with_settings(config, {"validation": {"domain": domain}}, where=config.name)

    def on_validated(epoch: int, metrics: Mapping[str, float]) -> None:
        assert on_epoch is not None
        mean_ap, rank1 = (metrics[f"{domain}/{name}"] for name in ("mAP", "rank-1"))
        on_epoch(epoch, Found(domain=domain, seed=seed, mean_ap=mean_ap, rank1=rank1))

    trained = train(
        inputs.session,
        config,
        sources=[inputs.sources[place] for place in places],
        labels=None if labels is None else [labels[place] for place in places],
        workers=inputs.workers,
        name=name,
        on_validated=None if on_epoch is None else on_validated,
    )
    model = trained.encoder.artifact.uri
    found = evaluate_on(inputs.session, model, held_out, config, name=name, held_out=True)
    return Found(domain=domain, seed=seed, mean_ap=found.mean_ap, rank1=found.rank1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What one training reached on the domain that it was held out from."""

    domain: str
    seed: int
    mean_ap: float
    rank1: float


def by_seed(found: Sequence[Found]) -> list[list[float]]:
    """The domains' mAP of each seed."""
    seeds = dict.fromkeys(one.seed for one in found)
    return [[one.mean_ap for one in found if one.seed == seed] for seed in seeds]


def metrics_of(found: Sequence[Found]) -> dict[str, float]:
    """Each domain's figures, the mean over its seeds, and what a trial is judged by."""
    metrics: dict[str, float] = {}
    for domain in dict.fromkeys(one.domain for one in found):
        there = [one for one in found if one.domain == domain]
        metrics[f"{domain}/mAP"] = statistics.fmean(one.mean_ap for one in there)
        metrics[f"{domain}/rank-1"] = statistics.fmean(one.rank1 for one in there)
    domains = [value for key, value in metrics.items() if key.endswith("/mAP")]
    metrics |= {MEAN: statistics.fmean(domains), WORST: min(domains)}
    whole = [one for one in by_seed(found) if len(one) == len(domains)]
    if len(whole) > 1:
        metrics[DEVIATION] = statistics.stdev(statistics.fmean(one) for one in whole)
    return metrics
