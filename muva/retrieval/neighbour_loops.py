"""The loops of re-ranking, compiled: nearest neighbours of float64 cosines, sums of minima.

They let go of Python's lock: rows can be shared out among threads.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

from muva.retrieval.counting import dot


@numba.njit(cache=True, nogil=True)
@no_type_check
def keep_nearest(
    near,
    asking,
    queries,
    query_scales,
    first_column,
    answering,
    galleries,
    gallery_scales,
    error,
    images,
    cosines,
    lowest,
):
    """Takes a block's images among each row's nearest, and finds the lowest cosine of each row.

    `near` holds the block's cosines within `error`; rows and columns that are not `asking` and
    `answering` are passed over.
    """
    last = images.shape[1] - 1
    best = np.empty(last + 1, np.float32)
    for row in range(len(near)):
        if not asking[row]:
            continue
        # First what the block's own cosines rule out: exact ones take a thousand times as long.
        best[:] = cosines[row, last] - 2 * error
        least = np.float32(lowest[row])
        for column in range(near.shape[1]):
            similarity = near[row, column]
            if (similarity > best[last] or similarity < least) and answering[column]:
                least = min(least, similarity)
                place = last
                while place > 0 and similarity > best[place - 1]:
                    best[place] = best[place - 1]
                    place -= 1
                best[place] = max(best[place], similarity)
        high = np.float32(best[last] - 2 * error)
        low = np.float32(least + 2 * error)
        for column in range(near.shape[1]):
            similarity = near[row, column]
            if (low < similarity < high) or not answering[column]:
                continue
            scale = query_scales[row] * gallery_scales[column]
            exact = dot(queries[row], galleries[column]) * scale
            _insert(images[row], cosines[row], first_column + column, exact)
            lowest[row] = min(lowest[row], exact)


@numba.njit(cache=True, nogil=True)
@no_type_check
def merge_nearest(images, cosines, other_images, other_cosines):
    """Takes another's nearest images of the same rows among these."""
    for row in range(len(images)):
        for place in range(other_images.shape[1]):
            _insert(images[row], cosines[row], other_images[row, place], other_cosines[row, place])


@numba.njit(cache=True)
@no_type_check
def _insert(images, cosines, image, cosine):
    """Puts an image into its place, if it has one; equal cosines by index."""
    place = len(images)
    while place > 0 and (
        cosine > cosines[place - 1] or (cosine == cosines[place - 1] and image < images[place - 1])
    ):
        place -= 1
    for later in range(len(images) - 1, place, -1):
        images[later], cosines[later] = images[later - 1], cosines[later - 1]
    if place < len(images):
        images[place], cosines[place] = image, cosine


@numba.njit(cache=True, nogil=True)
@no_type_check
def row_shifts(start, columns, values, column_start, rows, row_values, weight, found):
    """-weight x Jaccard distance of some sparse rows and all of a matrix given by columns."""
    for row in range(len(found)):
        overlaps = np.zeros(found.shape[1])
        for entry in range(start[row], start[row + 1]):
            value = values[entry]
            for place in range(column_start[columns[entry]], column_start[columns[entry] + 1]):
                overlaps[rows[place]] += min(value, row_values[place])
        for column in range(found.shape[1]):
            found[row, column] = _shift(overlaps[column], weight)


@numba.njit(cache=True, nogil=True)
@no_type_check
def pair_shifts(
    one_start,
    one_columns,
    one_values,
    other_start,
    other_columns,
    other_values,
    one,
    other,
    weight,
    found,
):
    """The same of pairs of sparse rows whose columns ascend, bit for bit."""
    for pair in range(len(found)):
        mine, my_end = one_start[one[pair]], one_start[one[pair] + 1]
        theirs, their_end = other_start[other[pair]], other_start[other[pair] + 1]
        overlap = 0.0
        while mine < my_end and theirs < their_end:
            if one_columns[mine] == other_columns[theirs]:
                overlap += min(one_values[mine], other_values[theirs])
                mine += 1
                theirs += 1
            elif one_columns[mine] < other_columns[theirs]:
                mine += 1
            else:
                theirs += 1
        found[pair] = _shift(overlap, weight)


@numba.njit(cache=True)
@no_type_check
def _shift(overlap, weight):
    return -weight * (1 - overlap / (2 - overlap))
