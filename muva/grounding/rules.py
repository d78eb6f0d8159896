"""Rules that drop or mend boxes before anyone trains on them: off unless named, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from muva.config import PARTS
from muva.errors import SettingsError, closest
from muva.grounding.quality import Boxes, Found, areas, disordered, duplicates

RULES_VERSION = 1
"""Raised when a rule of the same name would give other boxes."""

MAX_AREA, MIN_AREA = 0.95, 0.002
"""Shares of the image: more than the first is no part of it, less than the second is a slip."""

Rule = Callable[[Boxes, Found, Sequence[str]], tuple[Boxes, Found]]


def drop_whole_image(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Drop boxes that cover more than 95 % of the image: the expert found the person, no part."""
    del parts
    return boxes, found & ~(areas(boxes) > MAX_AREA)


def drop_tiny(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Drop boxes that cover less than 0.2 % of the image."""
    del parts
    return boxes, found & ~(areas(boxes) < MIN_AREA)


def drop_disordered(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Drop a head below the upper body, legs above it, and it where both others contradict it."""
    return boxes, found & ~disordered(boxes, found, parts)


def drop_duplicates(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Drop parts that share one box: IoU above 0.9."""
    del parts
    return boxes, found & ~duplicates(boxes, found)


def cut_overlap(boxes: Boxes, found: Found, parts: Sequence[str]) -> tuple[Boxes, Found]:
    """Mend neighbours that reach into each other: both end half-way between their two edges.

    Head and upper body, upper body and legs; where one lies within the other's height nothing is
    mended.
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
    """Raises SettingsError for a name that is no rule, with the closest one."""
    for name in names:
        if name not in RULES:
            raise SettingsError(f"rule {name!r} is unknown; {closest(name, RULES)}")


def apply_rules(
    boxes: Boxes, found: Found, parts: Sequence[str], names: Sequence[str]
) -> tuple[Boxes, Found, dict[str, dict[str, int]]]:
    """The boxes after these rules, in their order, and rule -> part -> how many it changed."""
    counts: dict[str, dict[str, int]] = {}
    for name in names:
        new_boxes, new_found = RULES[name](boxes, found, parts)
        changed = (found & ~new_found) | (new_found & (new_boxes != boxes).any(axis=2))
        counts[name] = dict(zip(parts, changed.sum(axis=0).tolist(), strict=True))
        boxes, found = new_boxes, new_found
    return boxes, found, counts
