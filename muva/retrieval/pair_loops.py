"""A compiled loop over the cosines of queries and images of other people, for verification.

It releases the GIL, so queries can be distributed over threads, all of one group to the same.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from muva.compiled import compiled
from muva.retrieval.counting import dot


@compiled(nogil=True)
@no_type_check
def count_impostors(
    near,
    error,
    order,
    position,
    groups,
    query_pids,
    queries,
    query_scales,
    gallery_pids,
    enrolled,
    galleries,
    gallery_scales,
    low,
    high,
    histogram,
    above,
    nearest,
    values,
    bands,
):
    """Counts the pairs of different people in a block, from `order[position]` on.

    `near` differs from the exact cosine by at most `error`, and is -inf for pairs that do not
    count. Each pair is added to the `histogram` of the query's group, and to `above` for the
    bands that it lies above; the exact cosines of those within a band go to `values`, and the band
    to `bands`. `nearest` becomes the highest exact cosine of each query with an enrolled image.

    Returns the position to go on from, which is the end unless `values` is full, and how many
    values it has written.
    """
    columns, cells = near.shape[1], histogram.shape[1]
    found = 0
    while position < len(order) and found + columns <= len(values):
        row = order[position]
        position += 1
        group = groups[row]
        if group < 0:
            continue
        for column in range(columns):
            cosine = near[row, column]
            if cosine == -np.inf or gallery_pids[column] == query_pids[row]:
                continue
            cell = int((cosine + np.float32(1)) * np.float32(0.5 * cells))
            histogram[group, min(max(cell, 0), cells - 1)] += 1
            exact = np.nan
            if enrolled[column] and cosine + error > nearest[row]:
                exact = dot(queries[row], galleries[column]) * (
                    query_scales[row] * gallery_scales[column]
                )
                nearest[row] = max(nearest[row], exact)
            for band in range(len(low)):
                if cosine < low[band]:
                    break  # bands are sorted
                if cosine > high[band]:
                    above[band] += 1
                    continue
                if np.isnan(exact):
                    exact = dot(queries[row], galleries[column]) * (
                        query_scales[row] * gallery_scales[column]
                    )
                values[found], bands[found] = exact, band
                found += 1
    return position, found
