from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tracking.tuning_pictures import history_plot, importance_plot, parallel_coordinates

TRIALS = [
    ({"model.gating": "online", "stage2.lr": 1e-5, "model.parts": ["head"]}, 0.30),
    ({"model.gating": "offline", "stage2.lr": 1e-4, "model.parts": ["head"]}, 0.45),
    ({"model.gating": "online", "stage2.lr": 1e-3, "model.parts": ["head"]}, 0.35),
]


def drawn(figure) -> np.ndarray:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=80, facecolor="white")
    return np.asarray(Image.open(stream).convert("L"))


def texts(figure) -> list[str]:
    axes = figure.axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
    return [text.get_text() for text in labels]


def test_each_trial_is_a_line_over_the_settings_that_vary() -> None:
    figure = parallel_coordinates(TRIALS, objective="held-out mAP", logarithmic={"stage2.lr"})
    axes = figure.axes[0]
    shown = texts(figure)
    assert "model\ngating" in shown
    assert "model\nparts" not in shown, "it has one value"
    lines = [line for line in axes.get_lines() if np.size(line.get_xdata()) == 3]
    assert len(lines) == len(TRIALS)
    thick = max(lines, key=lambda line: line.get_linewidth())
    assert np.asarray(thick.get_ydata())[-1] == 1, "the best one ends on top"
    assert {"online", "offline"} <= set(shown)
    assert drawn(figure).min() < 100


def test_the_history_shows_the_best_so_far_and_stopped_trials() -> None:
    figure = history_plot(
        [(0, 0.3, 0.3), (1, 0.45, 0.45), (3, 0.4, 0.45)],
        stopped=[(2, 0.2)],
        objective="held-out mAP",
    )
    (best,) = figure.axes[0].get_lines()
    assert list(np.asarray(best.get_ydata())) == [30, 45, 45]
    assert "45.0" in texts(figure)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "best so far",
        "trial",
        "stopped early",
    ]
    assert drawn(figure).min() < 100


def test_the_most_important_setting_is_on_top() -> None:
    figure = importance_plot({"a.x": 0.1, "a.y": 0.7, "a.z": 0.2}, objective="held-out mAP")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["a.x", "a.z", "a.y"]
    assert "70" in texts(figure)
    assert drawn(figure).min() < 100
