"""Plots of a search: objective by trial, importance of settings, parallel coordinates."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracking.pictures import CURVE_COLOURS, FAINT, INK, MUTED

if TYPE_CHECKING:  # imported lazily: workers import this package without drawing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEST, _TRIAL = CURVE_COLOURS[0], CURVE_COLOURS[1]
_AXIS_INCHES = 1.35
_LONGEST = 18
"""Longest label of a value on an axis, in letters."""


def history_plot(
    trials: Sequence[tuple[int, float, float]],
    *,
    stopped: Sequence[tuple[int, float]] = (),
    objective: str,
) -> Figure:
    """Plot the objective of complete trials: (number, value, best so far), as fractions.

    `stopped` has number and last value of the trials that were stopped early.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        axes = figure.add_subplot()
        numbers = [number for number, _, _ in trials]
        best = [100 * value for _, _, value in trials]
        axes.step(numbers, best, where="post", color=_BEST, linewidth=2.2, label="best so far")
        axes.scatter(
            numbers,
            [100 * value for _, value, _ in trials],
            color=_TRIAL,
            s=36,
            zorder=3,
            label="trial",
        )
        if stopped:
            axes.scatter(
                [number for number, _ in stopped],
                [100 * value for _, value in stopped],
                color=MUTED,
                marker="x",
                s=30,
                zorder=3,
                label="stopped early",
            )
        axes.annotate(
            f"{best[-1]:.1f}",
            (numbers[-1], best[-1]),
            xytext=(6, 4),
            textcoords="offset points",
            color=_BEST,
            fontweight="bold",
        )
        axes.set_title(
            f"{_capital(objective)} by trial", loc="left", fontsize=13, fontweight="bold"
        )
        axes.set_xlabel("trial", color=MUTED)
        axes.set_ylabel(f"{objective}, %", color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.06, y=0.12)
        axes.grid(axis="y", color=FAINT, zorder=0)
        axes.legend(loc="lower right", frameon=False, fontsize=10)
        _plain(axes)
    return figure


def importance_plot(shares: Mapping[str, float], *, objective: str) -> Figure:
    """Plot setting -> share of the objective's variance, largest at the top."""
    import matplotlib
    from matplotlib.figure import Figure

    names = sorted(shares, key=lambda name: shares[name])
    figure = Figure(figsize=(8, 1.3 + 0.34 * len(names)), layout="constrained")
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        axes = figure.add_subplot()
        values = [100 * shares[name] for name in names]
        axes.barh(names, values, color=_TRIAL, height=0.62, zorder=3)
        for row, value in enumerate(values):
            axes.text(value + 0.8, row, f"{value:.0f}", va="center", color=INK, fontsize=10)
        axes.set_xlim(0, max(values) * 1.12 + 1)
        axes.set_title(
            f"Importance of settings, % of the variance of {objective}",
            loc="left",
            fontsize=13,
            fontweight="bold",
            pad=12,
        )
        axes.grid(axis="x", color=FAINT, zorder=0)
        _plain(axes)
        axes.tick_params(axis="y", colors=INK)
    return figure


