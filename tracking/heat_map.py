"""A table of fractions as a picture: sources against targets, cameras against cameras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tracking.pictures import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL_INCHES = 0.75
_LEFT_INCHES, _TOP_INCHES = 2.6, 1.9
_MOST_NUMBERED = 16
"""Columns up to which each cell's number has room."""


def heat_map(
    values: Mapping[tuple[str, str], float], *, title: str, rows: str, columns: str
) -> Figure:
    """(row, column) -> fraction, in per cent; `rows` and `columns` say what these are.

    Rows and columns stand in the order in which they come first; what has no value stays empty.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    down = list(dict.fromkeys(row for row, _ in values))
    across = list(dict.fromkeys(column for _, column in values))
    table = np.full((len(down), len(across)), np.nan)
    for (row, column), value in values.items():
        table[down.index(row), across.index(column)] = 100 * value
    cell = _CELL_INCHES if len(across) <= _MOST_NUMBERED else _CELL_INCHES / 2
    size = (_LEFT_INCHES + cell * len(across), _TOP_INCHES + cell * len(down))
    figure = Figure(figsize=size, layout="constrained")
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        axes = figure.add_subplot()
        axes.imshow(table, cmap="YlGnBu", vmin=0, vmax=100, aspect="equal")
        if len(across) <= _MOST_NUMBERED:
            for (row, column), value in np.ndenumerate(table):
                if not np.isnan(value):
                    colour = "white" if value > 55 else INK
                    text = f"{value:.1f}"
                    axes.text(column, row, text, ha="center", va="center", color=colour)
        axes.set_xticks(range(len(across)), across, rotation=35, ha="right")
        axes.set_yticks(range(len(down)), down)
        axes.set_xlabel(columns, color=MUTED)
        axes.set_ylabel(rows, color=MUTED)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=10)
        axes.tick_params(colors=INK, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure
