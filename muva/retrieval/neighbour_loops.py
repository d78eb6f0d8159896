"""Compiled loops for re-ranking: nearest neighbours by float64 cosines, and sums of minima.

They release the GIL, so rows can be distributed over threads.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from muva.compiled import compiled
from muva.retrieval.counting import dot


@compiled(nogil=True)
@no_type_check
def keep_nearest(
    near,
    query_included,
    queries,
    query_scales,
    first_column,
    gallery_included,
    galleries,
    gallery_scales,
    error,
    images,
    cosines,
    lowest,
):
    """Adds the images of a block to each row's nearest, and updates each row's lowest cosine.

    `near` holds the cosines of the block, within `error`. Rows and columns that are not in
    `query_included` and `gallery_included` are skipped.
    """
    last = images.shape[1] - 1
    best = np.empty(last + 1, np.float32)
    for row in range(len(near)):
        if not query_included[row]:
            continue
        # Use the block's cosines to rule out most images: exact ones are a thousand times slower.
        best[:] = cosines[row, last] - 2 * error
        lowest_seen = np.float32(lowest[row])
        for column in range(near.shape[1]):
            similarity = near[row, column]
            if (similarity > best[last] or similarity < lowest_seen) and gallery_included[column]:
                lowest_seen = min(lowest_seen, similarity)
                position = last
                while position > 0 and similarity > best[position - 1]:
                    best[position] = best[position - 1]
                    position -= 1
                best[position] = max(best[position], similarity)
        high = np.float32(best[last] - 2 * error)
        low = np.float32(lowest_seen + 2 * error)
        for column in range(near.shape[1]):
            similarity = near[row, column]
            if (low < similarity < high) or not gallery_included[column]:
                continue
            scale = query_scales[row] * gallery_scales[column]
            exact = dot(queries[row], galleries[column]) * scale
            _insert(images[row], cosines[row], first_column + column, exact)
            lowest[row] = min(lowest[row], exact)


@compiled(nogil=True)
@no_type_check
def merge_nearest(images, cosines, other_images, other_cosines):
    """Merges the nearest images of the same rows from elsewhere into these."""
    for row in range(len(images)):
        for position in range(other_images.shape[1]):
            _insert(
                images[row], cosines[row], other_images[row, position], other_cosines[row, position]
            )


@compiled()
@no_type_check
def _insert(images, cosines, image, cosine):
    """Inserts an image at its rank, if it has one; ties are broken by index."""
    position = len(images)
    while position > 0 and (
        cosine > cosines[position - 1]
        or (cosine == cosines[position - 1] and image < images[position - 1])
    ):
        position -= 1
    for later in range(len(images) - 1, position, -1):
        images[later], cosines[later] = images[later - 1], cosines[later - 1]
    if position < len(images):
        images[position], cosines[position] = image, cosine


@compiled(nogil=True)
@no_type_check
def row_jaccard_offsets(start, columns, values, column_start, rows, row_values, weight, out):
    """-weight x Jaccard distance between sparse rows and all columns of a CSC matrix."""
    for row in range(len(out)):
        overlaps = np.zeros(out.shape[1])
        for entry in range(start[row], start[row + 1]):
            value = values[entry]
            for position in range(column_start[columns[entry]], column_start[columns[entry] + 1]):
                overlaps[rows[position]] += min(value, row_values[position])
        for column in range(out.shape[1]):
            out[row, column] = _jaccard_offset(overlaps[column], weight)


@compiled(nogil=True)
@no_type_check
def pair_jaccard_offsets(
    one_start,
    one_columns,
    one_values,
    other_start,
    other_columns,
    other_values,
    one,
    other,
    weight,
    out,
):
    """The same for pairs of sparse rows with sorted columns, bitwise equal."""
    for pair in range(len(out)):
        one_entry, one_end = one_start[one[pair]], one_start[one[pair] + 1]
        other_entry, other_end = other_start[other[pair]], other_start[other[pair] + 1]
        overlap = 0.0
        while one_entry < one_end and other_entry < other_end:
            if one_columns[one_entry] == other_columns[other_entry]:
                overlap += min(one_values[one_entry], other_values[other_entry])
                one_entry += 1
                other_entry += 1
            elif one_columns[one_entry] < other_columns[other_entry]:
                one_entry += 1
            else:
                other_entry += 1
        out[pair] = _jaccard_offset(overlap, weight)


@compiled()
@no_type_check
def _jaccard_offset(overlap, weight):
    return -weight * (1 - overlap / (2 - overlap))
