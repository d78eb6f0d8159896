"""Ground one shard: the unit of work that is handed out, committed and repeated.

An image is the unit of quarantine: one that cannot be decoded, or that breaks the expert, is noted
with its reason, its parts count as not found, and the rest of its shard goes on. An expert that
breaks at most images is no fault of theirs. While it looks at a batch the next one is decoded.
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
from muva.grounding.experts import ChosenExpert
from muva.grounding.labels import label_table

BATCH_IMAGES = 32
PROGRESS_INTERVAL_S = 1.0
"""Work that is told about at once, where a batch takes less."""

MAX_EXPERT_FAILURES, MAX_EXPERT_FAILURE_SHARE = 5, 0.5
"""An expert that fails at more images of a shard, and at a larger share of them, is broken."""

_COLUMNS = ("image_id", "image", "has_boxes", *(f"box_{part}" for part in PARTS))


@dataclass(frozen=True, kw_only=True)
class RetryPlan:
    """What earlier attempts at a shard, whose process died, have taught."""

    isolate: frozenset[int] = frozenset()
    """Rows of the batch at which it died: looked at one by one."""
    quarantine: frozenset[int] = frozenset()
    """Rows at which it died twice, each alone: not looked at again."""


@dataclass(kw_only=True)
class ShardReport:
    """What grounding a shard took."""

    images: int
    batch_images: int
    """As many as fit into memory at once, as far as has been tried."""
    failed: int = 0
    expert_failures: int = 0
    """Of them, those that can be decoded, but at which the expert failed."""
    reason: str = ""
    """Why the first of them was set aside."""
    decode_s: float = 0.0
    """Of a thread's, beside the expert."""
    model_s: float = 0.0


class BrokenExpertError(MuvaError):
    """An expert fails at most images of a shard: none of them is set aside for it."""


def label_config(expert: ChosenExpert, phrases: Mapping[str, str] = PHRASES) -> dict[str, Any]:
    """What decides the labels of a data set: the config that a label set's address is a hash of."""
    config = {
        "expert": expert.name,
        "revision": expert.revision,
        "version": expert.info.version,
        "phrases": dict(phrases),
    }
    if expert.weights is not None:
        config["precision"] = expert.precision
    if expert.coordinates:
        config |= {"model": expert.weights and expert.weights.location}
        config |= {"coordinates": expert.coordinates}
    return config


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
    """The labels of one shard: a row for each image and part, in the shard's order.

    `name`: the expert's, for the rows. `on_start` hears which of the shard's rows are looked at next:
    several batches' at once where these are quick, each batch's where care is taken. An image that
    cannot be decoded, or on which the expert fails twice, is noted with its reason; a batch that
    does not fit into memory is halved, and so are those after it. Raises BrokenExpertError where
    the expert fails at most images.
    """
    plan = plan or RetryPlan()
    rows = dataset.read_shard(shard_index, _COLUMNS)
    report = ShardReport(images=len(rows), batch_images=batch_images)
    label_rows: list[dict[str, Any]] = []
    batches = _batches(len(rows), report, plan)
    # Where care is taken nothing else goes on at rows that have begun.
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
            reason = "the expert's process died twice at this image"
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
                f"expert {name}: failed at {report.expert_failures} of {len(rows)} images of shard "
                f"{shard_index}; {report.reason}. Nothing of the shard is kept"
            )
    return label_table(label_rows), report


def _batches(rows: int, report: ShardReport, plan: RetryPlan) -> Iterator[range]:
    """Stretches of rows in order; those that want care are alone."""
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
    """The batches with what gives their images; `prefetch`: one is decoded beside the one before."""
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
        with suppress(UnreadableImageError):  # said again when the expert looks at it
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
    """Each image's answers, or the reason why there are none.

    What goes wrong with several images is tried again with halves of them, down to the one that
    is to blame.
    """
    expert_failed = True
    try:
        answers = expert.ground(images, phrases)
        return [(i, a, None) for i, a in zip(images, answers, strict=True)]
    except UnreadableImageError as error:
        reason, expert_failed = str(error), False
    except RefusedImageError as error:
        reason = str(error)
    except MuvaError:  # a mistake in settings or at an endpoint, which no image is to blame for
        raise
    except Exception as error:
        if _out_of_memory(error):
            report.batch_images = min(report.batch_images, max(1, len(images) // 2))
            reason = (
                "there is no memory for this image alone beside the expert: expected a smaller one "
                "(`muva experts` tells their sizes), or a larger machine"
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
    """A processor's memory ends in a plain RuntimeError of torch's allocator."""
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
