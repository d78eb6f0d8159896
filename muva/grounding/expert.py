"""The interface of a grounding expert: images and phrases in, a box or none for each out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from PIL import Image

from muva.data.images import decode_rgb
from muva.data.records import Box
from muva.errors import MuvaError

QUESTION = "Guide me to the location of {phrase} within the image by providing its bounding boxes"
"""The paper's question, for experts that take free text."""


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """An expert's answer for one image and phrase."""

    box: Box | None
    """x0, y0, x1, y1 as fractions of the image; None when the part was not found."""
    score: float | None = None
    answer: str = ""
    """What the expert really said."""

    def __post_init__(self) -> None:
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise ValueError(f"an expert must give boxes as fractions, in order: {self.box}")


@dataclass(frozen=True, kw_only=True)
class GroundingImage:
    """One image as an expert gets it: decoded when it is looked at."""

    image_id: str
    encoded: bytes
    annotated: Mapping[str, Box | None] | None
    """Boxes that came with the data: part -> box, or None for a part out of sight."""

    @cached_property
    def image(self) -> Image.Image:
        """The image in RGB; UnreadableImageError when it cannot be decoded."""
        return decode_rgb(self.encoded)


class RefusedImageError(MuvaError):
    """An expert will not look at one of the images, whatever is tried."""


@runtime_checkable
class Expert(Protocol):
    """Finds parts of people. Made once in a process, then asked batch after batch."""

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """For each image an answer to each phrase (part -> phrase), in their order."""
        ...


def ground_each_phrase(
    answers: Callable[[str], Sequence[Grounding]], phrases: Mapping[str, str]
) -> list[list[Grounding]]:
    """What `Expert.ground` gives, of an expert that takes one phrase of all images at a time."""
    by_phrase = [answers(phrase) for phrase in phrases.values()]
    return [list(of_image) for of_image in zip(*by_phrase, strict=True)]
