"""A table of fractions as a picture: every value in its place, every word within the picture."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest

from tracking.heat_map import heat_map

matplotlib.use("Agg")
VALUES = {("b", "x"): 0.25, ("a", "y"): 0.5, ("c", "x"): 0.75}


def test_values_stand_where_their_row_and_column_meet():
    figure = heat_map(VALUES, title="t", rows="r", columns="c", order=["a", "b", "y"])
    (axes,) = figure.axes
    (image,) = axes.images
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["y", "x"]
    array = image.get_array()
    assert array is not None
    table = np.ma.filled(array, np.nan)
    expected = [[50, np.nan], [np.nan, 25], [np.nan, 75]]
    assert np.array_equal(table, expected, equal_nan=True)
    assert sorted(text.get_text() for text in axes.texts) == ["25.0", "50.0", "75.0"]


@pytest.mark.parametrize("count", [1, 4, 30])
def test_no_word_is_cut_off(count):
    names = [f"cuhk03np-detected-{number}" for number in range(count)]
    values = {(row, column): 0.5 for row in names for column in names}
    figure = heat_map(values, title="mAP of MUVA", rows="learned from", columns="judged on")
    figure.savefig(io.BytesIO(), format="png")  # lays it out
    width, height = figure.get_size_inches() * figure.dpi
    (axes,) = figure.axes
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels()):
        box = text.get_window_extent()
        assert box.x1 <= width + 1 and box.y1 <= height + 1
        assert box.x0 >= -1 and box.y0 >= -1
