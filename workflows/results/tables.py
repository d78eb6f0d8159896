"""Results as tables for people, in per cent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from muva.config import (
    ExperimentConfig,
)
from muva.retrieval.scores import Interval
from workflows.steps.evaluate import TargetReport
from workflows.steps.pipeline import PipelineReport, variant_title

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    pass
if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    pass


def pipeline_table(config: ExperimentConfig, report: PipelineReport) -> Table:
    """Recognition on unseen domains, per cent, a line per method."""
    table = Table(title=f"Learned from {', '.join(config.sources)}")
    table.add_column("method")
    for target in report.targets:
        table.add_column(f"{target}\nmAP", justify="right")
        table.add_column("\nrank-1", justify="right")
    for which in report.models:
        cells = []
        for results in report.targets.values():
            found = results[which]
            cells += [f"{100 * found.mean_ap:.1f}", f"{100 * found.rank1:.1f}"]
        table.add_row(variant_title(which), *cells)
    return table


def evaluation_table(reports: Mapping[str, TargetReport], *, title: str) -> Table:
    """A line per target, in per cent."""
    table = Table(title=title)
    table.add_column("target")
    for column in ("mAP", "95 %", "rank-1", "95 %", "rank-5", "rank-10", "mINP"):
        table.add_column(column, justify="right")
    for target, found in reports.items():
        values = (found.mean_ap, *(found.curve[rank] for rank in (1, 5, 10)), found.mean_inp)
        mean_ap, rank1, *rest = (f"{100 * value:.1f}" for value in values)
        intervals = [_between(found.intervals.get(name)) for name in ("mean_ap", "rank1")]
        table.add_row(target, mean_ap, intervals[0], rank1, intervals[1], *rest)
    return table


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
