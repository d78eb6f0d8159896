"""Quality measures of a label set that are based on geometry alone, without ground truth.

The head is above the upper body, which is above the legs; parts hardly overlap; and within a data
set each part has a typical size and position. Deviations should be inspected before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float

from muva.config import PARTS

Boxes = Float[np.ndarray, "M R 4"]
"""x0, y0, x1, y1 as fractions of the image; boxes of parts that were not found are ignored."""
Found = Bool[np.ndarray, "M R"]

SAME_BOX_IOU = 0.9
"""Two parts with a higher IoU than this share the same box."""
HALF_CONFIDENCE_AT = 3.0
"""Robust deviations from the median at which the confidence is one half."""
MAD_TO_STD = 1.4826
"""Standard deviation of a normal distribution, in median absolute deviations."""
MEASURES = ("size", "shape", "place across", "height in the image")
"""Log area, log aspect ratio, x and y of the centre: these have typical values for each part."""
MIN_LOG_SPREAD, MIN_POSITION_SPREAD = 0.15, 0.02
"""Minimum deviations of log area and log aspect ratio, and of positions, even if labels hardly
vary."""
MIN_PATCH_SPREAD = 0.35
"""The same for log area and log aspect ratio if a part is two or three patches high or wide."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of two label sets of the same images about one part."""

    both: int
    """Number of images in which both found it."""
    only_first: int
    only_second: int
    median_iou: float
    """Over the images in which both found it; NaN if there are none."""
    half: float
    """Share of these images with an IoU of at least 0.5; NaN if there are none."""


def detection_rates(
    found: Found, camids: np.ndarray | None
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Share of images in which each part was found (R,): overall and by camera."""
    by_camera = {} if camids is None else {int(c): found[camids == c] for c in np.unique(camids)}
    return found.mean(axis=0), {camid: of.mean(axis=0) for camid, of in by_camera.items()}


def areas(boxes: Float[np.ndarray, "*M 4"]) -> Float[np.ndarray, " *M"]:
    """Share of the image that each box covers."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def centres(boxes: Boxes) -> Float[np.ndarray, "M R 2"]:
    """Centre (x, y) of each box."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def disordered(boxes: Boxes, found: Found, parts: Sequence[str]) -> Found:
    """Parts that violate the vertical order head, upper body, legs.

    A head below the upper body or legs above it are marked. If both apply and the head is above the
    legs, the upper body itself is marked instead. Without an upper body, head and legs are
    compared.
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
    """Pair of parts -> IoU (M,) of their boxes, NaN if one was not found."""
    return {
        (one, other): np.where(
            found[:, one] & found[:, other], iou(boxes[:, one], boxes[:, other]), np.nan
        )
        for one, other in combinations(range(found.shape[1]), 2)
    }


def duplicates(boxes: Boxes, found: Found) -> Found:
    """Parts that share their box with another part."""
    same = np.zeros_like(found)
    for (one, other), overlap in pairwise_iou(boxes, found).items():
        pair = overlap > SAME_BOX_IOU
        same[:, one] |= pair
        same[:, other] |= pair
    return same


def deviations(
    boxes: Boxes, found: Found, grid: tuple[int, int] | None = None
) -> Float[np.ndarray, "4 M R"]:
    """Distance of each of `MEASURES` from the median of the part, in robust standard deviations.

    A robust standard deviation is 1.4826 times the median absolute deviation. NaN if the part was
    not found. `grid` is (rows, columns) for boxes that enclose masks of patches.
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
    """Confidence from geometry, in 0..1; NaN if the part was not found.

    The largest deviation d (see `deviations`) gives 1 / (1 + (d / 3)^2). It is halved for a part
    that violates the vertical order, and halved for a part that shares its box.
    """
    confidences = 1 / (1 + (deviations(boxes, found, grid).max(axis=0) / HALF_CONFIDENCE_AT) ** 2)
    confidences = np.where(disordered(boxes, found, parts), confidences / 2, confidences)
    return np.where(duplicates(boxes, found), confidences / 2, confidences)


def lowest_confidence_first(confidences: Float[np.ndarray, "M R"]) -> np.ndarray:
    """Indices of images (M,), sorted by the confidence of their least confident part.

    Images without parts come last.
    """
    return np.argsort(np.nan_to_num(confidences, nan=np.inf).min(axis=1), kind="stable")


def agreement(found: Found, other_found: Found, ious: np.ndarray) -> list[Agreement]:
    """Agreement of two label sets for each part; `ious` (M, R) are used where both found it."""
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
    """Intersection over union of masks; 0 if both are empty."""
    both, either = (one & other).sum(axis=2), (one | other).sum(axis=2)
    return both / np.maximum(either, 1)


def iou(one: Float[np.ndarray, "*M 4"], other: Float[np.ndarray, "*M 4"]) -> np.ndarray:
    """Intersection over union of boxes, element-wise; 0 for empty boxes."""
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    both = sides.clip(min=0).prod(axis=-1)
    whole = areas(one) + areas(other) - both
    return np.divide(both, whole, out=np.zeros_like(both), where=whole > 0)
