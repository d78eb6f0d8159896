"""A scatter plot of the images of several domains, with one panel for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from tracking.pictures import FAINT, INK, MUTED

_COLOURS = ("#2f7ed8", "#c2379b", "#e69f00", "#009e73", "#8792a2", "#d55e00", "#56b4e9", "#000000")
_MARKERS = "os^DvPX*"


def domain_plot(
    panels: Mapping[str, tuple[Sequence[str], np.ndarray]], *, title: str = "Domains by t-SNE"
) -> Figure:
    """Plot panels: name -> the domain of each image, and coordinates (images, 2) from 0 to 1."""
    figure = Figure(figsize=(4.6 * len(panels), 4.9), layout="constrained")
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        for number, (name, (domains, places)) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), number + 1)
            names = np.asarray(domains)
            for place, domain in enumerate(dict.fromkeys(domains)):
                here = places[names == domain]
                axes.scatter(
                    here[:, 0],
                    here[:, 1],
                    s=18,
                    alpha=0.75,
                    linewidths=0,
                    color=_COLOURS[place % len(_COLOURS)],
                    marker=_MARKERS[place % len(_MARKERS)],
                    label=domain,
                )
            axes.set_title(name, color=MUTED, fontsize=11)
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_color(FAINT)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(title, fontweight="bold", x=0.02, ha="left")
    return figure
