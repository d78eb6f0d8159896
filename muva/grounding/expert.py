"""The interface of grounding experts: images and phrases in, one box or none per phrase out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from PIL import Image

from muva.data.images import decode_rgb
from muva.data.records import Box
from muva.errors import MuvaError

QUESTION = "Guide me to the location of {phrase} within the image by providing its bounding boxes"
"""The question of the paper, for experts that accept free text."""


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """An expert's answer for one image and phrase."""

    box: Box | None
    """x0, y0, x1, y1 as fractions of the image; None if the part was not found."""
    score: float | None = None
    answer: str = ""
    """The expert's unmodified answer."""

    def __post_init__(self) -> None:
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise ValueError(f"expected a box of ordered fractions, found {self.box}")


@dataclass(frozen=True, kw_only=True)
class GroundingImage:
    """One image as an expert receives it; decoded on first access."""

    image_id: str
    encoded: bytes
    annotated: Mapping[str, Box | None] | None
    """Boxes that are part of the data set: part -> box, or None for a part that is out of sight."""

    @cached_property
    def image(self) -> Image.Image:
        """The image in RGB. Raises UnreadableImageError if it cannot be decoded."""
        return decode_rgb(self.encoded)


class RefusedImageError(MuvaError):
    """An expert refuses one of the images; retrying would not help."""


@runtime_checkable
class Expert(Protocol):
    """Locates body parts. Created once per process, then called batch by batch."""

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """For each image one answer per phrase (part -> phrase), in the order of the phrases."""
        ...


Outcome = list[Grounding] | Exception
"""One answer per phrase, or the reason why an image has none."""


@runtime_checkable
class StreamingExpert(Expert, Protocol):
    """An expert that waits for a server instead of computing: images are sent while others wait.

    Only the preparation of an image, such as decoding it, happens in this process.
    """

    def stream(
        self, images: Iterable[GroundingImage], phrases: Mapping[str, str]
    ) -> Generator[tuple[int, Outcome]]:
        """The position of each image in `images` and its outcome, as they arrive.

        An image is taken from `images` when there is room for it, and is prepared before the next
        one is taken. Several threads may call this at once: one of them sends its images while the
        others wait for their turn or for their answers. Raises MuvaError for what no image is to
        blame for; nothing is outstanding after that, nor after the generator is closed.
        """
        ...


def ground_each_phrase(
    answers: Callable[[str], Sequence[Grounding]], phrases: Mapping[str, str]
) -> list[list[Grounding]]:
    """Implements `Expert.ground` for an expert that takes one phrase for all images at a time."""
    by_phrase = [answers(phrase) for phrase in phrases.values()]
    return [list(of_image) for of_image in zip(*by_phrase, strict=True)]
