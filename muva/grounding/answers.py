"""What experts say, turned into boxes: numbers in text, corners in any order, several boxes.

Every adapter converts its own coordinates to fractions of the original image and hands them to
`clip_box`; what cannot be a box is not found, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from muva.data.records import Box

MIN_BOX_SIDE = 0.002
"""Of a box, as a fraction of the image: half a pixel of a crop 256 high."""

_NUMBER = r"-?\d+(?:\.\d+)?"
_FOUR = re.compile(
    rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]"
)
"""Four numbers in one pair of brackets, as in JSON's bbox_2d and in [[x0,y0,x1,y1]]."""


def clip_box(corners: Sequence[float]) -> Box | None:
    """The box of two opposite corners (x0, y0, x1, y1 as fractions, in either order).

    Cut at the image's edges; None where (almost) nothing of it is inside.
    """
    x0, y0, x1, y1 = (min(max(float(value), 0.0), 1.0) for value in corners)
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if not (x1 - x0 >= MIN_BOX_SIDE and y1 - y0 >= MIN_BOX_SIDE):
        return None
    return x0, y0, x1, y1


def largest_box(boxes: Iterable[Sequence[float]]) -> Box | None:
    """The one with the largest area within the image: on a crop of a person that is the person's.

    For experts without scores, which may answer a phrase with several boxes.
    """
    clipped = [box for corners in boxes if (box := clip_box(corners)) is not None]
    return max(clipped, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=None)


def best_box(boxes: Sequence[Sequence[float]], scores: Sequence[float]) -> tuple[Box, float] | None:
    """The box with the highest score, and its score; None where no box is inside the image."""
    clipped = [
        (box, float(score))
        for corners, score in zip(boxes, scores, strict=True)
        if (box := clip_box(corners)) is not None
    ]
    return max(clipped, key=lambda found: found[1], default=None)


def boxes_in_text(text: str) -> list[tuple[float, float, float, float]]:
    """All groups of four numbers in brackets, in their order and in the text's own units.

    Reads JSON in a fence, JSON that breaks off, lists of lists, and prose around them.
    """
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in _FOUR.findall(text)]
