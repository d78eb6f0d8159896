"""A summary of a data set to inspect before training: counts, anomalies, and sample images.

This module only reports. Data that cannot be used is rejected when the data set is stored.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from muva.data.benchmarks.accounting import many_skipped, skipped_text
from muva.data.images import decode_rgb
from muva.data.records import JUNK_PID, SPLITS
from muva.data.shards import Dataset


@dataclass(frozen=True, kw_only=True)
class Range:
    """Minimum, median and maximum."""

    smallest: int
    median: float
    largest: int


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Statistics of one split."""

    images: int
    identities: int
    """Junk excluded."""
    cameras: int
    """0 if unknown."""
    junk: int
    images_per_identity: Range
    identities_with_one_image: int
    """In training, the sampler repeats their image to fill the K images of a batch."""


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """Statistics of a data set; `asdict` of it can be serialised as JSON."""

    name: str
    fingerprint: str
    splits: dict[str, SplitReport]
    images: int
    bytes: int
    width: Range
    height: Range
    queries_without_match: int
    """Queries whose identity is missing from the gallery, or appears only in the query's own
    camera."""
    with_boxes: int
    with_captions: int
    quarantined: list[dict[str, str]]
    """Images that could not be read when the data set was stored: `image_id` and `reason`."""
    skipped: dict[str, int]
    """Reason -> number of files that were skipped when the data set was stored."""
    duplicates: list[list[str]]
    """Groups of images with identical bytes, as `split/pid: image_id`."""
    warnings: list[str]
    """Descriptions of anomalies."""


def check_dataset(dataset: Dataset) -> DatasetReport:
    """Compute the statistics of a data set. No image is read."""
    rows = dataset.rows()
    splits = {
        split: _split_report(rows.filter(pa.array(rows["split"].to_numpy() == split)))
        for split in SPLITS
        if split in dataset.summary.splits
    }
    quarantined = dataset.quarantine()
    duplicates = _duplicates(rows)
    without_match = queries_without_match(rows)
    return DatasetReport(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        splits=splits,
        images=len(rows),
        bytes=sum(shard.size_bytes for shard in dataset.shards),
        width=_range(rows["width"].to_numpy()),
        height=_range(rows["height"].to_numpy()),
        queries_without_match=without_match,
        with_boxes=int(np.count_nonzero(rows["has_boxes"].to_numpy())),
        with_captions=len(rows) - rows["caption"].null_count,
        quarantined=quarantined,
        skipped=dataset.summary.skipped,
        duplicates=duplicates,
        warnings=_warnings(dataset, splits, len(duplicates), len(quarantined), without_match),
    )


def sample_sheet(
    dataset: Dataset,
    *,
    people: int = 8,
    images_each: int = 6,
    height: int = 128,
    width: int = 64,
    seed: int = 0,
) -> Image.Image:
    """A picture with one row per sampled identity, labelled with split, pid and cameras."""
    table = dataset.rows(["split", "pid", "camid"])
    rows_by_identity: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for row in table.to_pylist():
        subset = "train" if row["split"] == "train" else "test"
        rows_by_identity[subset, row["pid"]].append(row)
    generator = np.random.default_rng(seed)
    groups = list(rows_by_identity)
    chosen = sorted(generator.choice(len(groups), min(people, len(groups)), replace=False))
    sheet = Image.new(
        "RGB",
        (_LABEL_WIDTH + images_each * (width + _GAP), len(chosen) * (height + _CAPTION + _GAP)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for line, index in enumerate(chosen):
        subset, pid = groups[index]
        rows = _evenly_spaced(rows_by_identity[subset, pid], images_each)
        top = line * (height + _CAPTION + _GAP)
        label = "junk" if pid == JUNK_PID else f"person {pid}"
        draw.text((_GAP, top + _GAP), f"{subset}\n{label}", fill="black")
        for column, (row, encoded) in enumerate(
            zip(rows, dataset.read_images([row["row"] for row in rows]), strict=True)
        ):
            left = _LABEL_WIDTH + column * (width + _GAP)
            sheet.paste(decode_rgb(encoded).resize((width, height)), (left, top))
            camera = "?" if row["camid"] is None else row["camid"]
            draw.text((left, top + height), f"camera {camera}", fill="black")
    return sheet


_LABEL_WIDTH, _CAPTION, _GAP = 80, 14, 4


def _split_report(rows: pa.Table) -> SplitReport:
    pids = rows["pid"].to_numpy()
    images = Counter(pid for pid in pids.tolist() if pid != JUNK_PID)
    return SplitReport(
        images=len(rows),
        identities=len(images),
        cameras=len(set(rows["camid"].to_pylist()) - {None}),
        junk=int(np.count_nonzero(pids == JUNK_PID)),
        images_per_identity=_range(np.array(list(images.values()))),
        identities_with_one_image=sum(count == 1 for count in images.values()),
    )


def _duplicates(rows: pa.Table) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for row in rows.select(["sha256", "split", "pid", "image_id"]).to_pylist():
        groups[row["sha256"]].append(f"{row['split']}/{row['pid']}: {row['image_id']}")
    return [sorted(group) for group in groups.values() if len(group) > 1]


def queries_without_match(rows: pa.Table) -> int:
    """The number of queries without a match that counts; `rows` has split, pid and camid."""
    cameras: dict[int, set[int | None]] = defaultdict(set)
    queries: list[tuple[int, int | None]] = []
    tested = rows.filter(pa.array(rows["split"].to_numpy() != "train"))
    all_known = not tested["camid"].null_count
    for row in tested.select(["split", "pid", "camid"]).to_pylist():
        camid = row["camid"] if all_known else None
        if row["split"] == "gallery":
            cameras[row["pid"]].add(camid)
        else:
            queries.append((row["pid"], camid))
    return sum(
        not (cameras[pid] if camid is None else cameras[pid] - {camid}) for pid, camid in queries
    )


def _warnings(
    dataset: Dataset,
    splits: dict[str, SplitReport],
    duplicates: int,
    quarantined: int,
    without_match: int,
) -> list[str]:
    warnings = []
    if not dataset.summary.cameras_known:
        some_known = any(split.cameras for split in splits.values())
        warnings.append(
            f"{'some cameras' if some_known else 'cameras'} are unknown: in evaluation, a query "
            "only ignores its own image"
        )
    if quarantined:
        warnings.append(f"{quarantined} images could not be read and were quarantined")
    if many_skipped(dataset.summary.skipped):
        warnings.append(skipped_text(dataset.summary.skipped))
    if duplicates:
        warnings.append(f"{duplicates} groups of images have the same content")
    if without_match:
        warnings.append(
            f"{without_match} of {splits['query'].images} queries have no match in another camera "
            "and are left out of the metrics"
        )
    train = splits.get("train")
    if train and train.identities_with_one_image:
        warnings.append(
            f"{train.identities_with_one_image} training identities have only one image"
        )
    if train and train.identities < 2:
        warnings.append("there is only one training identity, from which nothing can be learned")
    return warnings


def _evenly_spaced(rows: Sequence[dict], count: int) -> list[dict]:
    """At most `count` of the rows, evenly spaced, so that every camera can appear."""
    ordered = sorted(rows, key=lambda row: (row["camid"] is None, row["camid"], row["row"]))
    if len(ordered) <= count:
        return ordered
    return [ordered[index * len(ordered) // count] for index in range(count)]


def _range(values: np.ndarray) -> Range:
    if not len(values):
        return Range(smallest=0, median=0.0, largest=0)
    return Range(
        smallest=int(values.min()), median=float(np.median(values)), largest=int(values.max())
    )
