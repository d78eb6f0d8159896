"""Camera pairs and confidence intervals against naive loops and known distributions."""

from typing import Any

import numpy as np
import pytest

from muva.retrieval import evaluate
from muva.retrieval.distances import squared_distances
from muva.retrieval.metrics import bootstrap_interval
from muva.retrieval.reranking import reranked_distances
from muva.retrieval.results import MIN_IDENTITIES


def crowd(seed: int, *, people: int = 12, cameras: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    arguments: dict[str, Any] = {}
    for side, count in (("query", 40), ("gallery", 150)):
        pids = rng.integers(0, people, count)
        centres = np.random.default_rng(5).standard_normal((people, 8))
        features = centres[pids] + 1.5 * rng.standard_normal((count, 8))
        arguments |= {
            f"{side}_features": features.astype(np.float32),
            f"{side}_pids": pids,
            f"{side}_camids": 10 * rng.integers(1, cameras + 1, count),
        }
    return arguments


@pytest.mark.parametrize(
    ("rerank", "distances"),
    [(False, lambda q, g: squared_distances(q, g).numpy()), (True, reranked_distances)],
)
def test_a_camera_pair_is_ranked_as_if_there_were_no_other_cameras(rerank, distances):
    arguments = crowd(0)
    query_camids, gallery_camids = arguments["query_camids"], arguments["gallery_camids"]
    dense = distances(arguments["query_features"], arguments["gallery_features"])
    found = evaluate(**arguments, rerank=rerank)
    assert {pair.query_camid for pair in found.camera_pairs} == {10, 20, 30}
    assert len(found.camera_pairs) == 6  # within one camera everything is ignored
    for pair in found.camera_pairs:
        images = np.flatnonzero(gallery_camids == pair.gallery_camid)
        precisions, firsts = [], []
        for query in np.flatnonzero(query_camids == pair.query_camid):
            order = images[np.argsort(dense[query, images], kind="stable")]
            same = arguments["gallery_pids"][order] == arguments["query_pids"][query]
            hits = np.flatnonzero(same) + 1
            if len(hits):
                precisions.append(np.mean(np.arange(1, len(hits) + 1) / hits))
                firsts.append(hits[0] == 1)
        assert pair.mean_ap == pytest.approx(np.mean(precisions), abs=1e-12)
        assert pair.rank1 == pytest.approx(np.mean(firsts), abs=1e-12)
        assert pair.queries == len(precisions)


def test_unknown_cameras_give_no_camera_pairs():
    arguments: dict[str, Any] = crowd(0) | {"query_camids": None, "gallery_camids": None}
    assert evaluate(**arguments).camera_pairs == ()


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution_for_many_groups():
    rng = np.random.default_rng(0)
    values = rng.random(4000)
    found = bootstrap_interval(values, np.arange(4000))
    assert found is not None
    error = 1.96 * values.std() / np.sqrt(4000)
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)
    assert bootstrap_interval(values, np.arange(4000)) == found


def test_queries_of_one_person_are_resampled_together():
    person = np.repeat(np.arange(50), 40)
    values = np.random.default_rng(1).random(50)[person]
    together = bootstrap_interval(values, person)
    alone = bootstrap_interval(values, np.arange(len(values)))
    assert together is not None and alone is not None
    assert together.high - together.low == pytest.approx(
        np.sqrt(40) * (alone.high - alone.low), rel=0.15
    )


def test_few_identities_give_no_interval():
    person = np.repeat(np.arange(MIN_IDENTITIES), 5)
    values = np.random.default_rng(2).random(len(person))
    assert bootstrap_interval(values, person) is not None
    few = person < MIN_IDENTITIES - 1
    assert bootstrap_interval(values[few], person[few]) is None
    assert bootstrap_interval(np.ones(1), np.zeros(1)) is None


def test_one_valid_query_of_many_is_counted_and_gives_no_interval():
    pids, camids = np.repeat(np.arange(1, 13), 2), np.tile([1, 2], 12)
    features = np.eye(12, dtype=np.float32)[pids - 1]
    found = evaluate(
        query_features=features,
        query_pids=pids,
        query_camids=camids,
        gallery_features=features[:1],
        gallery_pids=pids[:1],
        gallery_camids=camids[:1],
    )
    assert (found.valid_queries, len(pids), found.mean_ap) == (1, 24, 1.0)
    assert (found.mean_ap_interval, found.rank1_interval) == (None, None)


def test_the_interval_contains_the_metric_and_is_reported_with_it():
    found = evaluate(**crowd(3))
    assert found.mean_ap_interval is not None and found.rank1_interval is not None
    assert found.mean_ap_interval.low < found.mean_ap < found.mean_ap_interval.high
    assert found.rank1_interval.low <= found.cmc[1] <= found.rank1_interval.high
