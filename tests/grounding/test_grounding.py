"""Grounding a data set: labels per shard, aligned with images, rejected for other data sets."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from muva.config import PHRASES, GroundingConfig
from muva.data.artifacts import Artifact
from muva.data.records import Record
from muva.data.shards import Dataset, open_dataset, write_shards
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.grounding import ground as ground_module
from muva.grounding.expert import Grounding, GroundingImage, RefusedImageError
from muva.grounding.experts import choose_expert, label_config
from muva.grounding.experts.annotated import AnnotatedExpert
from muva.grounding.ground import BrokenExpertError, RetryPlan, ground_shard
from muva.grounding.labels import (
    label_key,
    label_table,
    labelled_shards,
    open_labels,
    summarise_labels,
    write_shard_labels,
)

PARTS = ("head", "upper_body", "legs")


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def boxes_of(index: int):
    top = 0.1 + index / 200
    return {
        "head": (0.25, 0.0, 0.75, top),
        "upper_body": (0.0, top, 1.0, 0.5),
        "legs": None if index % 4 == 0 else (0.0, 0.5, 1.0, 1.0),
    }


def dataset(root, *, name="town", images=40, boxes=True) -> Dataset:
    records = [
        Record(
            domain=name,
            image_id=f"{i:03d}.png",
            split="train",
            pid=i // 4,
            camid=1,
            source=png(i),
            boxes=boxes_of(i) if boxes else None,
        )
        for i in range(images)
    ]
    artifact = Artifact(open_store(root), "datasets", name, "0" * 16)
    summary = asdict(write_shards(records, artifact=artifact, shard_bytes=20_000))
    artifact.commit(format_version=1, config={}, inputs={}, summary=summary)
    return open_dataset(artifact)


@pytest.fixture
def town(tmp_path) -> Dataset:
    made = dataset(tmp_path)
    assert len(made.shards) > 2
    return made


def looked_at(town: Dataset, shard: int, *, expert, **settings):
    table, _ = ground_shard(town, shard, expert=expert, name="looking", **settings)
    return table


def grounded(town: Dataset, expert=None, *, leave_out=(), commit=True) -> Artifact:
    expert = expert or AnnotatedExpert()
    artifact = Artifact(town.artifact.store, "labels", town.name, "1" * 16)
    for index in set(range(len(town.shards))) - set(leave_out):
        write_shard_labels(artifact, index, looked_at(town, index, expert=expert, batch_images=7))
    if commit:
        summary = summarise_labels(artifact, town, parts=PARTS)
        artifact.commit(format_version=1, config={}, inputs={}, summary=summary)
    return artifact


def test_annotated_boxes_are_aligned_with_the_requested_images(town):
    labels = open_labels(grounded(town), dataset=town)
    order = np.random.default_rng(0).permutation(40)
    boxes, found = labels.boxes([f"{i:03d}.png" for i in order])
    assert boxes.shape == (40, 3, 4) and found.shape == (40, 3)
    for place, index in enumerate(order):
        for column, part in enumerate(PARTS):
            box = boxes_of(int(index))[part]
            assert found[place, column].item() == (box is not None)
            assert boxes[place, column].tolist() == pytest.approx(box or (0, 0, 0, 0))
    legs_only, _ = labels.boxes(["001.png"], parts=["legs"])
    assert torch.equal(legs_only, boxes[order.tolist().index(1), 2].view(1, 1, 4))


def test_the_summary_has_the_detection_rate_of_each_part(town):
    manifest = grounded(town).manifest()
    assert manifest is not None
    summary = manifest["summary"]
    assert summary["found"] == {"head": 1.0, "upper_body": 1.0, "legs": 0.75}
    assert (summary["images"], summary["failed"]) == (40, 0)
    assert (summary["dataset"], summary["dataset_fingerprint"]) == ("town", town.fingerprint)


def test_a_shard_is_grounded_whatever_the_batch(town):
    expert = AnnotatedExpert()
    one, many = (looked_at(town, 1, expert=expert, batch_images=n) for n in (1, 100))
    assert one.equals(many)
    assert len(one) == town.shards[1].rows * 3


def test_fast_batches_are_announced_together_and_slow_ones_separately(town, monkeypatch):
    def started(plan: RetryPlan | None = None) -> list[range]:
        starts: list[range] = []
        expert = AnnotatedExpert()
        looked_at(town, 0, expert=expert, batch_images=4, on_start=starts.append, plan=plan)
        return starts

    assert town.shards[0].rows == 13
    each = [range(4), range(4, 8), range(8, 12), range(12, 13)]
    assert started() == [range(4), range(4, 13)]
    assert started(RetryPlan(isolate=frozenset({12}))) == each
    monkeypatch.setattr(ground_module, "PROGRESS_INTERVAL_S", 1e-9)
    assert started() == each


class Looking:
    """An expert that reads the pixels and answers with the mean brightness as the score."""

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        return [
            [
                Grounding(
                    box=(0.0, 0.0, 1.0, 1.0), score=float(np.asarray(image.image).mean()), answer=p
                )
                for p in phrases.values()
            ]
            for image in images
        ]


def test_an_expert_gets_the_phrases_and_its_answers_are_stored(town):
    rows = looked_at(town, 0, expert=Looking()).to_pylist()
    first = [row for row in rows if row["image_id"] == "000.png"]
    assert [row["answer"] for row in first] == list(PHRASES.values())
    brightness = np.asarray(Image.open(io.BytesIO(png(0)))).mean()
    assert first[0]["score"] == pytest.approx(brightness, rel=1e-6)
    assert {row["expert"] for row in rows} == {"looking"}


def damaged(town: Dataset, image_ids: set[str]) -> Dataset:
    """The data set with images that were damaged after it was stored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in town.shards:
        path = town.artifact.store.path(town.artifact.key(shard.key))
        table = pq.read_table(path)
        images = [
            b"gone" if image_id in image_ids else image
            for image_id, image in zip(
                table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True
            )
        ]
        column = table.column_names.index("image")
        pq.write_table(table.set_column(column, "image", pa.array(images, pa.binary())), path)
    return town


def test_an_image_that_cannot_be_decoded_is_recorded_and_the_rest_continues(town):
    labels = grounded(damaged(town, {"002.png", "017.png"}), Looking())
    manifest = labels.manifest()
    assert manifest is not None and manifest["summary"]["failed"] == 2
    _, found = open_labels(labels, dataset=town).boxes([f"{i:03d}.png" for i in range(40)])
    assert [i for i in range(40) if not found[i].any()] == [2, 17]


class Failing(Looking):
    """Fails for certain images, alone or in a batch, and accepts at most four images at once."""

    def __init__(self, dark: set[str]) -> None:
        self.dark = dark
        self.batches: list[list[str]] = []

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        self.batches.append([image.image_id for image in images])
        if len(images) > 4:
            raise torch.OutOfMemoryError("too large")
        if self.dark & {image.image_id for image in images}:
            raise RuntimeError("a shape that it cannot take")
        return super().ground(images, phrases)


def test_a_batch_that_does_not_fit_is_halved_and_an_image_that_breaks_the_expert_is_quarantined(
    town,
):
    expert = Failing({"003.png"})
    table = looked_at(town, 0, expert=expert, batch_images=16)
    assert len(table) == town.shards[0].rows * 3
    failed = {row["image_id"]: row["error"] for row in table.to_pylist() if row["error"]}
    assert failed == {
        "003.png": "the expert failed twice: RuntimeError: a shape that it cannot take"
    }
    assert sum("003.png" in batches and len(batches) <= 4 for batches in expert.batches) >= 2
    alone = Failing({"003.png"})
    assert looked_at(town, 0, expert=alone, batch_images=1).equals(table)
    assert alone.batches.count(["003.png"]) == 2
    assert (
        table.drop_columns("error")
        .filter(table["error"].is_null())
        .equals(
            looked_at(town, 0, expert=Looking())
            .filter(table["error"].is_null())
            .drop_columns("error")
        )
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "000.png: not even this single image fits into memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough"), "not even this single"),
        (RuntimeError("device-side assert"), "failed twice: RuntimeError: device-side assert"),
        (RefusedImageError("400 too long"), "000.png: 400 too long"),
    ],
)
def test_an_expert_that_fails_for_most_images_is_broken(town, error, reason):
    class Broken(Looking):
        def ground(self, images, phrases):
            raise error

    with pytest.raises(
        BrokenExpertError, match=rf"looking: failed for \d+ of \d+ images of shard 0.*{reason}"
    ):
        looked_at(town, 0, expert=Broken())


def test_a_batch_size_that_does_not_fit_is_not_tried_again(town):
    expert = Failing(set())
    assert town.shards[0].rows == 13
    _, report = ground_shard(town, 0, expert=expert, name="looking", batch_images=5)
    # The second batch was already prefetched when the first one turned out to be too large.
    assert list(map(len, expert.batches)) == [5, 2, 3, 5, 2, 3, 2, 1]
    assert (report.batch_images, report.failed, report.expert_failures) == (2, 0, 0)


def test_isolated_rows_are_processed_without_prefetching(town, monkeypatch):
    started: list[str] = []
    decode = ground_module._decode_batch

    def decoded(rows, report, batch):
        started.append(f"decode {batch.start}")
        return decode(rows, report, batch)

    monkeypatch.setattr(ground_module, "_decode_batch", decoded)
    on_start = lambda rows: started.append(f"begin {rows.start}")  # noqa: E731
    looked_at(
        town,
        0,
        expert=Looking(),
        batch_images=5,
        plan=RetryPlan(isolate=frozenset({5})),
        on_start=on_start,
    )
    assert started[:6] == ["begin 0", "decode 0", "begin 5", "decode 5", "begin 6", "decode 6"]


