"""Ground one shard: the unit of work that is handed out, committed and repeated.

An image is the unit of quarantine: one that cannot be decoded, or that breaks the expert, is noted
with its reason, its parts count as not found, and the rest of its shard goes on. While the expert
looks at a batch the next one is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch

from muva.config import PARTS, PHRASES
from muva.data.images import UnreadableImageError
from muva.data.shards import Dataset
from muva.errors import MuvaError
from muva.grounding.expert import Expert, Grounding, GroundingImage
from muva.grounding.experts import ChosenExpert
from muva.grounding.labels import label_table

BATCH_IMAGES = 32

_COLUMNS = ("image_id", "image", "has_boxes", *(f"box_{part}" for part in PARTS))


@dataclass(frozen=True, kw_only=True)
class Care:
    """What earlier attempts at a shard, whose process died, have taught."""

    alone: frozenset[int] = frozenset()
    """Rows of the batch at which it died: looked at one by one."""
    aside: frozenset[int] = frozenset()
    """Rows at which it died twice, each alone: not looked at again."""


@dataclass(kw_only=True)
class ShardReport:
    """What grounding a shard took."""

    images: int
    failed: int = 0
    decode_s: float = 0.0
    """Of a thread's, beside the expert."""
    model_s: float = 0.0


@dataclass(frozen=True)
class _Batch:
    rows: range
    images: list[GroundingImage] = field(default_factory=list)


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
        config |= {"model": expert.weights and expert.weights.place}
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
    care: Care | None = None,
    begin: Callable[[range], None] = lambda rows: None,
) -> tuple[pa.Table, ShardReport]:
    """The labels of one shard: a row for each image and part, in the shard's order.

    `name`: the expert's, for the rows. `begin` is called with the shard's rows that are looked at
    next. An image that cannot be decoded, or on which the expert fails twice, is noted with its
    reason; a batch that does not fit into memory is halved.
    """
    care = care or Care()
    rows = dataset.read_shard(shard_index, _COLUMNS)
    report = ShardReport(images=len(rows))
    answers: list[dict[str, Any]] = []
    for batch in _decoded_in_advance(rows, _batches(len(rows), batch_images, care), report):
        begin(batch.rows)
        started_at = time.perf_counter()
        if batch.rows[0] in care.aside:
            reason = "the expert's process died twice at this image"
            grounded = [_set_aside(image, phrases, reason) for image in batch.images]
        else:
            grounded = _grounded(expert, batch.images, phrases)
        report.model_s += time.perf_counter() - started_at
        for image, groundings, error in grounded:
            report.failed += error is not None
            answers += [
                _answer(image, part, grounding, name, error)
                for part, grounding in zip(phrases, groundings, strict=True)
            ]
    return label_table(answers), report


def _batches(rows: int, batch_images: int, care: Care) -> Iterator[range]:
    """Stretches of rows in order; those that want care are alone."""
    start = 0
    for row in range(rows + 1):
        single = row in care.alone or row in care.aside
        if row > start and (single or row == rows or row - start == batch_images):
            yield range(start, row)
            start = row
        if single:
            yield range(row, row + 1)
            start = row + 1


def _decoded_in_advance(
    rows: pa.Table, batches: Iterator[range], report: ShardReport
) -> Iterator[_Batch]:
    """The batches in order, each being decoded while the one before is looked at."""

    def decoded(stretch: range) -> _Batch:
        started_at = time.perf_counter()
        images = [_image(row) for row in rows.slice(stretch.start, len(stretch)).to_pylist()]
        for image in images:
            with suppress(UnreadableImageError):  # said again when the expert looks at it
                _ = image.image
        report.decode_s += time.perf_counter() - started_at
        return _Batch(stretch, images)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as pool:
        coming = None
        for stretch in batches:
            ready, coming = coming, pool.submit(decoded, stretch)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _grounded(
    expert: Expert,
    images: Sequence[GroundingImage],
    phrases: Mapping[str, str],
    *,
    again: bool = False,
) -> list[tuple[GroundingImage, list[Grounding], str | None]]:
    """Each image's answers, or the reason why there are none.

    What goes wrong with several images is tried again with halves of them, down to the one that
    is to blame.
    """
    try:
        answers = expert.ground(images, phrases)
        return [(i, a, None) for i, a in zip(images, answers, strict=True)]
    except UnreadableImageError as error:
        reason = str(error)
    except MuvaError:  # a mistake in settings or at an endpoint, which no image is to blame for
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        if len(images) == 1:
            raise MuvaError(
                f"{images[0].image_id} alone does not fit into memory beside this expert: expected "
                "a smaller expert (`muva experts` tells their sizes), or a larger machine"
            ) from error
        reason = ""
    except Exception as error:
        if len(images) == 1 and not again:
            return _grounded(expert, images, phrases, again=True)
        reason = f"the expert failed twice: {type(error).__name__}: {error}"
    if len(images) > 1:
        middle = len(images) // 2
        halves = (images[:middle], images[middle:])
        return [one for half in halves for one in _grounded(expert, half, phrases, again=True)]
    return [_set_aside(images[0], phrases, reason)]


def _set_aside(
    image: GroundingImage, phrases: Mapping[str, str], reason: str
) -> tuple[GroundingImage, list[Grounding], str]:
    return image, [Grounding(box=None)] * len(phrases), reason


def _image(row: Mapping[str, Any]) -> GroundingImage:
    boxes = {part: row[f"box_{part}"] for part in PARTS}
    return GroundingImage(
        image_id=row["image_id"],
        encoded=row["image"],
        annotated={part: box and tuple(box) for part, box in boxes.items()}
        if row["has_boxes"]
        else None,
    )


def _answer(
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
