"""What the pictures show, read from their pixels."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from muva.errors import SettingsError
from tracking.curves import cmc_plot, roc_plot
from tracking.domain_map import domain_plot
from tracking.pictures import (
    PART_COLOURS,
    RIGHT,
    WRONG,
    Found,
    Person,
    RankedQuery,
    attention_sheet,
    part_mask_sheet,
    ranked_gallery,
    search_sheet,
)

GREY = np.full((128, 64, 3), 128, np.uint8)
PARTS = ("head", "upper_body", "legs")


def count(picture: Image.Image, colour: str) -> int:
    """Pixels of exactly that colour."""
    return int((np.asarray(picture) == ImageColor.getrgb(colour)).all(-1).sum())


def person(pid: int, camid: int | None = 1) -> Person:
    return Person(image=GREY, pid=pid, camid=camid)


@pytest.mark.parametrize(
    ("pids", "right", "wrong"), [((7, 7), 2, 0), ((7, 8), 1, 1), ((8, 9), 0, 2)]
)
def test_borders_tell_right_from_wrong(pids: tuple[int, ...], right: int, wrong: int) -> None:
    one = count(ranked_gallery([RankedQuery(query=person(7), matches=[person(7)])]), RIGHT)
    sheet = ranked_gallery([RankedQuery(query=person(7), matches=[person(pid) for pid in pids])])
    assert one > 1000
    assert count(sheet, RIGHT) == right * one
    assert (count(sheet, WRONG) > 0) == (wrong > 0)


def test_images_of_any_shape_and_queries_of_any_length_make_a_gallery() -> None:
    wide = Person(image=Image.new("L", (300, 20), 40), pid=1, camid=None)
    rows = [
        RankedQuery(query=wide, matches=[], average_precision=float("nan")),
        RankedQuery(query=person(2), matches=[wide, person(2, None), person(123456)]),
    ]
    sheet = ranked_gallery(rows, title="A title that is longer than the sheet is wide" * 3)
    assert sheet.mode == "RGB"
    assert sheet.width > 3 * 104


def test_a_gallery_without_queries_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        ranked_gallery([])


def found(pid: int | None) -> Found:
    return Found(image=GREY, name="cam1/0007.jpg", similarity=0.5, pid=pid)


def test_a_search_marks_right_and_wrong_where_the_person_is_known() -> None:
    one = count(search_sheet(GREY, [found(7)], pid=7), RIGHT)
    known = search_sheet(GREY, [found(7), found(8), found(7), found(None)], pid=7)
    assert one > 1000
    assert count(known, RIGHT) == 2 * one
    assert count(known, WRONG) > 1000
    assert count(search_sheet(GREY, [found(7)] * 5, pid=7, per_row=2), RIGHT) == 5 * one
    unknown = search_sheet(GREY, [found(7), found(8)])
    assert count(unknown, RIGHT) == count(unknown, WRONG) == 0


def test_what_a_search_found_fills_rows() -> None:
    def sheet(images: int) -> Image.Image:
        return search_sheet(GREY, [found(None)] * images, per_row=4)

    assert sheet(4).height == sheet(1).height
    assert sheet(5).height > sheet(4).height + 208
    assert sheet(5).width == sheet(4).width > sheet(3).width
    assert search_sheet(GREY, []).height == sheet(1).height


def test_patches_are_painted_where_the_mask_has_them() -> None:
    masks = np.zeros((1, 3, 16, 8), bool)
    masks[0, 0, :2, 3:5] = True
    masks[0, 2, 8:, :] = True
    sheet = part_mask_sheet(
        [GREY], {"pseudo-label": masks.reshape(1, 3, -1)}, grid=(16, 8), parts=PARTS
    )
    pixels = np.asarray(sheet).astype(int)
    # The masked view: 104 x 208 at the right margin, each patch 13 x 13.
    top = int(np.flatnonzero((pixels[:, 40] == 128).all(-1))[0])
    view = pixels[top : top + 208, 32 + 108 : 32 + 108 + 104]
    centres = view[6::13, 6::13]
    tinted = (centres != 128).any(-1)
    expected = masks[0].any(0)
    np.testing.assert_array_equal(tinted, expected)
    legs = np.array(ImageColor.getrgb(PART_COLOURS[2]))
    assert np.abs(centres[12, 4] - (0.55 * legs + 0.45 * 128)).max() <= 2


def test_masks_of_another_grid_are_refused_with_both_shapes() -> None:
    with pytest.raises(
        ValueError, match=r"received the shape \(1, 3, 210\), expected \(1, 3, 128\)"
    ):
        part_mask_sheet(
            [GREY], {"predicted": np.zeros((1, 3, 210), bool)}, grid=(16, 8), parts=PARTS
        )


def test_people_fill_rows_and_each_kind_of_mask_has_a_column() -> None:
    masks = np.zeros((5, 3, 128), bool)

    def sheet(people: int, views: int) -> Image.Image:
        kinds = {f"kind {view}": masks[:people] for view in range(views)}
        return part_mask_sheet([GREY] * people, kinds, grid=(16, 8), parts=PARTS)

    assert sheet(4, 1).height == sheet(1, 1).height
    assert sheet(5, 1).height > sheet(4, 1).height + 208
    assert sheet(5, 1).width == sheet(4, 1).width
    assert sheet(4, 2).width == sheet(4, 1).width + 4 * 108


def test_cmc_curves_are_in_per_cent_and_named_with_their_numbers() -> None:
    figure = cmc_plot(
        {"MUVA": {1: 0.56, 5: 0.78}, "CLIP": {1: 0.34, 5: 0.55}}, mean_ap={"MUVA": 0.359}
    )
    (axes,) = figure.axes
    drawn = np.array([line.get_xydata() for line in axes.lines])
    np.testing.assert_allclose(drawn, [[[1, 56], [5, 78]], [[1, 34], [5, 55]]])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "MUVA:  rank-1 56.0,  mAP 35.9",
        "CLIP:  rank-1 34.0",
    ]
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getbuffer().nbytes > 10_000


def test_roc_curves_have_logarithmic_rates_and_name_the_equal_error_rate() -> None:
    figure = roc_plot({"MUVA": {1e-4: 0.2, 1e-2: 0.6, 1.0: 1.0}}, title="ROC", eer={"MUVA": 0.081})
    (axes,) = figure.axes
    drawn = np.array([line.get_xydata() for line in axes.lines])
    np.testing.assert_allclose(drawn, [[[1e-4, 20], [1e-2, 60], [1, 100]]])
    assert axes.get_xscale() == "log" and axes.get_xlim() == (1e-4, 1)
    legend = axes.get_legend()
    assert legend is not None and legend.get_texts()[0].get_text() == "MUVA:  EER 8.1"


def test_the_numbers_of_many_ranks_do_not_run_into_each_other() -> None:
    (axes,) = cmc_plot({"MUVA": {rank: rank / 50 for rank in range(1, 51)}}).axes
    assert list(axes.get_xticks()) == [1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    (axes,) = cmc_plot({"MUVA": {1: 0.5, 5: 0.7, 10: 0.8, 20: 0.9}}).axes
    assert list(axes.get_xticks()) == [1, 5, 10, 20]


def test_each_tokens_map_is_bright_where_it_attends() -> None:
    attention = np.zeros((1, 2, 128))
    attention[0, 0, :8] = 0.2  # the first row of patches
    attention[0, 1, -8:] = 0.01
    sheet = attention_sheet([GREY], attention, grid=(16, 8), tokens=["person", "legs"])
    pixels = np.asarray(sheet).astype(int)
    top = int(np.flatnonzero((pixels[:, 40] == 128).all(-1))[0])
    for view, bright in ((1, slice(0, 6)), (2, slice(202, 208))):
        left = 32 + view * 108
        shown = pixels[top : top + 208, left : left + 104].sum(axis=-1)
        dark = shown[60:140]
        assert shown[bright].min() > dark.max()


def test_attention_of_another_grid_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"received the shape \(1, 1, 9\), expected \(1, 1, 128\)"):
        attention_sheet([GREY], np.zeros((1, 1, 9)), grid=(16, 8), tokens=["person"])


def test_a_domain_map_has_a_panel_for_each_model_and_a_colour_for_each_domain() -> None:
    places = np.random.default_rng(0).random((6, 2))
    figure = domain_plot({"CLIP": (["a", "b"] * 3, places), "MUVA": (["a", "b"] * 3, places)})
    assert [axes.get_title() for axes in figure.axes] == ["CLIP", "MUVA"]
    for axes in figure.axes:
        drawn = [np.asarray(points.get_offsets()) for points in axes.collections]
        np.testing.assert_array_equal(drawn, [places[0::2], places[1::2]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_blurred_people_keep_their_colours_and_nothing_finer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fine = np.zeros((128, 64, 3), np.uint8)
    fine[::2] = 255
    shown, blurred = [], []
    for asked, kept in (("shown", shown), ("blurred", blurred)):
        monkeypatch.setenv("MUVA_PEOPLE", asked)
        sheet = ranked_gallery([RankedQuery(query=Person(image=fine, pid=1), matches=[])])
        kept.append(np.asarray(sheet).astype(int)[120:300, 45:95])
    assert np.abs(np.diff(shown[0], axis=0)).max() > 100
    assert np.abs(np.diff(blurred[0], axis=0)).max() < 5
    assert abs(blurred[0].mean() - 127) < 5


def test_an_unknown_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUVA_PEOPLE", "blured")
    with pytest.raises(SettingsError, match="expected one of shown, blurred, hidden"):
        ranked_gallery([RankedQuery(query=person(1), matches=[])])