def test_too_many_images_that_cannot_be_decoded_stop_grounding(town):
    with pytest.raises(MuvaError, match=r"6 of 40 images were quarantined.*not an image"):
        grounded(damaged(town, {f"{i:03d}.png" for i in range(6)}), Looking())


def test_unfinished_labels_are_resumed_and_cannot_be_opened(town):
    labels = grounded(town, leave_out=[1], commit=False)
    assert labelled_shards(labels) == set(range(len(town.shards))) - {1}
    with pytest.raises(
        MuvaError, match=r"1 of \d+ shards have no labels yet, the first is shard 1"
    ):
        summarise_labels(labels, town, parts=PARTS)
    with pytest.raises(MuvaError, match="is unfinished"):
        open_labels(labels, dataset=town)


def test_labels_of_another_data_set_are_refused(town, tmp_path):
    labels = grounded(town)
    other = dataset(tmp_path / "other", name="city", images=20)
    with pytest.raises(MuvaError, match=r"expected labels of city .* found those of town"):
        open_labels(labels, dataset=other)


def test_images_and_parts_without_labels_are_named(town):
    labels = open_labels(grounded(town), dataset=town)
    with pytest.raises(MuvaError, match=r"1 of 2 images have no labels, for example x\.png"):
        labels.boxes(["001.png", "x.png"])
    with pytest.raises(MuvaError, match="expected labels of shoes, found only head"):
        labels.boxes(["001.png"], parts=["shoes"])


def test_missing_rows_and_damaged_files_are_named(town):
    artifact = grounded(town)
    short = looked_at(town, 0, expert=AnnotatedExpert()).slice(1)
    artifact.store.delete(artifact.key(label_key(0)))
    assert write_shard_labels(artifact, 0, short)
    assert not write_shard_labels(artifact, 0, looked_at(town, 0, expert=AnnotatedExpert()))
    with pytest.raises(
        MuvaError, match=r"1 labels are missing and 0 are duplicated, for example of 000"
    ):
        open_labels(artifact, dataset=town)
    artifact.store.write(artifact.key("labels-00000.parquet"), b"PAR1")
    with pytest.raises(MuvaError, match=r"labels-00000\.parquet is damaged"):
        open_labels(artifact, dataset=town)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[0]], "0 labels are missing and 1 are duplicated"),
        (lambda rows: rows[3:], "0 labels are missing .* 39 of 40 images have labels"),
        (lambda rows: [{**rows[0], "box": None}, *rows[1:]], "a part was found, but has no box"),
        (lambda rows: [{**rows[0], "box": [0.1] * 8}, *rows[1:]], "found, but has no box"),
        (
            lambda rows: [{**rows[0], "box": [0, 0, 2, 1]}, *rows[1:]],
            "boxes that are not fractions",
        ),
        (
            lambda rows: [{**rows[0], "part": "hat"}, *rows[1:]],
            r"expected rows of head, .* found hat",
        ),
    ],
)
def test_inconsistent_rows_are_reported(town, change, message):
    artifact = grounded(town)
    rows = looked_at(town, 0, expert=AnnotatedExpert()).to_pylist()
    artifact.store.delete(artifact.key(label_key(0)))
    write_shard_labels(artifact, 0, label_table(change(rows)))
    with pytest.raises(MuvaError, match=message):
        open_labels(artifact, dataset=town)


def test_annotated_needs_boxes_and_knows_three_parts(town, tmp_path):
    expert = AnnotatedExpert()
    without = dataset(tmp_path / "without", boxes=False, images=4)
    with pytest.raises(MuvaError, match=r"000\.png has no boxes"):
        looked_at(without, 0, expert=expert)
    with pytest.raises(MuvaError, match="found shoes"):
        looked_at(town, 0, expert=expert, phrases={"shoes": "the shoes"})


@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 64.0, 128.0),
        (0.5, 0.0, 0.5, 1.0),
        (0.9, 0.0, 0.1, 1.0),
        (-0.1, 0.0, 1.0, 1.0),
    ],
)
def test_boxes_in_another_convention_are_rejected(box):
    with pytest.raises(ValueError, match="expected a box of ordered fractions"):
        Grounding(box=box)


def test_everything_that_determines_the_labels_is_in_their_address(tmp_path):
    settings = GroundingConfig(expert="http", checkpoint="cogvlm", revision="2023-11")
    config = label_config(choose_expert(settings), {"shoes": "the shoes"})
    assert config == {
        "expert": "http",
        "revision": "2023-11",
        "version": 1,
        "phrases": {"shoes": "the shoes"},
        "precision": "fp32",
        "model": "cogvlm",
        "coordinates": "thousandths",
    }
    assert label_config(choose_expert(GroundingConfig())) == {
        "expert": "annotated",
        "revision": "",
        "version": 1,
        "phrases": PHRASES,
    }
