"""Answers as models actually give them, compared with boxes computed by hand."""

import pytest

from muva.grounding.answers import best_box, boxes_in_text, clip_box, largest_box
from muva.grounding.experts.http import grounding as http_grounding
from muva.grounding.experts.kosmos2 import cells_box
from muva.grounding.experts.kosmos2 import grounding as kosmos_grounding
from muva.grounding.experts.owlv2 import unpadded
from muva.grounding.experts.qwen_vl import grounding as qwen_grounding


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        ((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)),
        ((0.3, 0.4, 0.1, 0.2), (0.1, 0.2, 0.3, 0.4)),
        ((-0.2, 0.2, 0.3, 1.7), (0.0, 0.2, 0.3, 1.0)),
        ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)),
        ((1.2, 0.2, 1.9, 0.4), None),
        ((0.5, 0.2, 0.5, 0.4), None),
    ],
)
def test_corners_in_any_order_become_a_box_within_the_image(corners, box):
    assert clip_box(corners) == box


def test_the_largest_box_inside_the_image_or_the_one_with_the_best_score_is_used():
    boxes = [(0.0, 0.0, 0.2, 0.2), (0.9, 0.0, 3.0, 1.0), (0.1, 0.5, 0.5, 0.9), (2.0, 2.0, 3.0, 3.0)]
    assert largest_box(boxes) == (0.1, 0.5, 0.5, 0.9)
    assert best_box(boxes, [0.3, 0.7, 0.5, 0.9]) == ((0.9, 0.0, 1.0, 1.0), 0.7)
    assert largest_box([]) is None
    assert best_box([], []) is None


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ('[{"bbox_2d": [1, 2, 30, 40], "label": "the legs"}]', [(1, 2, 30, 40)]),
        ('```json\n[{"bbox_2d": [1, 2, 30, 40]}]\n```', [(1, 2, 30, 40)]),
        ('```json\n[{"bbox_2d": [1, 2, 30, 40]}, {"bbox_2d": [5, 6, 7', [(1, 2, 30, 40)]),
        ('[{"bbox_2d": [1, 2, 3, 4]},\n {"bbox_2d":[5,6,7,8]}]', [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("The head is at [[012,034,056,078]].", [(12, 34, 56, 78)]),
        ("(0.1, 0.25, 0.5, 1.0)", [(0.1, 0.25, 0.5, 1.0)]),
        ("[-3, 2, 30, 40]", [(-3, 2, 30, 40)]),
        ("[]", []),
        ("There is no person, at least 4 of 5 times.", []),
        ("[1, 2, 3]", []),
    ],
)
def test_boxes_are_found_in_model_output(text, boxes):
    assert boxes_in_text(text) == boxes


def test_qwen_answers_in_pixels_of_the_resized_image_or_in_thousandths():
    # A crop of 128 x 64 becomes 140 x 56 for Qwen2.5-VL: 10 rows and 4 columns of 14.
    answer = '[{"bbox_2d": [14, 35, 42, 70], "label": "the head"}]'
    assert qwen_grounding(answer, (56.0, 140.0)).box == (0.25, 0.25, 0.75, 0.5)
    assert qwen_grounding(answer, (1000.0, 1000.0)).box == (0.014, 0.035, 0.042, 0.07)
    nothing = qwen_grounding("I cannot see it.", (56.0, 140.0))
    assert (nothing.box, nothing.answer) == (None, "I cannot see it.")


def test_kosmos_boxes_use_cell_centres_and_whole_cells_if_corners_share_a_line():
    assert cells_box(0, 32 * 31 + 31) == (0.5 / 32, 0.5 / 32, 31.5 / 32, 31.5 / 32)
    # Columns 3 to 3, rows 2 to 9.
    assert cells_box(2 * 32 + 3, 9 * 32 + 3) == (3 / 32, 2.5 / 32, 4 / 32, 9.5 / 32)
    text = "<object><patch_index_0044><patch_index_0863></object> is <patch_index_0000>"
    # Cells (row 1, column 12) and (row 26, column 31).
    assert kosmos_grounding(text).box == (12.5 / 32, 1.5 / 32, 31.5 / 32, 26.5 / 32)
    assert kosmos_grounding(" is a man").box is None


def test_owlv2_pads_to_a_square_at_the_right_and_below():
    # 64 wide, 128 high: the square is 128, the image its left half.
    assert unpadded((0.25, 0.5, 0.5, 1.0), (64, 128)) == (0.0, 0.0, 1.0, 1.0)
    assert unpadded((0.25, 0.25, 0.25, 0.25), (64, 128)) == (0.25, 0.125, 0.75, 0.375)
    # 100 wide, 50 high: the image is the upper half.
    assert unpadded((0.5, 0.25, 1.0, 0.5), (100, 50)) == (0.0, 0.0, 1.0, 1.0)


def test_a_served_model_answers_in_the_configured_coordinates():
    answer, size = "[[016,032,048,064]]", (64, 128)
    assert http_grounding(answer, "thousandths", size).box == (0.016, 0.032, 0.048, 0.064)
    assert http_grounding(answer, "pixels", size).box == (0.25, 0.25, 0.75, 0.5)
    assert http_grounding("[0.1, 0.2, 0.3, 0.4]", "fractions", size).box == (0.1, 0.2, 0.3, 0.4)
