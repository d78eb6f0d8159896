"""Compiled loops for exact ranking: float64 cosines of pairs, and counts of nearer images.

They release the GIL, so rows can be distributed over threads.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from muva.compiled import compiled


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def dot(one, other):
    """Dot product of two rows in float64; the order of summation depends only on their length."""
    total = 0.0
    for position in range(len(one)):
        total += np.float64(one[position]) * np.float64(other[position])
    return total


@compiled(fastmath={"reassoc", "contract"})
@no_type_check
def float32_dot(one, other):
    """Dot product of two rows of float32, in float32."""
    total = np.float32(0)
    for position in range(len(one)):
        total += one[position] * other[position]
    return total


@compiled(nogil=True)
@no_type_check
def squared_lengths(rows, out):
    """The squared length of each row in float64."""
    for row in range(len(rows)):
        out[row] = dot(rows[row], rows[row])


@compiled(nogil=True)
@no_type_check
def cosines(queries, query_scales, query_of_pair, galleries, gallery_scales, image_of_pair, out):
    """The cosine of each pair of a query and a gallery image."""
    for pair in range(len(query_of_pair)):
        query, image = query_of_pair[pair], image_of_pair[pair]
        scale = query_scales[query] * gallery_scales[image]
        out[pair] = dot(queries[query], galleries[image]) * scale


@compiled(nogil=True)
@no_type_check
def count_nearer(
    near,
    errors,
    relative_error,
    float32_error,
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
    """Adds each image of a block to `nearer`, at the first match that it outranks, by camera.

    `near` differs from the exact similarity by at most `errors` + `relative_error` x |near|. The
    similarity is the cosine, or gain x cosine + offset if there are `offsets`. Where that leaves
    the rank in doubt, the cosine is computed in float32, unless its `float32_error` is 0, and where
    it is still in doubt, in float64. Returns how many were in doubt.
    """
    rescored = len(offsets) > 0
    doubtful = 0
    candidates = np.empty(near.shape[1], np.int64)
    for row in range(len(near)):
        first, last = start[row], start[row + 1]
        if first == last:
            continue
        lowest = np.float32(thresholds[last - 1] - 2 * (errors[row] + relative_error))
        count = 0
        for column in range(near.shape[1]):  # without a branch, so that it costs next to nothing
            candidates[count] = column
            count += near[row, column] >= lowest
        for candidate in range(count):
            column = candidates[candidate]
            similarity = near[row, column]
            error = errors[row] + relative_error * abs(similarity)
            certain = _first_below(thresholds, first, last, similarity + error)
            position = _first_below(thresholds, certain, last, similarity - error)
            if certain != position:
                doubtful += 1
                scale = query_scales[row] * gallery_scales[column]
                if float32_error > 0:
                    close = float32_dot(queries[row], galleries[column]) * scale
                    certain = _first_below(thresholds, certain, position, close + float32_error)
                    position = _first_below(thresholds, certain, position, close - float32_error)
            if certain != position:
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
    return doubtful


@compiled()
@no_type_check
def _first_below(thresholds, first, last, value):
    """First index of a descending row whose threshold is below the value."""
    while first < last:
        middle = (first + last) // 2
        if thresholds[middle] < value:
            last = middle
        else:
            first = middle + 1
    return first
