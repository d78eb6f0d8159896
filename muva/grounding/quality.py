"""How far a label set can be trusted, from its geometry alone: no ground truth is needed.

A person's head is above the upper body, that above the legs, they hardly overlap, and over a data
set each part has its usual size and place. What differs is worth a look before anyone trains on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float

from muva.config import PARTS

Boxes = Float[np.ndarray, "M R 4"]
"""x0, y0, x1, y1 as fractions of the image; what is not found is not looked at."""
Found = Bool[np.ndarray, "M R"]

SAME_BOX_IOU = 0.9
"""IoU from which on two parts have one and the same box."""
HALF_CONFIDENCE_AT = 3.0
"""Robust deviations from the usual at which confidence is one half."""
MAD_TO_STD = 1.4826
"""A normal distribution's standard deviation in median absolute deviations."""
MEASURES = ("size", "shape", "place across", "height in the image")
"""Log area, log aspect, x and y of the middle: what is usual of a part."""
MIN_LOG_SPREAD, MIN_POSITION_SPREAD = 0.15, 0.02
"""Deviations of log area and aspect, and of places, that are usual however alike labels are."""
MIN_PATCH_SPREAD = 0.35
"""The same of log area and aspect where a part is two or three patches high or wide."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two label sets of the same images, one part."""

    both: int
    """Images in which both found it."""
    only_first: int
    only_second: int
    median_iou: float
    """Over those that both found; NaN for none."""
    half: float
    """Share of those with an IoU of at least one half; NaN for none."""


def detection_rates(
    found: Found, camids: np.ndarray | None
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Share of images with each part (R,): of all of them, and by camera."""
    by_camera = {} if camids is None else {int(c): found[camids == c] for c in np.unique(camids)}
    return found.mean(axis=0), {camid: of.mean(axis=0) for camid, of in by_camera.items()}


def areas(boxes: Float[np.ndarray, "*M 4"]) -> Float[np.ndarray, " *M"]:
    """Share of the image that each box covers."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def centres(boxes: Boxes) -> Float[np.ndarray, "M R 2"]:
    """x and y of each box's middle."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def disordered(boxes: Boxes, found: Found, parts: Sequence[str]) -> Found:
    """Parts on the wrong side of the upper body: head, upper body, legs go down.

    A head below it or legs above it are marked; with both, and the head above the legs, it is the
    upper body that is misplaced. Head and legs are compared where it was not found.
    """
    wrong = np.zeros_like(found)
    column_of = {part: parts.index(part) for part in PARTS if part in parts}
    middle = centres(boxes)[..., 1]

    def below(upper: str, lower: str) -> np.ndarray:
        if upper not in column_of or lower not in column_of:
            return np.zeros(len(found), bool)
        one, other = column_of[upper], column_of[lower]
        return found[:, one] & found[:, other] & (middle[:, one] >= middle[:, other])

    head_low, legs_high = below("head", "upper_body"), below("upper_body", "legs")
    head_below_legs = below("head", "legs")
    anchored = (
        found[:, column_of["upper_body"]]
        if "upper_body" in column_of
        else np.zeros(len(found), bool)
    )
    misplaced = head_low & legs_high & ~head_below_legs
    for part, marked in (
        ("head", (head_low & ~misplaced) | (head_below_legs & ~anchored)),
        ("upper_body", misplaced | (head_low & legs_high & head_below_legs)),
        ("legs", (legs_high & ~misplaced) | (head_below_legs & ~anchored)),
    ):
        if part in column_of:
            wrong[:, column_of[part]] = marked
    return wrong


def pairwise_iou(boxes: Boxes, found: Found) -> dict[tuple[int, int], np.ndarray]:
    """Pair of parts -> IoU (M,) of their boxes, NaN where one is not found."""
    return {
        (one, other): np.where(
            found[:, one] & found[:, other], iou(boxes[:, one], boxes[:, other]), np.nan
        )
        for one, other in combinations(range(found.shape[1]), 2)
    }


def duplicates(boxes: Boxes, found: Found) -> Found:
    """Parts that share one box with another part."""
    same = np.zeros_like(found)
    for (one, other), overlap in pairwise_iou(boxes, found).items():
        pair = overlap > SAME_BOX_IOU
        same[:, one] |= pair
        same[:, other] |= pair
    return same


def deviations(
    boxes: Boxes, found: Found, grid: tuple[int, int] | None = None
) -> Float[np.ndarray, "4 M R"]:
    """How far each of `MEASURES` lies from the part's median, in robust standard deviations.

    1.4826 times the median absolute deviation makes one; NaN where a part is not found. `grid`:
    rows and columns, of boxes around patches.
    """
    height, width = boxes[..., 3] - boxes[..., 1], boxes[..., 2] - boxes[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_height, log_width = np.log(height), np.log(width)
        values = np.stack(
            [log_height + log_width, log_height - log_width, *np.moveaxis(centres(boxes), 2, 0)]
        )
    min_spreads = [MIN_LOG_SPREAD, MIN_LOG_SPREAD, MIN_POSITION_SPREAD, MIN_POSITION_SPREAD]
    if grid:
        min_spreads = [MIN_PATCH_SPREAD, MIN_PATCH_SPREAD, 0.5 / grid[1], 0.5 / grid[0]]
    result = np.full(values.shape, np.nan)
    for column in np.flatnonzero(found.any(axis=0)):
        is_found = found[:, column]
        known = values[:, is_found, column]
        distance = np.abs(known - np.median(known, axis=1, keepdims=True))
        spread = MAD_TO_STD * np.median(distance, axis=1, keepdims=True)
        result[:, is_found, column] = distance / np.maximum(spread, np.array(min_spreads)[:, None])
    return result


def confidence(
    boxes: Boxes, found: Found, parts: Sequence[str], grid: tuple[int, int] | None = None
) -> Float[np.ndarray, "M R"]:
    """From geometry, 0 to 1, NaN where not found.

    The largest of the `deviations` d gives 1 / (1 + (d / 3)^2). Half of it for a part that is out
    of order, and half for one that shares its box with another.
    """
    confidences = 1 / (1 + (deviations(boxes, found, grid).max(axis=0) / HALF_CONFIDENCE_AT) ** 2)
    confidences = np.where(disordered(boxes, found, parts), confidences / 2, confidences)
    return np.where(duplicates(boxes, found), confidences / 2, confidences)


def lowest_confidence_first(confidences: Float[np.ndarray, "M R"]) -> np.ndarray:
    """Images (M,) by their least trusted part, that one first; those without any part come last."""
    return np.argsort(np.nan_to_num(confidences, nan=np.inf).min(axis=1), kind="stable")


def agreement(found: Found, other_found: Found, ious: np.ndarray) -> list[Agreement]:
    """How far two label sets agree, part by part; ious (M, R) count where both found it."""
    both = found & other_found
    result = []
    for column in range(found.shape[1]):
        known = ious[both[:, column], column]
        result.append(
            Agreement(
                both=int(both[:, column].sum()),
                only_first=int((found & ~other_found)[:, column].sum()),
                only_second=int((other_found & ~found)[:, column].sum()),
                median_iou=float(np.median(known)) if len(known) else float("nan"),
                half=float((known >= 0.5).mean()) if len(known) else float("nan"),
            )
        )
    return result


def mask_iou(
    one: Bool[np.ndarray, "M R L"], other: Bool[np.ndarray, "M R L"]
) -> Float[np.ndarray, "M R"]:
    """Intersection over union of masks; 0 for empty ones."""
    both, either = (one & other).sum(axis=2), (one | other).sum(axis=2)
    return both / np.maximum(either, 1)


def iou(one: Float[np.ndarray, "*M 4"], other: Float[np.ndarray, "*M 4"]) -> np.ndarray:
    """Intersection over union of boxes, pair by pair; 0 for empty ones."""
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    both = sides.clip(min=0).prod(axis=-1)
    whole = areas(one) + areas(other) - both
    return np.divide(both, whole, out=np.zeros_like(both), where=whole > 0)
