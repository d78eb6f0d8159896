"""Ranks of matches by counting equal those of float64 cosines, however they are computed."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muva.retrieval.camera_rule import CameraRule, checked_rule
from muva.retrieval.match_ranks import (
    FeatureChunk,
    Thresholds,
    count_nearer_in_chunk,
    matching_and_ignored_pairs,
    pair_similarities,
)
from muva.retrieval.verification import ranks_and_verification


def rule_of(queries: int, gallery: int, *, people: int, seed: int) -> CameraRule:
    rng = np.random.default_rng(seed)
    return checked_rule(
        query_pids=rng.integers(-1, people, queries),
        query_camids=rng.integers(0, 3, queries),
        gallery_pids=rng.integers(-1, people, gallery),
        gallery_camids=rng.integers(0, 3, gallery),
        queries=queries,
        gallery=gallery,
    )


def naive(
    query: np.ndarray, gallery: np.ndarray, rule: CameraRule, *, left_out: Sequence[int] = ()
) -> list[list[int]]:
    """Sort all images that count by float64 cosine, then by index."""
    query, gallery = (f.astype(np.float64) for f in (query, gallery))
    ranks = []
    for index, row in enumerate(query):
        matches, ignored = rule.matches_and_ignored(index)
        # Sum in the same order for all rows, so that equal rows have equal sums.
        cosines = np.array([(row * other).sum() / np.sqrt((other**2).sum()) for other in gallery])
        out = {*ignored.tolist(), *rule.junk.tolist(), *left_out}
        order = sorted(
            (j for j in range(len(gallery)) if j not in out), key=lambda j: (-cosines[j], j)
        )
        ranks.append([rank for rank, j in enumerate(order, start=1) if j in set(matches.tolist())])
    return ranks


def almost_equal(seed: int, *, queries: int, gallery: int, width: int) -> list[np.ndarray]:
    """Gallery features that float32 products cannot distinguish: one last bit differs."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((3, width)).astype(np.float32)[rng.integers(0, 3, gallery)]
    at = np.arange(gallery), rng.integers(0, width, gallery)
    up = np.nextafter(rows[at], np.float32(np.inf))
    rows[at] = np.where(rng.random(gallery) < 0.6, up, rows[at])
    return [rng.standard_normal((queries, width)).astype(np.float32), rows]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    width=st.sampled_from([3, 17, 300]),
    block_bytes=st.integers(1, 200_000),
)
def test_images_that_float32_cannot_distinguish_rank_as_in_float64(seed, width, block_bytes):
    query, gallery = almost_equal(seed, queries=9, gallery=60, width=width)
    rule = rule_of(9, 60, people=5, seed=seed)
    found, _ = ranks_and_verification(query, gallery, rule, block_bytes=block_bytes)
    assert [found.of(index).tolist() for index in range(9)] == naive(query, gallery, rule)
    for camera in range(rule.camera_count):
        elsewhere = np.flatnonzero(rule.cameras != camera)
        alone = naive(query, gallery, rule, left_out=elsewhere.tolist())
        here = found.cameras == camera
        within = [
            found.within[first:last][here[first:last]].tolist()
            for first, last in pairwise(found.start)
        ]
        assert within == alone


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10**6), cuts=st.sets(st.integers(1, 79), max_size=6))
def test_counts_of_chunks_add_up_to_those_of_the_gallery_in_any_order(seed, cuts):
    query, gallery = almost_equal(seed, queries=11, gallery=80, width=20)
    rule = rule_of(11, 80, people=6, seed=seed)
    matches, ignored = matching_and_ignored_pairs(rule, 11)
    queries = FeatureChunk(query, "query_features")
    edges = [0, *sorted(cuts), 80]
    chunks = [
        FeatureChunk(gallery[first:last], "gallery_features", first=first)
        for first, last in pairwise(edges)
    ]
    similarities = np.concatenate(
        [
            pair_similarities(
                queries,
                chunk,
                matches.select(
                    (matches.gallery >= chunk.first) & (matches.gallery < chunk.first + len(chunk))
                ),
            )
            for chunk in chunks
        ]
    )
    thresholds = Thresholds.of(matches, similarities, queries=11)
    shuffled = [chunks[i] for i in np.random.default_rng(seed).permutation(len(chunks))]
    counted = [
        count_nearer_in_chunk(queries, chunk, thresholds, ignored=ignored, rule=rule)
        for chunk in shuffled
    ]
    whole, _ = ranks_and_verification(query, gallery, rule)
    summed = thresholds.ranks(np.sum(counted, axis=0), rule)
    assert np.array_equal(summed.ranks, whole.ranks)
    assert np.array_equal(summed.within, whole.within)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 64])
def test_equal_images_tie_wherever_a_product_puts_them(rows):
    rng = np.random.default_rng(rows)
    query = rng.standard_normal((rows, 2048)).astype(np.float32)
    one = rng.standard_normal(2048).astype(np.float32)
    gallery = np.tile(one, (777, 1)) * 2.0 ** rng.integers(-3, 4, (777, 1)).astype(np.float32)
    at = rng.permutation(777)[: 2 * rows]
    query_pids, gallery_pids = np.arange(rows) + 1, np.zeros(777, np.int64)
    gallery_pids[at] = np.repeat(query_pids, 2)
    rule = checked_rule(
        query_pids=query_pids,
        query_camids=np.zeros(rows, np.int64),
        gallery_pids=gallery_pids,
        gallery_camids=np.ones(777, np.int64),
        queries=rows,
        gallery=777,
    )
    found, _ = ranks_and_verification(query, gallery, rule, block_bytes=40_000)
    for index in range(rows):
        assert found.of(index).tolist() == (np.sort(at[2 * index : 2 * index + 2]) + 1).tolist()


def test_progress_counts_gallery_images_up_to_all_of_them():
    query, gallery = almost_equal(0, queries=9, gallery=60, width=17)
    calls = []
    ranks_and_verification(
        query,
        gallery,
        rule_of(9, 60, people=5, seed=0),
        block_bytes=1000,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert len(calls) > 3
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
