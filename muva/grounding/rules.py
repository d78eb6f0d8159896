"""Rules that drop or correct boxes before training.

No rule is applied by default, and every change is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from muva.config import PARTS
from muva.errors import SettingsError, closest
from muva.grounding.quality import Boxes, Found, areas, disordered, duplicates

RULES_VERSION = 1
"""Incremented when a rule of the same name gives different boxes."""

MAX_AREA, MIN_AREA = 0.95, 0.002
"""Shares of the image: a larger box is not a part of the person, and a smaller one is an error."""

Rule = Callable[[Boxes, Found, Sequence[str]], tuple[Boxes, Found]]


def drop_whole_image(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Drop boxes that cover more than 95 % of the image: they enclose the person, not a part."""
    del parts
    return boxes, found & ~(areas(boxes) > MAX_AREA)


def drop_tiny(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Drop boxes that cover less than 0.2 % of the image."""
    del parts
    return boxes, found & ~(areas(boxes) < MIN_AREA)


def drop_disordered(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Drop parts that violate the vertical order, see `disordered`."""
    return boxes, found & ~disordered(boxes, found, parts)


def drop_duplicates(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Drop parts that share a box (IoU above 0.9)."""
    del parts
    return boxes, found & ~duplicates(boxes, found)


def cut_overlap(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Separate adjacent parts that overlap vertically: both end half-way between their two edges.

    Applies to head and upper body, and to upper body and legs. Nothing is changed if one part lies
    within the vertical extent of the other.
    """
    boxes = boxes.copy()
    known = [parts.index(part) for part in PARTS if part in parts]
    for upper, lower in pairwise(known):
        top, bottom = boxes[:, lower, 1], boxes[:, upper, 3]
        reaches = found[:, upper] & found[:, lower] & (top < bottom)
        reaches &= (boxes[:, upper, 1] < top) & (bottom < boxes[:, lower, 3])
        border = (top + bottom) / 2
        boxes[:, upper, 3] = np.where(reaches, border, bottom)
        boxes[:, lower, 1] = np.where(reaches, border, top)
    return boxes, found


RULES: dict[str, Rule] = {
    "drop-whole-image": drop_whole_image,
    "drop-tiny": drop_tiny,
    "drop-disordered": drop_disordered,
    "drop-duplicates": drop_duplicates,
    "cut-overlap": cut_overlap,
}


def check_rules(names: Sequence[str]) -> None:
    """Raise SettingsError, with the closest name, for an unknown rule."""
    for name in names:
        if name not in RULES:
            raise SettingsError(f"rule {name!r} is unknown; {closest(name, RULES)}")


def apply_rules(
    boxes: Boxes, found: Found, parts: Sequence[str], names: Sequence[str]
) -> tuple[Boxes, Found, dict[str, dict[str, int]]]:
    """Boxes and found flags after these rules in order, and rule -> part -> number of changes."""
    counts: dict[str, dict[str, int]] = {}
    for name in names:
        new_boxes, new_found = RULES[name](boxes, found, parts)
        changed = (found & ~new_found) | (new_found & (new_boxes != boxes).any(axis=2))
        counts[name] = dict(zip(parts, changed.sum(axis=0).tolist(), strict=True))
        boxes, found = new_boxes, new_found
    return boxes, found, counts
