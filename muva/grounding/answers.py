"""Parsing of expert answers into boxes: numbers in text, corners in any order, several boxes.

Each adapter converts its coordinates to fractions of the original image and passes them to
`clip_box`. Anything that is not a valid box counts as not found; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from muva.data.records import Box

MIN_BOX_SIDE = 0.002
"""Minimum side of a box as a fraction of the image: half a pixel of a crop 256 pixels high."""

_NUMBER = r"-?\d+(?:\.\d+)?"
_FOUR = re.compile(
    rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]"
)
"""Four numbers in one pair of brackets, as in bbox_2d in JSON and in [[x0,y0,x1,y1]]."""


def clip_box(corners: Sequence[float]) -> Box | None:
    """The box with these opposite corners (x0, y0, x1, y1 as fractions, in either order).

    It is clipped to the image; None if (almost) nothing of it lies inside.
    """
    x0, y0, x1, y1 = (min(max(float(value), 0.0), 1.0) for value in corners)
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if not (x1 - x0 >= MIN_BOX_SIDE and y1 - y0 >= MIN_BOX_SIDE):
        return None
    return x0, y0, x1, y1


def largest_box(boxes: Iterable[Sequence[float]]) -> Box | None:
    """The box with the largest area inside the image; None if there is none.

    For experts without scores that may answer a phrase with several boxes: on a crop of a person,
    the largest box most likely belongs to that person.
    """
    clipped = [box for corners in boxes if (box := clip_box(corners)) is not None]
    return max(clipped, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=None)


def best_box(boxes: Sequence[Sequence[float]], scores: Sequence[float]) -> tuple[Box, float] | None:
    """The box with the highest score, and its score; None if no box lies inside the image."""
    clipped = [
        (box, float(score))
        for corners, score in zip(boxes, scores, strict=True)
        if (box := clip_box(corners)) is not None
    ]
    return max(clipped, key=lambda found: found[1], default=None)


def boxes_in_text(text: str) -> list[tuple[float, float, float, float]]:
    """All groups of four bracketed numbers, in order of appearance and in the units of the text.

    Handles JSON in a code fence, truncated JSON, nested lists, and surrounding prose.
    """
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in _FOUR.findall(text)]
