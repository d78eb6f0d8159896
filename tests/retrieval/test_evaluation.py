"""CMC, mAP and mINP against a naive loop and the recorded reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muva.errors import MuvaError
from muva.retrieval import Reranking, evaluate
from muva.retrieval.reranking import reranked_distances

GOLDEN = Path(__file__).parents[1] / "golden" / "retrieval.npz"


def naive(query, gallery, *, query_own=None, ranks=(1, 5, 10, 20)):
    """Sort every row of a dense float64 distance; `query`, `gallery`: (features, pids, camids)."""
    (qf, qp, qc), (gf, gp, gc) = query, gallery
    qf, gf = (f.astype(np.float64) for f in (qf, gf))
    qf, gf = (f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (qf, gf))
    precisions, penalties, firsts = [], [], []
    for i in range(len(qf)):
        distances = ((qf[i] - gf) ** 2).sum(1)
        order = sorted(range(len(gf)), key=lambda j: (distances[j], j))
        hits = []
        for j in order:
            if gp[j] == -1:
                continue
            if qc is None and query_own is not None and query_own[i] == j:
                continue
            if qc is not None and gp[j] == qp[i] and gc[j] == qc[i]:
                continue
            hits.append(gp[j] == qp[i])
        at = [rank for rank, hit in enumerate(hits, start=1) if hit]
        if not at:
            precisions.append(np.nan)
            continue
        precisions.append(np.mean([(k + 1) / rank for k, rank in enumerate(at)]))
        penalties.append(len(at) / at[-1])
        firsts.append(at[0])
    return {
        "average_precision": np.array(precisions),
        "mean_ap": np.nanmean(precisions) if firsts else None,
        "mean_inp": np.mean(penalties) if firsts else None,
        "cmc": {rank: np.mean([f <= rank for f in firsts]) for rank in ranks} if firsts else None,
        "valid_queries": len(firsts),
    }


def assert_same(result, expected):
    assert result.valid_queries == expected["valid_queries"]
    assert result.mean_ap == pytest.approx(expected["mean_ap"], abs=1e-9)
    assert result.mean_inp == pytest.approx(expected["mean_inp"], abs=1e-9)
    assert result.cmc == pytest.approx(expected["cmc"], abs=1e-9)
    np.testing.assert_allclose(result.average_precision, expected["average_precision"], atol=1e-9)


def sides(seed, *, queries=20, gallery=90, people=8, cameras=3, width=6, coarse=False):
    rng = np.random.default_rng(seed)
    made = []
    for count in (queries, gallery):
        features = rng.standard_normal((count, width)).astype(np.float32)
        if coarse:  # few distinct directions of exactly representable length: many exact ties
            features = np.eye(width, dtype=np.float32)[rng.integers(0, width, count)]
        made.append(
            (features, rng.integers(-1, people, count), rng.integers(1, cameras + 1, count))
        )
    return made


def arguments(query, gallery) -> dict[str, Any]:
    names = ("features", "pids", "camids")
    return {f"query_{n}": v for n, v in zip(names, query, strict=True)} | {
        f"gallery_{n}": v for n, v in zip(names, gallery, strict=True)
    }


def test_golden_ranks_and_map_agree_with_the_reference_before_and_after_reranking():
    golden = np.load(GOLDEN)
    given_: dict[str, Any] = {
        f"{side}_{name}": golden[side if name == "features" else f"{side}_{name}"]
        for side in ("query", "gallery")
        for name in ("features", "pids", "camids")
    }
    plain = evaluate(**given_, ranks=range(1, 21))
    assert plain.mean_ap == pytest.approx(float(golden["mean_ap"]), abs=1e-6)
    np.testing.assert_allclose(list(plain.cmc.values()), golden["cmc"], rtol=0, atol=1e-6)
    reranked = evaluate(**given_, ranks=range(1, 21), rerank=True)
    assert reranked.mean_ap == pytest.approx(float(golden["rerank_mean_ap"]), abs=5e-4)
    one_query = 1 / reranked.valid_queries + 1e-6
    np.testing.assert_allclose(
        list(reranked.cmc.values()), golden["rerank_cmc"], atol=one_query, rtol=0
    )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 4000))
def test_any_input_scores_as_the_naive_loop_does_whatever_the_block(seed, coarse, block_bytes):
    query, gallery = sides(seed, coarse=coarse)
    result = evaluate(**arguments(query, gallery), block_bytes=block_bytes)
    assert_same(result, naive(query, gallery))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 10**6), st.booleans())
def test_without_cameras_a_query_ignores_its_own_image_only(seed, coarse):
    (qf, qp, _), (gf, gp, _) = sides(seed, coarse=coarse)
    rng = np.random.default_rng(seed)
    own = rng.permutation(len(gf))[: len(qf)]
    gf[own], gp[own] = qf, qp
    query_ids = [f"image {j}" for j in own]
    query_ids[0], own[0] = "not in the gallery", -1
    result = evaluate(
        **arguments((qf, qp, None), (gf, gp, None)),
        query_ids=query_ids,
        gallery_ids=[f"image {j}" for j in range(len(gf))],
    )
    assert_same(result, naive((qf, qp, None), (gf, gp, None), query_own=own))


def test_when_everything_ties_the_gallery_order_decides():
    features = np.tile(np.array([0.3, -1.7, 0.11], np.float32), (1001, 1))
    gallery_pids = np.zeros(1001, int)
    gallery_pids[[4, 9, 1000]] = 7
    for queries in (1, 2, 5):  # a single row uses another kernel
        result = evaluate(
            query_features=features[:queries],
            query_pids=np.full(queries, 7),
            query_camids=np.ones(queries, int),
            gallery_features=features,
            gallery_pids=gallery_pids,
            gallery_camids=np.full(1001, 2),
        )
        assert result.first_match_rank.tolist() == [5] * queries
        assert result.mean_ap == pytest.approx((1 / 5 + 2 / 10 + 3 / 1001) / 3)
        assert result.mean_inp == pytest.approx(3 / 1001)


def test_equal_gallery_images_tie_in_every_width_and_number_of_queries():
    rng = np.random.default_rng(0)
    for width in (3, 64, 512, 2048):
        gallery = np.tile(rng.standard_normal(width).astype(np.float32), (333, 1))
        for queries in (1, 2, 3, 17):
            result = evaluate(
                query_features=rng.standard_normal((queries, width)).astype(np.float32),
                query_pids=np.ones(queries, int),
                query_camids=None,
                gallery_features=gallery,
                gallery_pids=np.repeat([0, 1], [332, 1]),
                gallery_camids=None,
            )
            assert set(result.first_match_rank) == {333}, (width, queries)


def test_distractors_push_matches_down_and_junk_does_not():
    query = np.array([[1, 0]], np.float32)
    gallery = np.array([[1, 0], [1, 0.1], [1, 0.2]], np.float32)
    common: dict[str, Any] = {
        "query_features": query,
        "query_pids": [5],
        "query_camids": [1],
        "gallery_features": gallery,
        "gallery_camids": [2, 2, 2],
    }
    assert evaluate(**common, gallery_pids=[0, 0, 5]).first_match_rank.tolist() == [3]
    assert evaluate(**common, gallery_pids=[0, -1, 5]).first_match_rank.tolist() == [2]
    assert evaluate(**common, gallery_pids=[-1, -1, 5], rerank=True).first_match_rank.tolist() == [
        1
    ]


def test_reranking_with_other_settings_scores_like_its_dense_distances():
    query, gallery = sides(6, gallery=60)
    settings_ = Reranking(k1=5, k2=2, original_weight=0.5)
    result = evaluate(**arguments(query, gallery), rerank=settings_)
    kept = gallery[1] != -1
    distances = reranked_distances(query[0], gallery[0][kept], settings=settings_)
    for i in np.flatnonzero(result.first_match_rank):
        ignored = (gallery[1][kept] == query[1][i]) & (gallery[2][kept] == query[2][i])
        order = np.argsort(np.where(ignored, np.inf, distances[i]), kind="stable")
        hits = np.flatnonzero((gallery[1][kept] == query[1][i])[order][: (~ignored).sum()])
        assert result.first_match_rank[i] == hits[0] + 1
    paper = evaluate(**arguments(query, gallery), rerank=True)
    assert paper.mean_ap == evaluate(**arguments(query, gallery), rerank=Reranking()).mean_ap
    assert paper.mean_ap != result.mean_ap


@pytest.mark.parametrize("gallery_pids", [[-1, -1], [8, 9]])
def test_no_valid_query_is_an_error(gallery_pids):
    with pytest.raises(MuvaError, match="none of the 1 queries has a match"):
        evaluate(
            query_features=np.ones((1, 3), np.float32),
            query_pids=[7],
            query_camids=[1],
            gallery_features=np.ones((2, 3), np.float32),
            gallery_pids=gallery_pids,
            gallery_camids=[2, 2],
        )


def test_a_query_without_a_match_and_a_junk_query_are_left_out():
    result = evaluate(
        query_features=np.eye(3, dtype=np.float32),
        query_pids=[1, 2, -1],
        query_camids=[1, 1, 1],
        gallery_features=np.eye(3, dtype=np.float32),
        gallery_pids=[1, 2, -1],
        gallery_camids=[2, 1, 2],
    )
    assert result.valid_queries == 1
    assert np.isnan(result.average_precision).tolist() == [False, True, True]


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        lambda f: torch.from_numpy(f).double().requires_grad_(),
        lambda f: f.astype(">f4"),
        lambda f: f[::-1][::-1],
        np.asfortranarray,
        lambda f: f * 1e4,
    ],
    ids=["torch", "torch double with gradient", "big endian", "strided", "fortran", "scaled"],
)
def test_the_kind_of_array_does_not_matter(convert):
    query, gallery = sides(3)
    expected = naive(query, gallery)
    converted = [(convert(f), p, c) for f, p, c in (query, gallery)]
    assert_same(evaluate(**arguments(*converted)), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_are_read_from_memory_maps(tmp_path, dtype):
    query, gallery = ((f.astype(dtype), p, c) for f, p, c in sides(4, queries=7, gallery=9000))
    np.save(tmp_path / "gallery.npy", gallery[0])
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    result = evaluate(**arguments(query, (mapped, *gallery[1:])), block_bytes=100_000)
    assert result.mean_ap == pytest.approx(naive(query, gallery)["mean_ap"], abs=1e-6)


def test_reduced_precision_for_training_does_not_affect_the_ranking():
    query, gallery = sides(5, width=512)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert_same(evaluate(**arguments(query, gallery)), naive(query, gallery))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery_features": np.ones((3, 4), np.float32)}, "same width, found 3 and 4"),
        ({"query_features": np.full((2, 3), np.nan, np.float32)}, "query_features: 2 of 2 rows"),
        ({"gallery_features": np.ones((3, 3), int)}, "expected floating-point features"),
        ({"gallery_features": np.ones(3, np.float32)}, r"of shape \(images, width\)"),
        ({"query_pids": [1]}, r"query_pids: expected one value for each of the 2"),
        (
            {"gallery_camids": np.array([1.5, 1, 1])},
            "gallery_camids: expected integers, found float64",
        ),
        ({"query_camids": None}, "given for the gallery but not for the query"),
        (
            {"query_camids": None, "gallery_camids": None, "gallery_ids": ["a", "a", "b"]},
            "1 of 3 ids are repeated",
        ),
        (
            {
                "query_features": np.ones((0, 3), np.float32),
                "query_pids": [],
                "query_camids": [],
                "query_ids": [],
            },
            r"query_features: expected features, found shape \(0, 3\)",
        ),
    ],
)
def test_inconsistent_inputs_are_rejected_by_name(change, message):
    right: dict[str, Any] = {
        "query_features": np.ones((2, 3), np.float32),
        "query_pids": [1, 2],
        "query_camids": [1, 1],
        "query_ids": ["a", "b"],
        "gallery_features": np.ones((3, 3), np.float32),
        "gallery_pids": [1, 2, 2],
        "gallery_camids": [2, 2, 2],
        "gallery_ids": ["a", "b", "c"],
    }
    with pytest.raises(MuvaError, match=message):
        evaluate(**(right | change))
