"""A trial: settings, trained without one source at a time and evaluated on that source.

Its steps are artifacts, so trials that differ in mask settings share data sets, pseudo-labels and
prompts. No target is ever opened here: a trial knows only the sources.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from muva.config import ExperimentConfig, GroundingConfig, TuneConfig, with_settings
from muva.data.artifacts import Artifact, fingerprint
from muva.errors import SettingsError
from workflows.session import Session
from workflows.steps.evaluate import evaluate_on
from workflows.steps.train import declare_training, train

if TYPE_CHECKING:
    from workflows.runtime.workers import Workers

MEAN = "held-out/mAP"
"""The mean over the held-out domains, each of them a mean over the seeds."""
WORST = "held-out/worst-mAP"
"""The mAP on the worst domain."""
DEVIATION = "held-out/mAP-deviation"
"""The standard deviation between seeds of the mean over the domains."""
OBJECTIVES = {"mean": (MEAN,), "worst": (WORST,), "both": (MEAN, WORST)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialInputs:
    """The inputs of a trial: source domains, and nothing else."""

    session: Session
    config: ExperimentConfig
    sources: tuple[Artifact, ...]
    labels: Mapping[str, tuple[Artifact, ...]]
    """`grounding_key` -> the pseudo-labels of the sources by that expert."""
    workers: Workers


State = Literal["complete", "stopped", "failed"]
"""How a trial ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """How far a trial has got."""

    rung: int
    """Trainings so far, over held-out domains and seeds; with a scheduler, their epochs of stage 2.

    Trials are compared at equal rungs."""
    complete: bool
    metrics: dict[str, float]
    by_seed: list[float]
    """The mean mAP of each seed, over the domains that it was evaluated on."""
    seconds: float
    failed: str | None = None
    """Why it ended early, without metrics: the training diverged, or its settings contradict each
    other."""

    @property
    def state(self) -> State:
        """How the trial ended, if this is its last report."""
        if self.failed is not None:
            return "failed"
        return "complete" if self.complete else "stopped"


def folds_of(settings: TuneConfig, sources: int) -> int:
    """How many of the sources are held out, one after the other."""
    return min(settings.folds or sources, sources)


def objectives_of(settings: TuneConfig, held_out: Sequence[str]) -> tuple[str, ...]:
    """The metrics that the search maximises; SettingsError for one that no trial reports."""
    objective = settings.objective
    if objective == "both" and len(held_out) < 2:
        raise SettingsError(
            f"objective both: only {held_out[0]} is held out, so that mean and worst domain "
            "are the same; hold out two domains or more with --folds, or choose the objective mean"
        )
    if objective in OBJECTIVES:
        return OBJECTIVES[objective]
    if objective in held_out:
        return (f"{objective}/mAP",)
    raise SettingsError(
        f"objective {objective}: no trial reports it; expected {', '.join(OBJECTIVES)} or a domain "
        f"that is held out: {', '.join(held_out)}"
    )


def epochs_by_rung(config: ExperimentConfig, settings: TuneConfig) -> int:
    """The number of rungs of a training: its epochs of stage 2 if a scheduler may stop it early."""
    if settings.scheduler == "none":
        return 1
    return settings.stage2_epochs or config.stage2.epochs


def rungs_of(config: ExperimentConfig, settings: TuneConfig, sources: int) -> int:
    """The rung of a complete trial."""
    trainings = folds_of(settings, sources) * settings.seeds
    return trainings * epochs_by_rung(config, settings)


def grounding_key(grounding: GroundingConfig | None) -> str:
    """A key that identifies the pseudo-labels of some grounding settings."""
    return fingerprint(grounding and grounding.result_settings())


