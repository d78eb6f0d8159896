"""Ground one shard: the unit of work that is handed out, committed and repeated.

An image is the unit of quarantine: one that cannot be decoded is noted with its reason, its parts
count as not found, and the rest of its shard goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """The labels of one shard: a row for each image and part, in the shard's order.

    `name`: the expert's, for the rows. An image that cannot be decoded, or on which the expert
    fails twice, is noted with its reason; a batch that does not fit into memory is halved.
    """
    rows = dataset.read_shard(shard_index, _COLUMNS)
    answers: list[dict[str, Any]] = []
    for start in range(0, len(rows), batch_images):
        images = [_image(row) for row in rows.slice(start, batch_images).to_pylist()]
        for image, groundings, error in _grounded(expert, images, phrases):
            answers += [
                _answer(image, part, grounding, name, error)
                for part, grounding in zip(phrases, groundings, strict=True)
            ]
        if progress is not None:
            progress(start + len(images), len(rows))
    return label_table(answers)


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
    return [(images[0], [Grounding(box=None)] * len(phrases), reason)]


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
