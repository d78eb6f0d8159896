"""Grounds one shard: the unit in which work is scheduled, committed and retried.

Quarantine applies to single images: an image that cannot be decoded, or for which the expert fails,
is recorded with the reason, its parts count as not found, and the rest of the shard continues. If
an expert fails for most images, the expert is considered broken instead. While the expert processes
one batch, the next one is decoded. An expert that streams gets images without a pause instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from muva.config import PARTS, PHRASES
from muva.data.images import UnreadableImageError
from muva.data.shards import Dataset
from muva.errors import MuvaError
from muva.grounding.expert import (
    Expert,
    Grounding,
    GroundingImage,
    Outcome,
    RefusedImageError,
    StreamingExpert,
)
from muva.grounding.labels import label_table

BATCH_IMAGES = 32
PROGRESS_INTERVAL_S = 1.0
"""If batches are faster than this, several are announced together."""

MAX_EXPERT_FAILURES, MAX_EXPERT_FAILURE_SHARE = 5, 0.5
"""An expert is broken if it fails for more images of a shard than both this number and this
share."""

DEADLY = "the expert's process died twice while it processed this image"

Grounded = tuple[str, Sequence[Grounding], str | None]
"""An image's id, its answers, and the reason why there are none."""

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
    """Time spent in the expert; of one that streams, until its last answer."""


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
    retry plan. For an expert that streams these are the rows that are prepared next, as nothing
    else can end the process; the range is empty while none is prepared. An image that cannot be
    decoded, or for which the expert fails twice, is recorded with the reason. If a batch does not
    fit into memory, it and all later ones are halved. Raises BrokenExpertError if the expert fails
    for most images.
    """
    plan = plan or RetryPlan()
    rows = dataset.read_shard(shard_index, _COLUMNS)
    report = ShardReport(images=len(rows), batch_images=batch_images)
    grounded = (
        _streamed(expert, rows, phrases, report, plan, on_start)
        if isinstance(expert, StreamingExpert)
        else _in_batches(expert, rows, phrases, report, plan, on_start)
    )
    label_rows: dict[int, list[dict[str, Any]]] = {}
    with closing(grounded):
        for row, (image_id, groundings, error) in grounded:
            report.failed += error is not None
            report.reason = report.reason or (f"{image_id}: {error}" if error else "")
            label_rows[row] = [
                _label_row(image_id, part, grounding, name, error)
                for part, grounding in zip(phrases, groundings, strict=True)
            ]
            failures = report.expert_failures
            if failures > max(MAX_EXPERT_FAILURES, MAX_EXPERT_FAILURE_SHARE * len(rows)):
                raise BrokenExpertError(
                    f"expert {name}: failed for {failures} of {len(rows)} images of shard "
                    f"{shard_index}; {report.reason}. Nothing of this shard is stored"
                )
    return label_table([one for row in range(len(rows)) for one in label_rows[row]]), report


def _in_batches(
    expert: Expert,
    rows: pa.Table,
    phrases: Mapping[str, str],
    report: ShardReport,
    plan: RetryPlan,
    on_start: Callable[[range], None],
) -> Generator[tuple[int, Grounded]]:
    """Each row and its answers, batch by batch."""
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
            grounded = [_quarantined(image, phrases, DEADLY) for image in images]
        else:
            grounded = _grounded(expert, images, phrases, report)
        report.model_s += time.perf_counter() - started_at
        yield from zip(batch, grounded, strict=True)


def _streamed(
    expert: StreamingExpert,
    rows: pa.Table,
    phrases: Mapping[str, str],
    report: ShardReport,
    plan: RetryPlan,
    on_start: Callable[[range], None],
) -> Generator[tuple[int, Grounded]]:
    """Each row and its answers as they arrive.

    An isolated row is prepared by itself, as every row is; others may be waiting for answers then.
    """
    sent: dict[int, tuple[int, str]] = {}
    started_at = time.perf_counter()

    def to_prepare() -> Iterator[GroundingImage]:
        announced = range(0)
        began_at = time.perf_counter()
        for row in range(len(rows)):
            if row in plan.quarantine:
                continue
            if row not in announced:
                rate = row / max(time.perf_counter() - began_at, 1e-6)
                ahead = 1 if plan.isolate or plan.quarantine else round(PROGRESS_INTERVAL_S * rate)
                announced = range(row, min(row + max(ahead, 1), len(rows)))
                on_start(announced)
            [image] = _decode_batch(rows, report, range(row, row + 1))
            sent[len(sent)] = row, image.image_id
            yield image
        on_start(range(len(rows), len(rows)))

    on_start(range(0))
    for row in sorted(plan.quarantine):
        [image] = rows.slice(row, 1).select(["image_id"]).to_pylist()
        yield row, (image["image_id"], [Grounding(box=None)] * len(phrases), DEADLY)
    answered: set[int] = set()
    with closing(expert.stream(to_prepare(), phrases)) as outcomes:
        for position, outcome in outcomes:
            assert position not in answered
            answered.add(position)
            row, image_id = sent[position]
            yield row, (image_id, *_answers_or_reason(outcome, phrases, report))
    assert len(answered) == len(sent) == len(rows) - len(plan.quarantine)
    report.model_s = time.perf_counter() - started_at - report.decode_s


def _answers_or_reason(
    outcome: Outcome, phrases: Mapping[str, str], report: ShardReport
) -> tuple[Sequence[Grounding], str | None]:
    if not isinstance(outcome, Exception):
        return outcome, None
    report.expert_failures += not isinstance(outcome, UnreadableImageError)
    if isinstance(outcome, MuvaError):
        reason = str(outcome)
    elif _out_of_memory(outcome):
        reason = "this image does not fit into memory. Choose a larger machine"
    else:
        reason = f"the expert failed: {type(outcome).__name__}: {outcome}"
    return [Grounding(box=None)] * len(phrases), reason


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
) -> list[Grounded]:
    """The answers for each image, or the reason why there are none.

    If several images fail together, each half is retried separately, down to the image that causes
    the failure.
    """
    expert_failed = True
    try:
        answers = expert.ground(images, phrases)
        return [(i.image_id, a, None) for i, a in zip(images, answers, strict=True)]
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


def _quarantined(image: GroundingImage, phrases: Mapping[str, str], reason: str) -> Grounded:
    return image.image_id, [Grounding(box=None)] * len(phrases), reason


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
    image_id: str, part: str, grounding: Grounding, expert: str, error: str | None
) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "part": part,
        "found": grounding.box is not None,
        "box": None if grounding.box is None else list(grounding.box),
        "score": grounding.score,
        "answer": grounding.answer,
        "expert": expert,
        "error": error,
    }
