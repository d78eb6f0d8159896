"""Rates of false and true accepts equal those of scikit-learn, however the pairs are counted."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from muva.retrieval import evaluate
from muva.retrieval import verification as module
from muva.retrieval.camera_rule import CameraRule, checked_rule
from muva.retrieval.results import Verification, rate_name, tar_name
from muva.retrieval.verification import (
    FALSE_ACCEPT_RATES,
    FALSE_ALARM_RATES,
    ranks_and_verification,
)


def people(
    *, queries: int, gallery: int, people: int, noise: float, seed: int, width: int = 24
) -> tuple[np.ndarray, np.ndarray, CameraRule]:
    """Features around the direction of each person, of three cameras; some images are junk."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((people, width))
    sides = []
    labels = {}
    for side, count in (("query", queries), ("gallery", gallery)):
        pids = rng.integers(-1, people, count)
        features = directions[pids] + noise * rng.standard_normal((count, width))
        sides.append(features.astype(np.float32))
        labels |= {f"{side}_pids": pids, f"{side}_camids": rng.integers(0, 3, count)}
    return *sides, checked_rule(**labels, queries=queries, gallery=gallery)


def naive_pairs(
    query: np.ndarray, gallery: np.ndarray, rule: CameraRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs that count: cosine in float64, whether genuine, query and gallery image."""
    query, gallery = (
        f / np.linalg.norm(f, axis=1, keepdims=True)
        for f in (query.astype(np.float64), gallery.astype(np.float64))
    )
    cosines = query @ gallery.T
    rows = []
    for index in range(len(query)):
        matches, ignored = rule.matches_and_ignored(index)
        if not len(matches):
            continue
        others = np.setdiff1d(np.arange(len(gallery)), [*ignored, *rule.junk])
        rows += [(cosines[index, other], other in matches, index, other) for other in others]
    values, genuine, queries, images = (np.array(column) for column in zip(*rows, strict=True))
    return values, genuine, queries, images


def check_rates(found: Verification, cosines: np.ndarray, genuine: np.ndarray) -> None:
    """Compare with scikit-learn's ROC of all pairs."""
    far, tar, _ = roc_curve(genuine, cosines, drop_intermediate=False)
    impostors = int((~genuine).sum())
    assert (found.genuine_pairs, found.impostor_pairs) == (int(genuine.sum()), impostors)
    assert set(found.tar) == {rate for rate in FALSE_ACCEPT_RATES if rate * impostors >= 1}
    for rate, value in found.tar.items():
        assert value == pytest.approx(tar[far <= rate + 1e-12].max(), abs=1e-12)
        accepted = cosines > found.thresholds[rate] + 1e-12
        assert np.mean(accepted[genuine]) == pytest.approx(value, abs=1e-12)
        assert accepted[~genuine].sum() == math.floor(rate * impostors + 1e-9)
    assert found.eer == pytest.approx(
        brentq(lambda x: 1 - x - np.interp(x, far, tar), 0, 1, xtol=1e-12), abs=1e-9
    )


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.1, 1.0, 3.0]),
    block_bytes=st.sampled_from([600, 3_000, 10**6]),
)
def test_rates_equal_scikit_learn_for_any_blocks(seed: int, noise: float, block_bytes: int) -> None:
    query, gallery, rule = people(queries=30, gallery=150, people=12, noise=noise, seed=seed)
    _, found = ranks_and_verification(query, gallery, rule, block_bytes=block_bytes)
    assert found is not None
    cosines, genuine, *_ = naive_pairs(query, gallery, rule)
    check_rates(found, cosines, genuine)


