"""Scores as tables, in per cent."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from muva.config import ExperimentConfig
from muva.retrieval.results import Interval, Scores
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


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
