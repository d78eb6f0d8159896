"""The report of a data set agrees with its content."""

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from muva.data.artifacts import Artifact
from muva.data.checks import Range, check_dataset, sample_sheet
from muva.data.records import Record
from muva.data.shards import Dataset, open_dataset, write_shards
from muva.data.store import open_store


def flat(colour, size=(8, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def record(image_id, split, pid, camid, source) -> Record:
    return Record(
        domain="town", image_id=image_id, split=split, pid=pid, camid=camid, source=source
    )


def stored(root, records) -> Dataset:
    artifact = Artifact(open_store(root), "datasets", "town", "0" * 16)
    summary = asdict(write_shards(records, artifact=artifact))
    artifact.commit(format_version=1, config={}, inputs={}, summary=summary)
    return open_dataset(artifact)


@pytest.fixture
def town(tmp_path) -> Dataset:
    return stored(
        tmp_path,
        [
            record("t/1", "train", 1, 1, flat((1, 0, 0))),
            record("t/2", "train", 1, 2, flat((2, 0, 0))),
            record("t/3", "train", 2, 2, flat((3, 0, 0))),
            record("q/1", "query", 5, 1, flat((4, 0, 0))),
            record("q/2", "query", 6, 3, flat((7, 0, 0))),
            record("g/1", "gallery", 5, 3, flat((5, 0, 0), size=(20, 60))),
            record("g/2", "gallery", 6, 3, flat((1, 0, 0))),
            record("g/3", "gallery", -1, 3, flat((6, 0, 0))),
            record("g/4", "gallery", 6, 3, b"no image"),
        ],
    )


def test_a_report_counts_images_identities_and_anomalies(town):
    report = check_dataset(town)
    assert (report.images, report.name) == (8, "town")
    assert report.width == Range(smallest=8, median=8.0, largest=20)
    assert report.height == Range(smallest=16, median=16.0, largest=60)
    train, gallery = report.splits["train"], report.splits["gallery"]
    assert (train.images, train.identities, train.cameras, train.junk) == (3, 2, 2, 0)
    assert train.images_per_identity == Range(smallest=1, median=1.5, largest=2)
    assert train.identities_with_one_image == 1
    assert (gallery.images, gallery.identities, gallery.cameras, gallery.junk) == (3, 2, 1, 1)
    assert report.queries_without_match == 1
    assert report.duplicates == [["gallery/6: g/2", "train/1: t/1"]]
    assert [entry["image_id"] for entry in report.quarantined] == ["g/4"]
    assert report.warnings == [
        "1 images could not be read and were quarantined",
        "1 groups of images have the same content",
        "1 of 2 queries have no match in another camera and are left out of the metrics",
        "1 training identities have only one image",
    ]
    json.dumps(asdict(report))


def test_unknown_cameras_are_reported(tmp_path):
    records = [
        record(f"{i}", "query" if i < 3 else "gallery", i % 3, None, flat((i, 0, 0)))
        for i in range(5)
    ]
    report = check_dataset(stored(tmp_path, records))
    assert report.splits["query"].cameras == 0
    assert report.queries_without_match == 1
    assert "cameras are unknown" in report.warnings[0]


def test_a_query_may_match_any_image_if_the_camera_of_one_is_unknown(tmp_path):
    records = [
        record("q/1", "query", 1, 1, flat((1, 0, 0))),
        record("q/2", "query", 2, 1, flat((2, 0, 0))),
        record("g/1", "gallery", 1, 1, flat((3, 0, 0))),
        record("g/2", "gallery", 2, None, flat((4, 0, 0))),
    ]
    report = check_dataset(stored(tmp_path, records))
    assert report.queries_without_match == 0, "an evaluation ignores cameras"
    assert report.warnings[0].startswith("some cameras are unknown")


def test_a_sample_sheet_shows_images_of_each_person(town):
    sheet = sample_sheet(town, people=10, images_each=3, height=32, width=16)
    shown = {colour for _, colour in sheet.getcolors(maxcolors=10_000) or []}
    stored_colours = {(value, 0, 0) for value in range(1, 8)}
    assert stored_colours <= shown
    assert sheet == sample_sheet(town, people=10, images_each=3, height=32, width=16)
    small = sample_sheet(town, people=2, images_each=1, height=32, width=16)
    assert small.height < sheet.height and np.asarray(small).min() < 255
