"""Curves of retrieval and verification, by method: CMC and ROC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from tracking.pictures import CURVE_COLOURS, FAINT, INK, MUTED

if TYPE_CHECKING:  # imported lazily: workers import this file without drawing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Place = TypeVar("_Place", int, float)

_MARKS = "osD^vP"
_MAX_TICKS = 15


def cmc_plot(
    curves: Mapping[str, Mapping[int, float]],
    *,
    title: str = "Cumulative matching characteristic",
    mean_ap: Mapping[str, float] | None = None,
) -> Figure:
    """CMC curves by method: rank -> fraction of queries with a correct match up to that rank."""
    labels = {}
    for name, cmc in curves.items():
        labels[name] = f"{name}:  rank-1 {100 * cmc[1]:.1f}" if 1 in cmc else name
        if mean_ap is not None and name in mean_ap:
            labels[name] += f",  mAP {100 * mean_ap[name]:.1f}"
    figure, axes = _plot(curves, labels=labels, title=title, marks=True)
    every_rank = sorted({rank for cmc in curves.values() for rank in cmc})
    axes.set_xlabel("rank", color=MUTED)
    axes.set_ylabel("queries matched, %", color=MUTED)
    axes.set_xticks(_rank_ticks(every_rank))
    axes.set_xlim(every_rank[0] - 0.3, every_rank[-1] + 0.3)
    return figure


def roc_plot(
    curves: Mapping[str, Mapping[float, float]], *, title: str, eer: Mapping[str, float]
) -> Figure:
    """ROC curves by method: false-accept rate -> true-accept rate; `eer` is in the legend."""
    labels = {name: f"{name}:  EER {100 * eer[name]:.1f}" for name in curves}
    figure, axes = _plot(curves, labels=labels, title=title, marks=False)
    axes.set_xscale("log")
    axes.set_xlabel("false-accept rate: pairs of different people that are accepted", color=MUTED)
    axes.set_ylabel("true-accept rate, %", color=MUTED)
    axes.set_xlim(min(rate for roc in curves.values() for rate in roc), 1)
    return figure


def _plot(
    curves: Mapping[str, Mapping[_Place, float]],
    *,
    labels: Mapping[str, str],
    title: str,
    marks: bool,
) -> tuple[Figure, Axes]:
    """A figure with fractions as per cent, and its axes."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        axes = figure.add_subplot()
        for number, (name, curve) in enumerate(curves.items()):
            places = sorted(curve)
            axes.plot(
                places,
                [100 * curve[place] for place in places],
                color=CURVE_COLOURS[number % len(CURVE_COLOURS)],
                marker=_MARKS[number % len(_MARKS)] if marks else "",
                markersize=6,
                linewidth=2.2,
                label=labels[name],
                clip_on=False,
                zorder=3 + len(curves) - number,
            )
        axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=14)
        axes.set_ylim(0, 100)
        axes.grid(axis="y", color=FAINT, zorder=0)
        axes.tick_params(colors=MUTED, length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        axes.legend(loc="lower right", frameon=False, fontsize=11)
    return figure, axes


def _rank_ticks(ranks: Sequence[int]) -> list[int]:
    """All ranks if their labels fit, otherwise the first and every fifth."""
    if len(ranks) <= _MAX_TICKS:
        return list(ranks)
    return [rank for rank in ranks if rank == ranks[0] or rank % 5 == 0]
