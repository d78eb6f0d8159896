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
    for position in range(len(one)):
        total += np.float64(one[position]) * np.float64(other[position])
    return total


@numba.njit(cache=True, nogil=True)
@no_type_check
def squared_lengths(rows, out):
    """The float64 sum of each row's squares."""
    for row in range(len(rows)):
        out[row] = dot(rows[row], rows[row])


@numba.njit(cache=True, nogil=True)
@no_type_check
def cosines(queries, query_scales, query_of_pair, galleries, gallery_scales, image_of_pair, out):
    """The cosine of each pair: of the query in `query_of_pair` and the gallery image in `image_of_pair`."""
    for pair in range(len(query_of_pair)):
        query, image = query_of_pair[pair], image_of_pair[pair]
        scale = query_scales[query] * gallery_scales[image]
        out[pair] = dot(queries[query], galleries[image]) * scale


@numba.njit(cache=True, nogil=True)
@no_type_check
def count_nearer(
    near,
    errors,
    start,
    queries,
    query_scales,
    gains,
    offsets,
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
    there are `offsets`.
    """
    rescored = len(offsets) > 0
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
            certain = _first_below(thresholds, first, last, similarity + error)
            position = _first_below(thresholds, first, last, similarity - error)
            if certain != position:
                scale = query_scales[row] * gallery_scales[column]
                exact = dot(queries[row], galleries[column]) * scale
                if rescored:
                    exact = exact * gains[row] + offsets[row, column]
                position = certain
                while position < last and (
                    thresholds[position] > exact
                    or (
                        thresholds[position] == exact and matches[position] <= first_column + column
                    )
                ):
                    position += 1
            if position < last:
                nearer[position, cameras[column]] += 1


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