def trial_config(
    config: ExperimentConfig, settings: TuneConfig, params: Mapping[str, Any]
) -> ExperimentConfig:
    """The experiment of a trial with these settings, and with the epochs of the search.

    A trial is evaluated after its last epoch: `validation` does not choose one.
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
    report: Callable[[TrialProgress], None],
) -> None:
    """Train and evaluate, and report after each training; the last report is the complete one.

    All domains are held out with the first seed before the second seed begins. With a scheduler,
    each epoch, which is validated beside the training, is reported as well. A training that
    diverges, or whose settings contradict each other, ends the trial with a report of the reason.
    """
    from muva.training.divergence import (
        NotFiniteError,
    )  # imports PyTorch, which the driver does not need

    began_at = time.monotonic()
    config = trial_config(inputs.config, settings, params)
    folds = folds_of(settings, len(inputs.sources))
    trainings, epochs = folds * settings.seeds, epochs_by_rung(inputs.config, settings)
    labels = inputs.labels[grounding_key(config.grounding)] if config.model.parts else None
    found: list[FoldResult] = []

    def report_rung(latest: FoldResult, rung: int, *, complete: bool = False) -> None:
        so_far = [*found, latest]
        report(
            TrialProgress(
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
            latest = _train_fold(
                config.model_copy(update={"seed": config.seed + seed}),
                inputs=inputs,
                labels=labels,
                held_out=inputs.sources[fold],
                seed=seed,
                on_epoch=None
                if settings.scheduler == "none"
                # The last epoch is reported by the evaluation after it.
                else lambda epoch, latest, before=training * epochs: (
                    report_rung(latest, before + epoch) if epoch < epochs else None
                ),
            )
        except (NotFiniteError, SettingsError) as error:
            seconds = round(time.monotonic() - began_at, 1)
            report(
                TrialProgress(
                    rung=training * epochs,
                    complete=False,
                    metrics={},
                    by_seed=[],
                    seconds=seconds,
                    failed=str(error),
                )
            )
            return
        report_rung(latest, (training + 1) * epochs, complete=training + 1 == trainings)
        found.append(latest)


def _train_fold(
    config: ExperimentConfig,
    *,
    inputs: TrialInputs,
    labels: Sequence[Artifact] | None,
    held_out: Artifact,
    seed: int,
    on_epoch: Callable[[int, FoldResult], None] | None,
) -> FoldResult:
    """A training without one source, evaluated on it after the last epoch, or after each epoch."""
    name = f"trial-without-{held_out.name}"
    domain = held_out.name
    indices = range(len(inputs.sources))
    if on_epoch is None:  # otherwise the training itself holds out the source, to validate on it
        indices = [index for index in indices if inputs.sources[index].name != domain]
    else:
        config = with_settings(config, {"validation": {"domain": domain}}, where=config.name)

    def on_validated(epoch: int, metrics: Mapping[str, float]) -> None:
        assert on_epoch is not None
        mean_ap, rank1 = (metrics[f"{domain}/{name}"] for name in ("mAP", "rank-1"))
        on_epoch(epoch, FoldResult(domain=domain, seed=seed, mean_ap=mean_ap, rank1=rank1))

    training = declare_training(
        inputs.session,
        config,
        sources=[inputs.sources[index] for index in indices],
        labels=None if labels is None else [labels[index] for index in indices],
        name=name,
    )
    trained = train(
        inputs.session,
        training,
        inputs.workers,
        on_validated=None if on_epoch is None else on_validated,
    )
    model = trained.encoder.artifact.uri
    evaluation = evaluate_on(inputs.session, model, held_out, config, name=name, held_out=True)
    scores = evaluation.scores
    return FoldResult(domain=domain, seed=seed, mean_ap=scores.mean_ap, rank1=scores.rank1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldResult:
    """The scores of one training on its held-out domain."""

    domain: str
    seed: int
    mean_ap: float
    rank1: float


def by_seed(found: Sequence[FoldResult]) -> list[list[float]]:
    """The mAP on each domain, for each seed."""
    seeds = dict.fromkeys(one.seed for one in found)
    return [[one.mean_ap for one in found if one.seed == seed] for seed in seeds]


def metrics_of(found: Sequence[FoldResult]) -> dict[str, float]:
    """Metrics of each domain, averaged over the seeds, and the objectives of the trials."""
    metrics: dict[str, float] = {}
    for domain in dict.fromkeys(one.domain for one in found):
        results = [one for one in found if one.domain == domain]
        metrics[f"{domain}/mAP"] = statistics.fmean(one.mean_ap for one in results)
        metrics[f"{domain}/rank-1"] = statistics.fmean(one.rank1 for one in results)
    domains = [value for key, value in metrics.items() if key.endswith("/mAP")]
    metrics |= {MEAN: statistics.fmean(domains), WORST: min(domains)}
    whole = [one for one in by_seed(found) if len(one) == len(domains)]
    if len(whole) > 1:
        metrics[DEVIATION] = statistics.stdev(statistics.fmean(one) for one in whole)
    return metrics
