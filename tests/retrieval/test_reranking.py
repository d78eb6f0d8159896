"""k-reciprocal re-ranking compared with the dense definition and the recorded reference."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muva.retrieval import Reranking, evaluate
from muva.retrieval.distances import squared_distances
from muva.retrieval.match_ranks import FeatureChunk
from muva.retrieval.nearest import NearestNeighbours, compare_chunks
from muva.retrieval.reranking import compute_encodings, reranked_blocks, reranked_distances

GOLDEN = Path(__file__).parents[1] / "golden" / "retrieval.npz"


def dense(query, gallery, *, k1, k2, original_weight):
    """The definition, taken literally, on full matrices in float64."""
    features = np.concatenate([query, gallery]).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    o = np.maximum(2 - 2 * features @ features.T, 0)
    o /= o.max(axis=1, keepdims=True)
    order = np.argsort(np.round(o, 12), axis=1, kind="stable")

    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    total = len(features)
    v = np.zeros((total, total))
    for i in range(total):
        near = reciprocal(i, k1)
        members = set(near)
        for candidate in near:
            nearer = reciprocal(candidate, round(k1 / 2))
            if len(nearer & near) > 2 / 3 * len(nearer):
                members |= nearer
        chosen = sorted(members)
        v[i, chosen] = np.exp(-o[i, chosen])
        v[i] /= v[i].sum()
    v = np.stack([v[order[i, :k2]].mean(axis=0) for i in range(total)])
    s = np.minimum(v[: len(query), None], v[None, len(query) :]).sum(axis=2)
    jaccard = 1 - s / (2 - s)
    return (1 - original_weight) * jaccard + original_weight * o[: len(query), len(query) :]


def clusters(seed, count, *, people=6, width=8):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((people, width))
    noise = rng.standard_normal((count, width))
    return (centres[rng.integers(0, people, count)] + 0.6 * noise).astype(np.float32)


SETTINGS = [
    Reranking(k1=k1, k2=k2) for k1, k2 in [(20, 6), (7, 1), (5, 3), (3, 6), (500, 6), (12, 20)]
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.k1}-{s.k2}")
def test_sparse_distances_equal_the_dense_definition(settings):
    query, gallery = clusters(1, 15), clusters(2, 70)
    found = reranked_distances(query, gallery, settings=settings)
    expected = dense(query, gallery, k1=settings.k1, k2=settings.k2, original_weight=0.3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_equal_images_keep_the_order_of_their_indices():
    query, gallery = clusters(1, 4), np.repeat(clusters(2, 20), 3, axis=0)
    found = reranked_distances(query, gallery, settings=Reranking(k1=8, k2=4))
    expected = dense(query, gallery, k1=8, k2=4, original_weight=0.3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_images_that_are_all_alike_tie():
    alike = np.ones((50, 7), np.float32)
    found = reranked_distances(alike[:3], alike)
    assert np.isfinite(found).all()
    # The first images fill all neighbourhoods, so only they are each other's neighbours.
    assert (np.diff(found[:, 18:]) == 0).all()


def random_inputs(query, gallery, *, seed):
    rng = np.random.default_rng(seed)
    return {
        "query_features": query,
        "query_pids": rng.integers(0, 6, len(query)),
        "query_camids": np.zeros(len(query), int),
        "gallery_features": gallery,
        "gallery_pids": rng.integers(-1, 6, len(gallery)),
        "gallery_camids": rng.integers(0, 3, len(gallery)),
    }


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-1]], ids=lambda s: f"{s.k1}-{s.k2}")
def test_ranks_do_not_depend_on_blocks_even_if_float32_cannot_distinguish_images(settings):
    rng = np.random.default_rng(settings.k1)
    query, gallery = clusters(3, 21, width=40), clusters(4, 160, width=40)
    gallery[80:] = gallery[:80]
    at = np.arange(80, 160), rng.integers(0, 40, 80)
    gallery[at] = np.where(rng.random(80) < 0.5, np.nextafter(gallery[at], 9), gallery[at])
    inputs = random_inputs(query, gallery, seed=5)
    first, *others = [
        evaluate(**inputs, rerank=settings, block_bytes=size) for size in (3000, 40_000, 10**8)
    ]
    for other in others:
        np.testing.assert_array_equal(other.average_precision, first.average_precision)
        np.testing.assert_array_equal(other.first_match_rank, first.first_match_rank)
        assert other.camera_pairs == first.camera_pairs


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.k1}-{s.k2}")
def test_precisions_are_those_of_the_dense_distances(settings):
    query, gallery = clusters(3, 21), clusters(4, 160)
    inputs = random_inputs(query, gallery, seed=5)
    kept = np.flatnonzero(inputs["gallery_pids"] != -1)
    distances = dense(query, gallery[kept], k1=settings.k1, k2=settings.k2, original_weight=0.3)
    precisions = []
    for index, row in enumerate(distances):
        same = inputs["gallery_pids"][kept] == inputs["query_pids"][index]
        counts = ~(same & (inputs["gallery_camids"][kept] == 0))
        hits = np.flatnonzero(same[counts][np.argsort(row[counts])]) + 1
        precisions.append(np.mean(np.arange(1, len(hits) + 1) / hits))
    found = evaluate(**inputs, rerank=settings, block_bytes=30_000)
    np.testing.assert_allclose(found.average_precision, precisions, atol=1e-6)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    cut=st.integers(1, 59),
    count=st.sampled_from([1, 4, 60]),
    block_bytes=st.integers(40, 20_000),
)
def test_neighbours_are_those_of_float64_cosines(seed, cut, count, block_bytes):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((5, 9)).astype(np.float32)[rng.integers(0, 5, 60)]
    rows[rng.random(60) < 0.5, 3] += np.float32(1e-7)
    counts = rng.random(60) < 0.9
    nearest = NearestNeighbours.empty(60, count=count)
    one = FeatureChunk(rows[:cut], "query_features")
    other = FeatureChunk(rows[cut:], "gallery_features", first=cut)
    parts = [NearestNeighbours.empty(len(side), count=count) for side in (one, one, other, other)]
    shared = {"included": counts, "block_bytes": block_bytes}
    compare_chunks(one, one, found_for_one=parts[0], found_for_other=parts[0], **shared)
    compare_chunks(one, other, found_for_one=parts[1], found_for_other=parts[2], **shared)
    compare_chunks(other, other, found_for_one=parts[3], found_for_other=parts[3], **shared)
    for side, found in zip((one, one, other, other), parts, strict=True):
        nearest.rows(side.image_range).merge(found)
    exact = rows.astype(np.float64)
    cosines = np.array([[(a * b).sum() for b in exact] for a in exact])
    lengths = np.sqrt(np.diag(cosines))
    cosines = cosines * np.outer(1 / lengths, 1 / lengths)
    for image in np.flatnonzero(counts):
        others = np.flatnonzero(counts)
        order = others[np.argsort(-cosines[image, others], kind="stable")][:count]
        assert nearest.images[image, : len(order)].tolist() == order.tolist()
        assert (nearest.images[image, len(order) :] == NearestNeighbours.NONE).all()
        assert nearest.lowest[image] == pytest.approx(cosines[image, others].min(), abs=1e-15)


def test_junk_takes_no_part():
    query, gallery = clusters(1, 5), clusters(2, 40)
    junk = np.array([0, 7, 39])
    kept = np.setdiff1d(np.arange(40), junk)
    encodings = compute_encodings(query, gallery, excluded=junk, settings=Reranking())
    (_, block), *_ = reranked_blocks(query, gallery, encodings)
    np.testing.assert_array_equal(block[:, kept], reranked_distances(query, gallery[kept]))


def test_golden_distances_agree_before_and_after_reranking():
    golden = np.load(GOLDEN)
    gallery = golden["gallery"][golden["gallery_pids"] != -1]
    plain = squared_distances(golden["query"], gallery).numpy()
    assert np.abs(plain - golden["distance"]).max() <= 2e-5 * np.abs(golden["distance"]).max()
    settings = Reranking(
        k1=int(golden["rerank_k1"]),
        k2=int(golden["rerank_k2"]),
        original_weight=float(golden["rerank_lambda"]),
    )
    reranked = reranked_distances(golden["query"], gallery, settings=settings)
    np.testing.assert_allclose(reranked, golden["rerank_distance"], rtol=0, atol=2e-3)
