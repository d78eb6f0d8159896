"""Grounds one shard: the unit in which work is scheduled, committed and retried.

Quarantine applies to single images: an image that cannot be decoded, or for which the expert fails,
is recorded with the reason, its parts count as not found, and the rest of the shard continues. If
an expert fails for most images, the expert is considered broken instead. While the expert processes
one batch, the next one is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from muva.config import PARTS, PHRASES
from muva.data.images import UnreadableImageError
from muva.data.shards import Dataset
from muva.errors import MuvaError
from muva.grounding.expert import Expert, Grounding, GroundingImage, RefusedImageError
from muva.grounding.labels import label_table

BATCH_IMAGES = 32
PROGRESS_INTERVAL_S = 1.0
"""If batches are faster than this, several are announced together."""

MAX_EXPERT_FAILURES, MAX_EXPERT_FAILURE_SHARE = 5, 0.5
"""An expert is broken if it fails for more images of a shard than both this number and this
share."""

_COLUMNS = ("image_id", "image", "has_boxes", *(f"box_{part}" for part in PARTS))


@dataclass(frozen=True, kw_only=True)
class RetryPlan:
    """Which rows of a shard need special treatment after earlier attempts crashed their process."""

    isolate: frozenset[int] = frozenset()
    """Rows of a batch during which the process died; they are now processed one at a time."""
    quarantine: frozenset[int] = frozenset()
    """Rows at which the process died twice while they were processed alone; they are skipped."""


@dataclass(kw_only=True)
class ShardReport:
    """Statistics of grounding one shard."""

    images: int
    batch_images: int
    """Largest batch size that is known to fit into memory."""
    failed: int = 0
    """Number of quarantined images."""
    expert_failures: int = 0
    """How many of them could be decoded, but made the expert fail."""
    reason: str = ""
    """Why the first of them was quarantined."""
    decode_s: float = 0.0
    """Time spent in the decoding thread, in parallel to the expert."""
    model_s: float = 0.0


class BrokenExpertError(MuvaError):
    """An expert fails for most images of a shard, so that none of them is quarantined."""


def ground_shard(
    dataset: Dataset,
    shard_index: int,
    *,
    expert: Expert,
    name: str,
    phrases: Mapping[str, str] = PHRASES,
    batch_images: int = BATCH_IMAGES,
    plan: RetryPlan | None = None,
    on_start: Callable[[range], None] = lambda rows: None,
) -> tuple[pa.Table, ShardReport]:
    """The pseudo-labels of one shard: one row per image and part, in the order of the shard.

    `name` is the expert's name, for the rows. `on_start` receives the range of rows that is
    processed next: several batches at once if they are fast, or every single batch if there is a
    retry plan. An image that cannot be decoded, or for which the expert fails twice, is recorded
    with the reason. If a batch does not fit into memory, it and all later ones are halved. Raises
    BrokenExpertError if the expert fails for most images.
    """
    plan = plan or RetryPlan()
    rows = dataset.read_shard(shard_index, _COLUMNS)
    report = ShardReport(images=len(rows), batch_images=batch_images)
    label_rows: list[dict[str, Any]] = []
    batches = _batches(len(rows), report, plan)
    # With a retry plan, no other row may be in progress when a process dies.
    prefetch = not (plan.isolate or plan.quarantine)
    announced = range(0)
    for batch, decode in _prefetched(
        batches, partial(_decode_batch, rows, report), prefetch=prefetch
    ):
        if batch.stop > announced.stop:
            fast_rows = (
                round(PROGRESS_INTERVAL_S * batch.start / max(report.model_s, 1e-6))
                if prefetch
                else 0
            )
            announced = range(batch.start, min(batch.start + max(fast_rows, len(batch)), len(rows)))
            on_start(announced)
        images = decode()
        started_at = time.perf_counter()
        if batch[0] in plan.quarantine:
            reason = "the expert's process died twice while it processed this image"
            grounded = [_quarantined(image, phrases, reason) for image in images]
        else:
            grounded = _grounded(expert, images, phrases, report)
        report.model_s += time.perf_counter() - started_at
        for image, groundings, error in grounded:
            report.failed += error is not None
            report.reason = report.reason or (f"{image.image_id}: {error}" if error else "")
            label_rows += [
                _label_row(image, part, grounding, name, error)
                for part, grounding in zip(phrases, groundings, strict=True)
            ]
        if report.expert_failures > max(MAX_EXPERT_FAILURES, MAX_EXPERT_FAILURE_SHARE * len(rows)):
            raise BrokenExpertError(
                f"expert {name}: failed for {report.expert_failures} of {len(rows)} images of "
                f"shard {shard_index}; {report.reason}. Nothing of this shard is stored"
            )
    return label_table(label_rows), report


def _batches(rows: int, report: ShardReport, plan: RetryPlan) -> Iterator[range]:
    """Consecutive ranges of rows; isolated and quarantined rows form ranges of their own."""
    start = 0
    for row in range(rows + 1):
        special = row in plan.isolate or row in plan.quarantine
        if row > start and (special or row == rows or row - start >= report.batch_images):
            yield range(start, row)
            start = row
        if special:
            yield range(row, row + 1)
            start = row + 1


def _prefetched(
    row_batches: Iterator[range], decode: Callable[[range], list[GroundingImage]], *, prefetch: bool
) -> Iterator[tuple[range, Callable[[], list[GroundingImage]]]]:
    """The batches with a function that returns their images; `prefetch` decodes one batch ahead."""
    if not prefetch:
        for rows in row_batches:
            yield rows, partial(decode, rows)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as pool:
        upcoming = None
        for rows in row_batches:
            ready, upcoming = upcoming, (rows, pool.submit(decode, rows).result)
            if ready is not None:
                yield ready
        if upcoming is not None:
            yield upcoming


def _decode_batch(rows: pa.Table, report: ShardReport, batch: range) -> list[GroundingImage]:
    started_at = time.perf_counter()
    images = [_grounding_image(row) for row in rows.slice(batch.start, len(batch)).to_pylist()]
    for image in images:
        with suppress(UnreadableImageError):  # raised again when the expert accesses it
            _ = image.image
    report.decode_s += time.perf_counter() - started_at
    return images


def _grounded(
    expert: Expert,
    images: Sequence[GroundingImage],
    phrases: Mapping[str, str],
    report: ShardReport,
    *,
    retried: bool = False,
) -> list[tuple[GroundingImage, list[Grounding], str | None]]:
    """The answers for each image, or the reason why there are none.

    If several images fail together, each half is retried separately, down to the image that causes
    the failure.
    """
    expert_failed = True
    try:
        answers = expert.ground(images, phrases)
        return [(i, a, None) for i, a in zip(images, answers, strict=True)]
    except UnreadableImageError as error:
        reason, expert_failed = str(error), False
    except RefusedImageError as error:
        reason = str(error)
    except MuvaError:  # caused by settings or an endpoint, not by an image
        raise
    except Exception as error:
        if _out_of_memory(error):
            report.batch_images = min(report.batch_images, max(1, len(images) // 2))
            reason = (
                "not even this single image fits into memory beside the expert. Choose a smaller "
                "expert (`muva experts` lists their sizes) or a larger machine"
            )
        elif len(images) == 1 and not retried:
            return _grounded(expert, images, phrases, report, retried=True)
        else:
            retried = True
            reason = f"the expert failed twice: {type(error).__name__}: {error}"
    if len(images) > 1:
        middle = len(images) // 2
        return [
            answer
            for half in (images[:middle], images[middle:])
            for answer in _grounded(expert, half, phrases, report, retried=retried)
        ]
    report.expert_failures += expert_failed
    return [_quarantined(images[0], phrases, reason)]


def _out_of_memory(error: Exception) -> bool:
    """On CPUs, torch's allocator raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _quarantined(
    image: GroundingImage, phrases: Mapping[str, str], reason: str
) -> tuple[GroundingImage, list[Grounding], str]:
    return image, [Grounding(box=None)] * len(phrases), reason


def _grounding_image(row: Mapping[str, Any]) -> GroundingImage:
    boxes = {part: row[f"box_{part}"] for part in PARTS}
    return GroundingImage(
        image_id=row["image_id"],
        encoded=row["image"],
        annotated={part: box and tuple(box) for part, box in boxes.items()}
        if row["has_boxes"]
        else None,
    )


def _label_row(
    image: GroundingImage, part: str, grounding: Grounding, expert: str, error: str | None
) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "part": part,
        "found": grounding.box is not None,
        "box": None if grounding.box is None else list(grounding.box),
        "score": grounding.score,
        "answer": grounding.answer,
        "expert": expert,
        "error": error,
    }
