"""Shards: sorted, reproducible, checked; unreadable images quarantined, contradictions rejected."""

import hashlib
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from muva.data.artifacts import Artifact
from muva.data.records import Record
from muva.data.shards import StoredImages, open_dataset, write_shards
from muva.data.store import open_store
from muva.errors import MuvaError


def picture(seed: int, *, size=(16, 32), form="JPEG", **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def record(image_id="train/a.jpg", **changes) -> Record:
    fields = {"domain": "town", "split": "train", "pid": 1, "camid": 1}
    fields |= {"source": picture(zlib.crc32(image_id.encode())), "image_id": image_id}
    return Record(**(fields | changes))


def people(images=40) -> list[Record]:
    train = [
        record(f"train/{i}.jpg", pid=i % 5, camid=1 + i % 3, caption=f"person {i}")
        for i in range(images // 2)
    ]
    test = [
        record(f"{split}/{i}.jpg", split=split, pid=10 + i % 5, camid=1 + i % 3)
        for i in range(images // 4)
        for split in ("query", "gallery")
    ]
    return train + test


@pytest.fixture
def artifact(tmp_path):
    return Artifact(open_store(tmp_path), "datasets", "town", "0" * 16)


def stored(artifact, records, **options):
    from dataclasses import asdict

    summary = write_shards(records, artifact=artifact, **options)
    artifact.commit(format_version=1, config={}, inputs={}, summary=asdict(summary))
    return open_dataset(artifact)


def test_rows_are_read_back_sorted_with_all_annotations(artifact):
    records = people()
    dataset = stored(artifact, records[::-1], shard_bytes=5000)
    assert len(dataset.shards) > 3
    rows = dataset.rows().to_pylist()
    order = {"train": 0, "query": 1, "gallery": 2}
    expected = sorted(records, key=lambda r: (order[r.split], r.pid, r.image_id))
    assert [r["image_id"] for r in rows] == [r.image_id for r in expected]
    assert [r["row"] for r in rows] == list(range(40))
    for row, source in zip(rows, expected, strict=True):
        assert (row["split"], row["pid"], row["camid"]) == (source.split, source.pid, source.camid)
        assert row["sha256"] == hashlib.sha256(dataset.read_images([row["row"]])[0]).hexdigest()
        assert (row["width"], row["height"], row["caption"]) == (16, 32, source.caption)
        assert row["has_boxes"] is False
    assert dataset.summary.splits == {
        "train": {"images": 20, "identities": 5, "cameras": 3},
        "query": {"images": 10, "identities": 5, "cameras": 3},
        "gallery": {"images": 10, "identities": 5, "cameras": 3},
    }


def test_images_are_read_back_unchanged_in_any_order(artifact):
    records = people(400)
    dataset = stored(artifact, records, shard_bytes=100_000)
    source = {r.image_id: r.source for r in records}
    ids = dataset.rows(["image_id"])["image_id"].to_pylist()
    rows = np.random.default_rng(0).integers(0, 400, 100)
    assert dataset.read_images(rows) == [source[ids[row]] for row in rows]
    assert dataset.read_images([]) == []
    with pytest.raises(IndexError, match="rows 0 to 399"):
        dataset.read_images([400])
    images = StoredImages(dataset, rows)
    assert (len(images), images[3], list(images)) == (100, source[ids[rows[3]]], list(images[:]))
    assert images[10:20] == dataset.read_images(rows[10:20])


def test_a_shard_is_read_by_split(artifact):
    dataset = stored(artifact, people(), shard_bytes=5000)
    queries = [dataset.read_shard(i, splits=["query"]) for i in range(len(dataset.shards))]
    assert sum(map(len, queries)) == 10
    rows = [row for table in queries for row in table["row"].to_pylist()]
    images = [image for table in queries for image in table["image"].to_pylist()]
    assert dataset.read_images(rows) == images


def test_the_same_records_give_the_same_bytes_whatever_their_order(tmp_path):
    contents = []
    for number, records in enumerate((people(), people()[::-1])):
        store = open_store(tmp_path / str(number))
        artifact = Artifact(store, "datasets", "town", "0" * 16)
        summary = write_shards(records, artifact=artifact, shard_bytes=9000)
        contents.append((summary, {key: store.read(key) for key in store.list()}))
    assert contents[0] == contents[1]


def test_the_fingerprint_is_of_the_content(tmp_path):
    def fingerprint(records):
        artifact = Artifact(open_store(tmp_path), "datasets", "town", "0" * 16)
        return write_shards(records, artifact=artifact).fingerprint

    records = people()
    same = fingerprint(records)
    assert fingerprint(people()) == same
    changed = [record("train/0.jpg", pid=0, source=picture(77)), *records[1:]]
    assert fingerprint(changed) != same


def test_exact_boxes_are_stored_and_a_part_out_of_sight_differs_from_no_boxes(artifact):
    boxes = {"head": (0.1, 0.0, 0.9, 0.25), "upper_body": None, "legs": (0, 0.5, 1, 1)}
    rows = stored(artifact, [record("a", boxes=boxes), record("b")]).rows().to_pylist()
    assert rows[0]["box_head"] == pytest.approx(boxes["head"])
    assert rows[0]["box_upper_body"] is None and rows[0]["has_boxes"]
    assert rows[1]["box_head"] is None and not rows[1]["has_boxes"]


def test_cameras_may_be_unknown(artifact):
    dataset = stored(artifact, [record("a", camid=None), record("b", camid=None)])
    assert dataset.rows()["camid"].to_pylist() == [None, None]
    assert not dataset.summary.cameras_known
    assert dataset.summary.splits["train"]["cameras"] == 0


def test_some_cameras_may_be_unknown(artifact):
    dataset = stored(artifact, [record("a", camid=2), record("b", camid=None)])
    assert dataset.rows()["camid"].to_pylist() == [2, None]
    assert not dataset.summary.cameras_known
    assert dataset.summary.splits["train"]["cameras"] == 1


def broken(tmp_path):
    return {
        "empty": b"",
        "text": b"<html>404</html>",
        "truncated jpeg": picture(0)[:-200],
        "truncated png": picture(0, form="PNG")[:-200],
        "no file": tmp_path / "none.jpg",
        "folder": tmp_path,
    }


def test_unreadable_images_are_quarantined_by_name_and_the_import_continues(artifact, tmp_path):
    bad = [record(name, source=source) for name, source in broken(tmp_path).items()]
    dataset = stored(artifact, people(1000) + bad)
    assert dataset.summary.images == 1000
    assert dataset.summary.quarantined == len(bad)
    assert len(dataset.rows()) == 1000
    reasons = {entry["image_id"]: entry["reason"] for entry in dataset.quarantine()}
    assert reasons["empty"] == "empty file"
    assert "not an image" in reasons["text"]
    assert "truncated" in reasons["truncated jpeg"]
    assert "truncated" in reasons["truncated png"]
    assert "No such file" in reasons["no file"]
    assert "Is a directory" in reasons["folder"]


@pytest.mark.parametrize("total, fine", [(9, 1), (50, 5), (1000, 10)])
def test_too_many_unreadable_images_stop_the_import(artifact, total, fine):
    good = [record(f"{i}.jpg", source=picture(0)) for i in range(total - fine)]
    bad = [record(f"bad {i}.jpg", source=b"") for i in range(fine + 1)]
    assert write_shards(good + bad[:fine], artifact=artifact).quarantined == fine
    with pytest.raises(MuvaError, match=r"cannot be read .*bad 0\.jpg: empty file.*interrupted\?"):
        write_shards(good[1:] + bad, artifact=artifact)
    assert artifact.manifest() is None


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "expected images, found none"),
        ([record(), record()], "image ids must be unique; repeated train/a.jpg"),
        ([record("a", camid=-2)], r"must not be negative .*; found a \(camera -2\)"),
        ([record("a", boxes={"head": (0, 0, 64, 128)})], r"boxes must be fractions.*a \(0, 0, 64"),
        ([record("a", boxes={"legs": (0.5, 0, 0.5 + 1e-12, 1)})], "boxes must be fractions"),
        ([record("a", pid=-1)], r"except for -1 \(junk\) in the gallery; found a"),
        (
            [record("a", pid=-2, split="gallery"), record("b", split="query")],
            "pids must not be negative.*found a",
        ),
        ([record("a", split="query")], "the split gallery is empty while query has 1"),
        ([record("a", split="gallery")], "the split query is empty while gallery has 1"),
        (
            [record("a"), record("b", domain="city")],
            "expected records of one domain, found city, town",
        ),
        (
            [record("a"), record("b", split="query"), record("c", split="gallery")],
            r"both train and query or gallery; found pids 1 \(a and c\)",
        ),
        (
            [
                record("a", split="query", source=b""),
                *(record(f"{i}", split="gallery") for i in range(20)),
            ],
            r"the split query is empty while gallery has 20 images \(1 images are unreadable\)",
        ),
        ([record("a", source=b"")], r"expected images, found none \(1 images are unreadable\)"),
    ],
)
def test_records_that_contradict_each_other_are_refused(artifact, records, message):
    with pytest.raises(MuvaError, match=message):
        write_shards(records, artifact=artifact)
    assert artifact.manifest() is None


