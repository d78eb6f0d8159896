"""k-reciprocal re-ranking and distances against the dense definition and the recorded reference."""

from pathlib import Path

import numpy as np
import pytest

from muva.retrieval.distances import squared_distances
from muva.retrieval.reranking import reranked_blocks, reranked_distances

GOLDEN = Path(__file__).parents[1] / "golden" / "retrieval.npz"


def dense(query, gallery, *, k1, k2, original_weight):
    """The definition word for word, on full matrices in float64."""
    everyone = np.concatenate([query, gallery]).astype(np.float64)
    everyone /= np.linalg.norm(everyone, axis=1, keepdims=True)
    o = np.maximum(2 - 2 * everyone @ everyone.T, 0)
    o /= o.max(axis=1, keepdims=True)
    order = np.argsort(np.round(o, 12), axis=1, kind="stable")

    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    total = len(everyone)
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


@pytest.mark.parametrize("k1, k2", [(20, 6), (7, 1), (5, 3), (3, 6), (500, 6)])
@pytest.mark.parametrize("block_bytes", [100, 10**6])
def test_sparse_blocks_equal_the_dense_definition(k1, k2, block_bytes):
    query, gallery = clusters(1, 15), clusters(2, 70)
    blocks = reranked_blocks(query, gallery, k1=k1, k2=k2, block_bytes=block_bytes)
    found = np.concatenate([block.copy() for _, block in blocks])
    expected = dense(query, gallery, k1=k1, k2=k2, original_weight=0.3)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_equal_images_keep_the_order_of_their_indices():
    query, gallery = clusters(1, 4), np.repeat(clusters(2, 20), 3, axis=0)
    found = reranked_distances(query, gallery, k1=8, k2=4)
    expected = dense(query, gallery, k1=8, k2=4, original_weight=0.3)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_junk_takes_no_part():
    query, gallery = clusters(1, 5), clusters(2, 40)
    junk = np.array([0, 7, 39])
    kept = np.setdiff1d(np.arange(40), junk)
    (_, block), *_ = reranked_blocks(query, gallery, left_out=junk)
    assert np.isinf(block[:, junk]).all()
    np.testing.assert_array_equal(block[:, kept], reranked_distances(query, gallery[kept]))


def test_golden_distances_agree_before_and_after_reranking():
    golden = np.load(GOLDEN)
    gallery = golden["gallery"][golden["gallery_pids"] != -1]
    plain = squared_distances(golden["query"], gallery).numpy()
    assert np.abs(plain - golden["distance"]).max() <= 2e-5 * np.abs(golden["distance"]).max()
    reranked = reranked_distances(
        golden["query"],
        gallery,
        k1=int(golden["rerank_k1"]),
        k2=int(golden["rerank_k2"]),
        original_weight=float(golden["rerank_lambda"]),
    )
    np.testing.assert_allclose(reranked, golden["rerank_distance"], rtol=0, atol=2e-3)
