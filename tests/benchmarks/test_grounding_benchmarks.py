"""What the grounding benchmarks say of figures, and how they count."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import grounding_faults, grounding_quality, grounding_speed
from muva.config import PARTS, PHRASES
from muva.data.records import Box
from muva.grounding.expert import Grounding, GroundingImage
from muva.grounding.ground import ground_shard
from muva.grounding.quality import iou
from muva.synthetic import DOMAINS, render
from muva.synthetic.sensor import encode_jpeg

DOMAIN = "syn-boulevard"


class Prepared:
    """Answers image after image with the boxes that it was given."""

    def __init__(self, boxes: Sequence[Mapping[str, Box | None]]) -> None:
        self._boxes = iter(boxes)

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        answers = [next(self._boxes) for _ in images]
        return [[Grounding(box=boxes[part]) for part in phrases] for boxes in answers]


def true_boxes(people: int) -> list[dict[str, Box | None]]:
    return [
        dict(render(DOMAIN, pid=pid, camid=camid, index=0, height=128, width=64).boxes)
        for pid in range(grounding_quality.FIRST_PID, grounding_quality.FIRST_PID + people)
        for camid in range(1, DOMAINS[DOMAIN].cameras + 1)
    ]


def test_exact_answers_score_one_and_missing_ones_are_counted() -> None:
    boxes = true_boxes(2)
    figures = grounding_quality.evaluate_expert(Prepared(boxes), DOMAIN, 2)
    assert figures["iou"] == dict.fromkeys(PARTS, pytest.approx(1.0))
    assert figures["not_found"] == 0
    assert grounding_quality._misses(DOMAIN, {**figures, "images_per_s_and_core": 99}) == []
    without_legs = [{**of_image, "legs": None} for of_image in boxes]
    figures = grounding_quality.evaluate_expert(Prepared(without_legs), DOMAIN, 2)
    assert figures["iou"]["legs"] == 0.0
    there = sum(box is not None for of_image in boxes for box in of_image.values())
    legs = sum(of_image["legs"] is not None for of_image in boxes)
    assert figures["not_found"] == pytest.approx(legs / there)
    assert len(grounding_quality._misses(DOMAIN, {**figures, "images_per_s_and_core": 1})) == 3


def test_overlap_of_boxes_is_that_of_their_cells() -> None:
    one, other = (0.1, 0.2, 0.5, 0.8), (0.3, 0.1, 0.9, 0.6)
    cells = [(x / 100 + 0.005, y / 100 + 0.005) for x in range(100) for y in range(100)]

    def inside(box: Box) -> set[tuple[float, float]]:
        return {(x, y) for x, y in cells if box[0] < x < box[2] and box[1] < y < box[3]}

    expected = len(inside(one) & inside(other)) / len(inside(one) | inside(other))
    assert iou(np.array([one]), np.array([other]))[0] == pytest.approx(expected)
    assert iou(np.array([one]), np.array([(0.6, 0.0, 0.9, 0.1)]))[0] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("overhead", 0.06),
        ("two_over_one", 1.79),
        ("driver_mb_many", 301.0),
        ("recognition_s", 5.1),
    ],
)
def test_only_a_value_below_its_goal_is_missed(name: str, value: float) -> None:
    good = {
        "bare_images_per_s": 100.0,
        "one_images_per_s": 97.0,
        "overhead": 0.03,
        "two_over_one": 1.9,
        "two_over_one_least": 1.6,
        "two_over_one_most": 2.1,
        "driver_mb_few": 200.0,
        "driver_mb_many": 210.0,
        "recognition_s": 0.1,
        "summary_s": 9.0,
    }
    assert all(reached for *_, reached in grounding_speed.check_goals(good))
    reached = [reached for *_, reached in grounding_speed.check_goals({**good, name: value})]
    assert reached.count(False) == 1


def test_finished_shards_are_counted_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding_speed, "MANY_SHARDS", 20)
    recognised_s, summarised_s = grounding_speed.recognition_s(tmp_path)
    assert recognised_s > 0 and summarised_s > 0


def test_shards_computed_twice_are_counted_by_their_first_image(tmp_path: Path) -> None:
    images = [
        encode_jpeg(render(DOMAIN, pid=1, camid=1, index=0, height=64, width=32).image, quality=q)
        for q in (50, 60)
    ]
    people = grounding_speed.crowd(tmp_path, "people", 30, encoded=images, shard_images=6)
    assert len(people.shards) > 2
    notes = tmp_path / "notes"
    for shard in (*range(len(people.shards)), 1):
        ground_shard(people, shard, expert=grounding_faults._Noter(notes), name="noting")
    expected = [1] * len(people.shards)
    expected[1] = 2
    assert grounding_faults._begun(notes, people) == expected
    lines = notes.read_text().splitlines()
    assert {line.split()[0] for line in lines} == {str(os.getpid())}
    tables = [
        ground_shard(people, 0, expert=grounding_faults._Noter(notes), name="noting")[0]
        for _ in range(2)
    ]
    assert tables[0].equals(tables[1])
    assert len(set(tables[0]["answer"].to_pylist())) > 6 * len(PHRASES) / 2