def test_junk_and_distractors_belong_to_the_gallery(artifact):
    records = [
        record("train", pid=3),
        record("query", split="query", pid=4),
        *(record(f"gallery {pid}", split="gallery", pid=pid) for pid in (-1, 0, 4)),
    ]
    summary = write_shards(records, artifact=artifact)
    assert summary.splits["gallery"] == {"images": 3, "identities": 2, "cameras": 1}


def test_an_interrupted_import_is_unfinished_and_can_be_repeated(artifact):
    def interrupted(done, total):
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(people(), artifact=artifact, shard_bytes=5000, progress=interrupted)
    with pytest.raises(MuvaError, match="unfinished"):
        open_dataset(artifact)
    assert len(stored(artifact, people(), shard_bytes=9000).rows()) == 40


def test_a_full_disk_during_an_import_leaves_it_unfinished(artifact, monkeypatch):
    import errno
    import os

    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MuvaError, match="disk is full"):
        write_shards(people(), artifact=artifact, shard_bytes=5000)
    monkeypatch.undo()
    assert artifact.manifest() is None


def test_a_damaged_shard_is_named(artifact):
    dataset = stored(artifact, people())
    key = artifact.key(dataset.shards[0].key)
    artifact.store.write(key, artifact.store.read(key)[:-100])
    for read in (dataset.rows, lambda: dataset.read_images([3])):
        with pytest.raises(MuvaError, match=r"shard-00000\.parquet is damaged"):
            read()


def test_damage_beside_the_shards_is_named(artifact):
    dataset = stored(artifact, people())
    artifact.store.write(artifact.key("quarantine.json"), b"[")
    with pytest.raises(MuvaError, match=r"quarantine\.json is damaged"):
        dataset.quarantine()
    manifest = artifact.manifest()
    del manifest["summary"]["cameras_known"]
    artifact.store.write(artifact.key("manifest.json"), json.dumps(manifest).encode())
    with pytest.raises(MuvaError, match=r"summary in manifest\.json is damaged.*cameras_known"):
        open_dataset(artifact)


def test_progress_counts_all_images(artifact):
    seen = []
    write_shards(people(), artifact=artifact, progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 40) for done in range(1, 41)]
