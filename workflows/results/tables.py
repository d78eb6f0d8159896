"""Scores as tables, in per cent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.table import Table

from muva.config import ExperimentConfig
from muva.data.benchmarks.listing import some
from muva.retrieval.calibration import Calibration
from muva.retrieval.results import Interval, Scores, Verification, rate_name
from workflows.progress import say
from workflows.steps.pipeline import PipelineReport, variant_title


def pipeline_table(config: ExperimentConfig, report: PipelineReport) -> Table:
    """The scores on unseen domains, one row per method."""
    table = Table(title=f"Trained on {', '.join(config.sources)}")
    table.add_column("method")
    for target in report.targets:
        table.add_column(f"{target}\nmAP", justify="right")
        table.add_column("\nrank-1", justify="right")
    for variant in report.models:
        cells = []
        for results in report.targets.values():
            scores = results[variant]
            cells += [f"{100 * scores.mean_ap:.1f}", f"{100 * scores.rank1:.1f}"]
        table.add_row(variant_title(variant), *cells)
    table.add_section()
    any_variant = [next(iter(results.values())) for results in report.targets.values()]
    table.add_row("valid queries", *(c for one in any_variant for c in (one.valid_of_all, "")))
    return table


def warn_of_few_queries(target: str, scores: Scores) -> None:
    """Say so if too few queries of a target are valid for its scores to mean much."""
    if scores.too_few_queries is not None:
        say(f"{target}: {scores.too_few_queries}.")


def evaluation_table(scores_of: Mapping[str, Scores], *, title: str) -> Table:
    """The scores with confidence intervals, one row per target."""
    table = Table(title=title)
    table.add_column("target")
    columns = ("mAP", "95 %", "rank-1", "95 %", "rank-5", "rank-10", "mINP", "valid queries")
    for column in columns:
        table.add_column(column, justify="right")
    for target, scores in scores_of.items():
        values = (scores.mean_ap, *(scores.curve[rank] for rank in (1, 5, 10)), scores.mean_inp)
        mean_ap, rank1, *rest = (f"{100 * value:.1f}" for value in values)
        intervals = [_range(scores.intervals.get(name)) for name in ("mean_ap", "rank1")]
        row = (mean_ap, intervals[0], rank1, intervals[1], *rest, scores.valid_of_all)
        table.add_row(target, *row)
    return table


def verification_table(scores_of: Mapping[str, Scores]) -> Table | None:
    """Same person or not: one row per target; None if there is nothing to show."""
    verified = {t: one.verification for t, one in scores_of.items() if one.verification is not None}
    if not verified:
        return None
    table = Table(title="Same person or not: all pairs of a query and a gallery image")
    table.add_column("target")
    rates = sorted({rate for one in verified.values() for rate in one.tar}, reverse=True)
    alarms = sorted({r for one in verified.values() for r in _detected(one)}, reverse=True)
    columns = ["EER", "95 %", *(f"TAR at FAR\n{rate_name(rate)}" for rate in rates)]
    columns += [f"DIR at FAR\n{rate_name(rate)}" for rate in alarms]
    for column in columns:
        table.add_column(column, justify="right")
    for target, one in verified.items():
        row = [f"{100 * one.eer:.1f}", _range(one.intervals.get("eer"))]
        row += [_per_cent(one.tar.get(rate)) for rate in rates]
        row += [_per_cent(_detected(one).get(rate)) for rate in alarms]
        table.add_row(target, *row)
    return table


def delivered_table(scores_of: Mapping[str, Scores]) -> Table | None:
    """What the model's thresholds promised and what they deliver; None if it is not calibrated."""
    verified = [(t, one.verification) for t, one in scores_of.items() if one.verification]
    rows = [(t, rate, d) for t, one in verified for rate, d in one.delivered.items()]
    if not rows:
        return None
    table = Table(title="The model's thresholds: what they promised, and what they deliver here")
    table.add_column("target")
    for column in ("threshold", "FAR promised", "FAR", "TAR"):
        table.add_column(column, justify="right")
    for target, rate, one in rows:
        table.add_row(
            target,
            f"{one.threshold:.3f}",
            *(f"{100 * value:.3g} %" for value in (rate, one.far)),
            f"{100 * one.tar:.1f} %",
        )
    return table


def calibration_table(calibration: Calibration) -> Table:
    """Thresholds, with the probability that a pair at a threshold shows the same person."""
    entropy = ", ".join(f"{name} {value:.3f}" for name, value in calibration.cross_entropy.items())
    table = Table(
        title=f"Calibrated on {calibration.people} people of {some(calibration.datasets)}; "
        f"{calibration.method} (bits of cross-entropy: {entropy})"
    )
    for column in ("FAR", "threshold", "TAR", "probability at the threshold"):
        table.add_column(column, justify="right")
    for rate, threshold in calibration.thresholds.items():
        [probability] = calibration.probability(np.array([threshold]))
        table.add_row(
            f"{100 * rate:.3g} %",
            f"{threshold:.3f}",
            f"{100 * calibration.accepted[rate]:.1f} %",
            f"{100 * probability:.1f} %",
        )
    return table


def _detected(verification: Verification) -> Mapping[float, float]:
    identification = verification.identification
    return {} if identification is None else identification.detected


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
