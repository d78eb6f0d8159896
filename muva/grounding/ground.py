"""Ground one shard: the unit of work that is handed out, committed and repeated.

An image is the unit of quarantine: one that cannot be decoded is noted with its reason, its parts
count as not found, and the rest of its shard goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from muva.config import PARTS
from muva.data.images import UnreadableImageError
from muva.data.shards import Dataset
from muva.grounding.expert import PHRASES, Expert, Grounding, GroundingImage
from muva.grounding.labels import label_table

BATCH_IMAGES = 32

_COLUMNS = ("image_id", "image", "has_boxes", *(f"box_{part}" for part in PARTS))


def label_config(expert: Expert, phrases: Mapping[str, str] = PHRASES) -> dict[str, Any]:
    """What decides the labels of a data set: the config that a label set's address is a hash of."""
    return {
        "expert": expert.name,
        "revision": expert.revision,
        "version": expert.version,
        "phrases": dict(phrases),
    }


def ground_shard(
    dataset: Dataset,
    shard_index: int,
    *,
    expert: Expert,
    phrases: Mapping[str, str] = PHRASES,
    batch_images: int = BATCH_IMAGES,
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """The labels of one shard: a row for each image and part, in the shard's order."""
    rows = dataset.read_shard(shard_index, _COLUMNS)
    answers: list[dict[str, Any]] = []
    for start in range(0, len(rows), batch_images):
        images = [_image(row) for row in rows.slice(start, batch_images).to_pylist()]
        for image, groundings, error in _grounded(expert, images, phrases):
            answers += [
                _answer(image, part, grounding, expert, error)
                for part, grounding in zip(phrases, groundings, strict=True)
            ]
        if progress is not None:
            progress(start + len(images), len(rows))
    return label_table(answers)


def _grounded(
    expert: Expert, images: Sequence[GroundingImage], phrases: Mapping[str, str]
) -> list[tuple[GroundingImage, list[Grounding], str | None]]:
    """Each image's answers, or the reason why there are none."""
    try:
        answers = expert.ground(images, phrases)
        return [(i, a, None) for i, a in zip(images, answers, strict=True)]
    except UnreadableImageError as error:
        if len(images) > 1:  # find out which
            return [one for image in images for one in _grounded(expert, [image], phrases)]
        return [(images[0], [Grounding(box=None)] * len(phrases), str(error))]


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
    image: GroundingImage, part: str, grounding: Grounding, expert: Expert, error: str | None
) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "part": part,
        "found": grounding.box is not None,
        "box": None if grounding.box is None else list(grounding.box),
        "score": grounding.score,
        "answer": grounding.answer,
        "expert": expert.name,
        "error": error,
    }
