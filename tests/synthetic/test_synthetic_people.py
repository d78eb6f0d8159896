"""Synthetic data sets have the splits of a benchmark, and their files are the rendered images."""

from collections import Counter

import numpy as np
import pytest

from muva.errors import MuvaError
from muva.synthetic import DOMAINS, render, synthetic_records
from muva.synthetic import test_records as records_of_test_people
from muva.synthetic.sensor import decode_jpeg

DOMAIN = "syn-boulevard"
HEIGHT, WIDTH = 64, 32
CAMERAS = DOMAINS[DOMAIN].cameras


@pytest.fixture(scope="module")
def records():
    return list(
        synthetic_records(
            DOMAIN, train_people=2, test_people=3, images_per_camera=3, height=HEIGHT, width=WIDTH
        )
    )


def test_every_person_is_seen_by_every_camera(records):
    assert len(records) == 5 * CAMERAS * 3
    seen = Counter((record.pid, record.camid) for record in records)
    assert set(seen.values()) == {3} and len(seen) == 5 * CAMERAS


def test_no_person_is_in_both_train_and_test(records):
    pids = {
        split: {record.pid for record in records if record.split == split}
        for split in ("train", "query", "gallery")
    }
    assert pids["train"] == {1, 2}
    assert pids["query"] == pids["gallery"] == {3, 4, 5}


def test_each_camera_has_one_query_for_each_test_person(records):
    queries = Counter((r.pid, r.camid) for r in records if r.split == "query")
    assert len(queries) == 3 * CAMERAS and set(queries.values()) == {1}


def test_image_ids_are_unique_and_name_pid_camera_and_index(records):
    assert len({record.image_id for record in records}) == len(records)
    assert records[0].image_id == "train/0001_c1_00.jpg"
    assert records[-1].image_id == f"gallery/0005_c{CAMERAS}_02.jpg"


def test_a_record_holds_the_rendered_image_its_boxes_and_caption(records):
    record = records[7]
    shot = render(DOMAIN, pid=record.pid, camid=record.camid, index=1, height=HEIGHT, width=WIDTH)
    assert record.image_id.endswith("_01.jpg")
    difference = decode_jpeg(record.source).astype(int) - shot.image
    assert np.abs(difference).mean() < 4
    assert record.boxes == shot.boxes
    assert record.caption == shot.caption


def test_test_people_rendered_alone_give_the_same_records(records):
    alone = list(
        records_of_test_people(DOMAIN, pids=[4], images_per_camera=3, height=HEIGHT, width=WIDTH)
    )
    assert alone == [record for record in records if record.pid == 4]


def test_progress_counts_to_the_end():
    calls = []
    list(
        synthetic_records(
            DOMAIN,
            train_people=1,
            test_people=0,
            images_per_camera=1,
            progress=lambda done, total: calls.append((done, total)),
            height=HEIGHT,
            width=WIDTH,
        )
    )
    assert calls == [(done, CAMERAS) for done in range(1, CAMERAS + 1)]


@pytest.mark.parametrize(
    ("people", "images", "complaint"),
    [((0, 0), 2, "people"), ((1, 1), 1, "at least two images"), ((-1, 3), 2, "people")],
)
def test_a_data_set_that_cannot_be_split_is_rejected(people, images, complaint):
    with pytest.raises(MuvaError, match=complaint):
        next(
            synthetic_records(
                DOMAIN,
                train_people=people[0],
                test_people=people[1],
                images_per_camera=images,
                height=HEIGHT,
                width=WIDTH,
            )
        )