def parallel_coordinates(
    trials: Sequence[tuple[Mapping[str, Any], float]],
    *,
    objective: str,
    logarithmic: Collection[str] = (),
) -> Figure:
    """Parallel coordinates: an axis per setting and a line per trial, coloured by its objective.

    Objectives are fractions. Settings with the same value in all trials are omitted; the line of
    the best trial is thick.
    """
    import matplotlib
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    names = [
        name for name in trials[0][0] if len({json.dumps(point[name]) for point, _ in trials}) > 1
    ]
    scales = [_Scale([p[name] for p, _ in trials], log=name in logarithmic) for name in names]
    reached = [100 * value for _, value in trials]
    positions = [[s.position(p[n]) for s, n in zip(scales, names, strict=True)] for p, _ in trials]
    width = max(8.0, 2.2 + _AXIS_INCHES * (len(names) + 1))
    figure = Figure(figsize=(width, 5.4), layout="constrained")
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        axes = figure.add_subplot()
        low, high = min(reached), max(reached)
        colours = ScalarMappable(Normalize(low, high if high > low else low + 1), cmap="viridis_r")
        last = len(names)
        span = high - low or 1.0
        order = np.argsort(reached)
        for trial in order:
            line = [*positions[trial], (reached[trial] - low) / span]
            best = trial == order[-1]
            # Slight shifts separate lines through equal values.
            shift = 0.0 if best else 0.018 * math.sin(2.4 * float(trial))
            axes.plot(
                range(last + 1),
                [value + shift for value in line[:-1]] + line[-1:],
                color=colours.to_rgba(reached[trial]),
                linewidth=3.2 if best else 1.3,
                alpha=1.0 if best else 0.65,
                zorder=4 if best else 3,
                solid_capstyle="round",
            )
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.2}
        for x, scale in enumerate(scales):
            axes.axvline(x, color=MUTED, linewidth=0.8, zorder=2)
            for position, text in scale.ticks():
                axes.text(x + 0.06, position, text, fontsize=9, va="center", zorder=6, bbox=box)
        axes.axvline(last, color=INK, linewidth=1.2, zorder=2)
        for value in np.linspace(low, high, 4) if high > low else [low]:
            position = (value - low) / span
            axes.text(last + 0.06, position, f"{value:.1f}", fontsize=9, va="center", zorder=6)
        titles = [f"{n.partition('.')[0]}\n{n.partition('.')[2].replace('_', ' ')}" for n in names]
        axes.set_xticks(
            range(last + 1), [*titles, f"{objective}\n%"], fontsize=9, rotation=28, ha="right"
        )
        axes.set_xlim(-0.1, last + 0.45)
        axes.set_ylim(-0.06, 1.06)
        axes.set_yticks([])
        axes.set_title(
            "Trials by setting, best trial in bold",
            loc="left",
            fontsize=13,
            fontweight="bold",
            pad=14,
        )
        _plain(axes)
        axes.tick_params(axis="x", colors=INK)
        axes.spines["bottom"].set_visible(False)
    return figure


class _Scale:
    """Maps a setting's values to positions on its axis, from 0 to 1."""

    def __init__(self, values: Sequence[Any], *, log: bool) -> None:
        self._log = log
        numbers = [v for v in values if isinstance(v, float | int) and not isinstance(v, bool)]
        self._continuous = len(numbers) == len(values) and len(set(numbers)) > 5
        if self._continuous:
            ends = self._scaled(min(numbers)), self._scaled(max(numbers))
            self._low, self._span = ends[0], (ends[1] - ends[0]) or 1.0
            return
        if len(numbers) == len(values):
            self._known = [json.dumps(value) for value in sorted(set(numbers))]
        else:
            self._known = sorted({json.dumps(value) for value in values})

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log and value > 0 else float(value)

    def position(self, value: Any) -> float:
        """The position of a value, from 0 at the bottom to 1."""
        if self._continuous:
            return (self._scaled(value) - self._low) / self._span
        return (self._known.index(json.dumps(value)) + 0.5) / len(self._known)

    def ticks(self) -> list[tuple[float, str]]:
        """Positions and labels of the axis."""
        if not self._continuous:
            return [
                ((number + 0.5) / len(self._known), _shown(json.loads(text)))
                for number, text in enumerate(self._known)
            ]
        ticks = []
        for share in (0.0, 0.5, 1.0):
            value = self._low + share * self._span
            ticks.append((share, f"{10**value if self._log else value:.3g}"))
        return ticks


def _shown(value: Any) -> str:
    lines = [str(part).replace("_", " ") for part in value] if isinstance(value, list) else [value]
    shown = [
        text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…" for text in map(str, lines)
    ]
    return "\n".join(shown) or "none"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(axes: Axes) -> None:
    axes.tick_params(colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
