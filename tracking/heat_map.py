"""Heat maps of fractions: sources by targets, or cameras by cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tracking.pictures import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL_INCHES = 0.75
_LEFT_INCHES, _TOP_INCHES = 3.4, 2.6
_SHORT = 3
"""Longest name, in letters, that fits below a cell without rotation."""
_MAX_NUMBERED = 16
"""Largest number of columns for which cells are wide enough to show their value."""


def heat_map(
    values: Mapping[tuple[str, str], float],
    *,
    title: str,
    rows: str,
    columns: str,
    order: Sequence[str] = (),
) -> Figure:
    """Draw (row, column) -> fraction, in per cent; `rows` and `columns` label the axes.

    Rows and columns are in the given `order`, followed by the others in order of appearance. Cells
    without a value stay empty.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    down, across = (
        [
            *(name for name in order if name in names_on_axis),
            *(name for name in names_on_axis if name not in order),
        ]
        for names_on_axis in (dict.fromkeys(key[axis] for key in values) for axis in (0, 1))
    )
    table = np.full((len(down), len(across)), np.nan)
    for (row, column), value in values.items():
        table[down.index(row), across.index(column)] = 100 * value
    cell = _CELL_INCHES if len(across) <= _MAX_NUMBERED else _CELL_INCHES / 2
    size = (_LEFT_INCHES + cell * len(across), _TOP_INCHES + cell * len(down))
    figure = Figure(figsize=size, layout="constrained")
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        axes = figure.add_subplot()
        axes.imshow(table, cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
        if len(across) <= _MAX_NUMBERED:
            for (row, column), value in np.ndenumerate(table):
                if not np.isnan(value):
                    colour = "white" if value > 55 else INK
                    text = f"{value:.1f}"
                    axes.text(column, row, text, ha="center", va="center", color=colour)
        turned = {"rotation": 35, "ha": "right"} if max(map(len, across)) > _SHORT else {}
        axes.set_xticks(range(len(across)), across, **turned)
        axes.set_yticks(range(len(down)), down)
        axes.set_xlabel(columns, color=MUTED)
        axes.set_ylabel(rows, color=MUTED)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=10)
        axes.tick_params(colors=INK, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure
