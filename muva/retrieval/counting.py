"""The loops of exact ranking, compiled: float64 cosines of pairs, and who is nearer than whom.

They let go of Python's lock: rows can be shared out among threads.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np


@numba.njit(cache=True, fastmath={"reassoc", "contract"})
@no_type_check
def dot(one, other):
    """The float64 sum of two rows' products, in an order that hangs on their length alone."""
    total = 0.0
    for place in range(len(one)):
        total += np.float64(one[place]) * np.float64(other[place])
    return total


@numba.njit(cache=True, nogil=True)
@no_type_check
def squared_lengths(rows, found):
    """The float64 sum of each row's squares."""
    for row in range(len(rows)):
        found[row] = dot(rows[row], rows[row])


@numba.njit(cache=True, nogil=True)
@no_type_check
def cosines(queries, query_scales, asking, galleries, gallery_scales, answering, found):
    """The cosine of each pair: of the query in `asking` and the gallery image in `answering`."""
    for pair in range(len(asking)):
        query, image = asking[pair], answering[pair]
        scale = query_scales[query] * gallery_scales[image]
        found[pair] = dot(queries[query], galleries[image]) * scale


@numba.njit(cache=True, nogil=True)
@no_type_check
def count_nearer(
    near,
    errors,
    start,
    queries,
    query_scales,
    gains,
    shifts,
    first_column,
    galleries,
    gallery_scales,
    cameras,
    thresholds,
    matches,
    nearer,
):
    """Adds a block's images to `nearer`: each to the first match that it outranks, by camera.

    `near` is within `errors` of the exact closeness: the cosine, or gain x cosine + shift where
    there are `shifts`.
    """
    shifted = len(shifts) > 0
    for row in range(len(near)):
        first, last = start[row], start[row + 1]
        if first == last:
            continue
        error = errors[row]
        lowest = np.float32(thresholds[last - 1] - 2 * error)
        for column in range(near.shape[1]):
            similarity = near[row, column]
            if similarity < lowest:
                continue
            sure = _first_below(thresholds, first, last, similarity + error)
            place = _first_below(thresholds, first, last, similarity - error)
            if sure != place:
                scale = query_scales[row] * gallery_scales[column]
                exact = dot(queries[row], galleries[column]) * scale
                if shifted:
                    exact = exact * gains[row] + shifts[row, column]
                place = sure
                while place < last and (
                    thresholds[place] > exact
                    or (thresholds[place] == exact and matches[place] <= first_column + column)
                ):
                    place += 1
            if place < last:
                nearer[place, cameras[column]] += 1


@numba.njit(cache=True)
@no_type_check
def _first_below(thresholds, first, last, value):
    """The first place of a falling row whose threshold is below the value."""
    while first < last:
        middle = (first + last) // 2
        if thresholds[middle] < value:
            last = middle
        else:
            first = middle + 1
    return first