@pytest.mark.parametrize("sample", [20, 500])
def test_a_poor_sample_costs_another_pass_but_no_accuracy(
    sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, gallery, rule = people(queries=60, gallery=400, people=20, noise=1.5, seed=3)
    monkeypatch.setattr(module, "DEVIATIONS", 0.01)
    draw = module.impostor_sample
    monkeypatch.setattr(
        module, "impostor_sample", lambda rule, matches, **_: draw(rule, matches, count=sample)
    )
    passes = []
    plan = module.pair_plan
    monkeypatch.setattr(
        module, "pair_plan", lambda *args, **settings: passes.append(1) or plan(*args, **settings)
    )
    _, found = ranks_and_verification(query, gallery, rule)
    assert len(passes) > 1
    assert found is not None
    cosines, genuine, *_ = naive_pairs(query, gallery, rule)
    check_rates(found, cosines, genuine)


def test_images_that_float32_cannot_distinguish_are_accepted_as_in_float64() -> None:
    query, gallery, rule = people(queries=40, gallery=200, people=15, noise=1e-7, seed=5, width=300)
    query[:] = query[:1] + (query - query[:1]) * 1e-6
    gallery[:] = query[:1] + (gallery - query[:1]) * 1e-6
    _, found = ranks_and_verification(query, gallery, rule, block_bytes=20_000)
    assert found is not None
    cosines, genuine, *_ = naive_pairs(query, gallery, rule)
    assert found.tar[1e-2] == pytest.approx(
        np.mean(cosines[genuine] > np.sort(cosines[~genuine])[::-1][len(cosines[~genuine]) // 100]),
        abs=1e-12,
    )


def test_thresholds_from_elsewhere_deliver_what_all_pairs_say() -> None:
    query, gallery, rule = people(queries=60, gallery=400, people=20, noise=1.5, seed=4)
    promised = {1e-2: 0.41, 1e-3: 0.7, 1e-4: 2.0}
    _, found = ranks_and_verification(query, gallery, rule, promised=promised)
    assert found is not None
    cosines, genuine, *_ = naive_pairs(query, gallery, rule)
    for rate, threshold in promised.items():
        one = found.delivered[rate]
        assert one.threshold == threshold
        assert one.far == np.mean(cosines[~genuine] > threshold)
        assert one.tar == np.mean(cosines[genuine] > threshold)


def test_identification_of_people_of_whom_some_are_not_enrolled() -> None:
    query, gallery, rule = people(queries=400, gallery=500, people=30, noise=1.2, seed=1)
    _, verification = ranks_and_verification(query, gallery, rule)
    assert verification is not None and verification.identification is not None
    found = verification.identification
    cosines, genuine, queries, images = naive_pairs(query, gallery, rule)

    pids = np.unique(rule.query.pids[queries])
    removed = pids[np.random.default_rng(0).permutation(len(pids))[: len(pids) // 2]]
    alarms, detected = [], []
    for index in np.unique(queries):
        pairs = (queries == index) & ~np.isin(rule.gallery_pids[images], removed)
        nearest = np.flatnonzero(pairs)[np.argmax(cosines[pairs])]
        if rule.query.pids[index] in removed:
            alarms.append(cosines[nearest])
        else:
            detected.append(cosines[nearest] if genuine[nearest] else -np.inf)
    assert (found.unenrolled_queries, found.enrolled_queries) == (len(alarms), len(detected))
    assert set(found.detected) == {*FALSE_ALARM_RATES}
    for rate, value in found.detected.items():
        allowed = math.floor(rate * len(alarms))
        threshold = np.sort(alarms)[::-1][allowed]
        assert found.thresholds[rate] == pytest.approx(threshold, abs=1e-12)
        assert value == pytest.approx(np.mean(np.array(detected) > threshold), abs=1e-12)
        assert found.intervals[rate].low <= value <= found.intervals[rate].high


def test_re_ranking_changes_no_verification() -> None:
    query, gallery, rule = people(queries=30, gallery=120, people=12, noise=1.0, seed=2)
    inputs = {
        "query_features": query,
        "gallery_features": gallery,
        "query_pids": rule.query.pids,
        "query_camids": rule.query.camids,
        "gallery_pids": rule.gallery_pids,
        "gallery_camids": rule.camids[rule.cameras],
    }
    plain, reranked = evaluate(**inputs), evaluate(**inputs, rerank=True)
    assert plain.mean_ap != reranked.mean_ap
    assert plain.verification == reranked.verification


def test_intervals_contain_the_rates_and_narrow_with_more_people() -> None:
    widths = {}
    for count in (30, 300):
        query, gallery, rule = people(
            queries=4 * count, gallery=8 * count, people=count, noise=1.5, seed=7
        )
        _, found = ranks_and_verification(query, gallery, rule)
        assert found is not None
        for name, value in (("eer", found.eer), (tar_name(1e-2), found.tar[1e-2])):
            interval = found.intervals[name]
            assert interval.low <= value <= interval.high
            widths[count, name] = interval.high - interval.low
    assert widths[300, "eer"] < 0.6 * widths[30, "eer"]


def test_histograms_of_groups_change_nothing_but_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery, rule = people(queries=200, gallery=400, people=60, noise=1.5, seed=11)
    _, alone = ranks_and_verification(query, gallery, rule)
    monkeypatch.setattr(module, "MOST_GROUPS", 20)
    _, grouped = ranks_and_verification(query, gallery, rule)
    assert alone is not None and grouped is not None
    assert replace(grouped, intervals=alone.intervals) == alone
    widths = [one.intervals["eer"].high - one.intervals["eer"].low for one in (alone, grouped)]
    assert widths[1] == pytest.approx(widths[0], rel=0.5)


def test_the_curve_is_that_of_all_pairs() -> None:
    query, gallery, rule = people(queries=60, gallery=400, people=20, noise=1.5, seed=9)
    _, found = ranks_and_verification(query, gallery, rule)
    assert found is not None
    cosines, genuine, *_ = naive_pairs(query, gallery, rule)
    far, tar, _ = roc_curve(genuine, cosines, drop_intermediate=False)
    for rate, value in found.roc.items():
        assert value == pytest.approx(np.interp(rate, far, tar), abs=0.02)
    assert max(found.roc) == 1.0 and min(found.roc) >= 1 / found.impostor_pairs


def test_without_strangers_there_is_no_verification() -> None:
    query, gallery, rule = people(queries=4, gallery=9, people=1, noise=1.0, seed=0)
    assert ranks_and_verification(query, gallery, rule)[1] is None


@pytest.mark.parametrize(("rate", "name"), [(1e-2, "1e-2"), (1e-4, "1e-4"), (0.1, "1e-1")])
def test_rates_have_names(rate: float, name: str) -> None:
    assert rate_name(rate) == name
