"""Geometric quality measures compared with loops over boxes, and the rules that change boxes."""

import math
from typing import get_args

import numpy as np
import pytest

from muva.config import PARTS, BoxRule
from muva.errors import SettingsError
from muva.grounding import quality
from muva.grounding.rules import RULES, apply_rules, check_rules

PERSON = np.array([[0.4, 0.05, 0.6, 0.2], [0.2, 0.2, 0.8, 0.55], [0.3, 0.55, 0.7, 0.95]])


def crowd(images: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """People of slightly different sizes and positions, with all parts found."""
    rng = np.random.default_rng(seed)
    boxes = PERSON[None] + rng.normal(0, 0.01, (images, 3, 4))
    return boxes.clip(0, 1).astype(np.float32), np.ones((images, 3), bool)


def box_iou(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return width * height / (sum(area) - width * height)


def test_overlap_of_parts_is_that_of_a_loop_over_boxes():
    rng = np.random.default_rng(1)
    corners = np.sort(rng.random((50, 3, 2, 2)), axis=2)
    boxes = corners.reshape(50, 3, 4)
    found = rng.random((50, 3)) < 0.8
    for (one, other), values in quality.pairwise_iou(boxes, found).items():
        for row, value in enumerate(values):
            if found[row, one] and found[row, other]:
                assert value == pytest.approx(box_iou(boxes[row, one], boxes[row, other]))
            else:
                assert math.isnan(value)


def test_the_part_on_the_wrong_side_of_the_upper_body_is_marked_and_no_other():
    boxes, found = crowd(6)
    boxes[1, 0] = [0.4, 0.8, 0.6, 0.95]  # a head among the feet
    boxes[2, 2] = boxes[2, 0]  # legs in the place of the head
    boxes[3, 1] = [0.2, 0.0, 0.8, 0.1]  # an upper body above the head
    boxes[4] = boxes[4, ::-1]
    boxes[5, 0], boxes[5, 2], found[5, 1] = PERSON[2], PERSON[0], False
    wrong = quality.disordered(boxes, found, PARTS)
    assert wrong.astype(int).tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [0, 0, 1],
        [1, 0, 0],
        [1, 1, 1],
        [1, 0, 1],
    ]
    assert not quality.disordered(boxes[:, :1], found[:, :1], ["shoes"]).any()


def test_confidence_is_high_for_typical_and_low_for_unusual_boxes():
    boxes, found = crowd()
    boxes[7, 0] = [0.0, 0.0, 1.0, 1.0]  # the whole image as a head
    boxes[8, 2] = [0.45, 0.9, 0.5, 0.95]  # legs as small as a shoe
    boxes[9, 1] = boxes[9, 2]  # one box for both
    found[10] = False
    trusted = quality.confidence(boxes, found, PARTS)
    assert np.isnan(trusted[10]).all()
    usual = np.delete(trusted, [7, 8, 9, 10], axis=0)
    assert np.median(usual) > 0.7
    assert max(trusted[7, 0], trusted[8, 2], trusted[9, 1]) < 0.2
    assert set(quality.lowest_confidence_first(trusted)[:3]) == {7, 8, 9}
    assert quality.lowest_confidence_first(trusted)[-1] == 10


def test_confidence_is_one_half_at_three_robust_deviations():
    boxes, found = crowd()
    middle = (boxes[:, 0, 0] + boxes[:, 0, 2]) / 2
    usual = np.median(middle)
    spread = max(1.4826 * np.median(np.abs(middle - usual)), quality.MIN_POSITION_SPREAD)
    height, width = np.median(boxes[:, 0, 3] - boxes[:, 0, 1]), 0.2
    x, y = usual + 3 * spread, np.median(boxes[:, 0, 1] + boxes[:, 0, 3]) / 2
    boxes[0, 0] = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    trusted = quality.confidence(boxes, found, PARTS)
    assert trusted[0, 0] == pytest.approx(0.5, abs=0.02)


def test_a_difference_of_one_patch_is_typical_for_boxes_around_patches():
    boxes, found = crowd(100)
    boxes[:] = PERSON
    boxes[:, 0] = [3 / 8, 1 / 16, 5 / 8, 3 / 16]
    boxes[:30, 0, 2] = 4 / 8
    trusted = quality.confidence(boxes, found, PARTS, (16, 8))
    assert trusted.min() > 0.4
    assert quality.confidence(boxes, found, PARTS)[0, 0] < 0.4


def test_detection_rates_by_camera():
    found = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    everywhere, by_camera = quality.detection_rates(found, np.array([2, 2, 1, 1]))
    assert everywhere.tolist() == [0.75, 0.5, 0.5]
    assert {camid: rates.tolist() for camid, rates in by_camera.items()} == {
        1: [0.5, 0.5, 0.5],
        2: [1.0, 0.5, 0.5],
    }
    assert quality.detection_rates(found, None)[1] == {}


def test_agreement_counts_parts_that_only_one_found():
    boxes, found = crowd(4)
    other, other_found = boxes.copy(), found.copy()
    other[0, 0] = [0.0, 0.9, 0.1, 1.0]
    found[1, 0] = False
    other_found[2:, 1] = False
    head, upper_body, legs = quality.agreement(found, other_found, quality.iou(boxes, other))
    assert (head.both, head.only_first, head.only_second) == (3, 0, 1)
    assert (head.median_iou, head.half) == (1.0, pytest.approx(2 / 3))
    assert (upper_body.both, upper_body.only_first) == (2, 2)
    assert legs.median_iou == 1.0
    empty = quality.agreement(found[:1], ~other_found[:1], np.ones((1, 3)))
    assert math.isnan(empty[0].median_iou) and empty[0].both == 0


@pytest.mark.parametrize(
    ("rule", "part", "box", "dropped"),
    [
        ("drop-whole-image", "legs", [0, 0, 1, 0.99], ["legs"]),
        ("drop-whole-image", "legs", [0, 0, 1, 0.9], []),
        ("drop-tiny", "head", [0.5, 0.1, 0.52, 0.15], ["head"]),
        ("drop-disordered", "head", [0.4, 0.8, 0.6, 0.95], ["head"]),
        ("drop-duplicates", "legs", [0.2, 0.2, 0.8, 0.56], ["upper_body", "legs"]),
    ],
)
def test_a_rule_drops_what_it_names_and_counts_it(rule, part, box, dropped):
    boxes = np.stack([PERSON, PERSON]).astype(np.float32)
    boxes[1, PARTS.index(part)] = box
    found = np.ones((2, 3), bool)
    after, left, counts = apply_rules(boxes, found, PARTS, [rule])
    assert np.array_equal(after, boxes) and left[0].all() and found.all()
    assert [PARTS[column] for column in np.flatnonzero(~left[1])] == dropped
    assert counts == {rule: {p: int(p in dropped) for p in PARTS}}


def test_overlapping_neighbours_end_half_way():
    boxes = PERSON[None].astype(np.float32).copy()
    boxes[0, 1, 3], boxes[0, 2, 1] = 0.6, 0.5
    after, found, counts = apply_rules(boxes, np.ones((1, 3), bool), PARTS, ["cut-overlap"])
    assert after[0, 1, 3] == after[0, 2, 1] == pytest.approx(0.55)
    assert found.all()
    assert counts["cut-overlap"] == {"head": 0, "upper_body": 1, "legs": 1}
    again, _, counts = apply_rules(after, found, PARTS, ["cut-overlap"])
    assert np.array_equal(again, after) and sum(counts["cut-overlap"].values()) == 0


def test_rules_apply_in_the_given_order_and_an_unknown_one_is_named():
    boxes = PERSON[None].astype(np.float32).copy()
    boxes[0, 0] = [0, 0, 1, 1]
    _, _, counts = apply_rules(
        boxes, np.ones((1, 3), bool), PARTS, ["drop-whole-image", "drop-disordered"]
    )
    assert counts["drop-whole-image"]["head"] == 1
    assert sum(counts["drop-disordered"].values()) == 0
    with pytest.raises(SettingsError, match="rule 'drop-tyni' is unknown; closest: drop-tiny"):
        check_rules(["drop-whole-image", "drop-tyni"])
    assert all(rule.__doc__ for rule in RULES.values())


def test_masks_overlap_as_their_patches_do():
    one, other = np.zeros((1, 2, 8), bool), np.zeros((1, 2, 8), bool)
    one[0, 0, :4] = other[0, 0, 2:5] = True
    assert quality.mask_iou(one, other).tolist() == [[2 / 5, 0.0]]


def test_the_settings_know_every_rule():
    assert get_args(BoxRule) == tuple(RULES)
