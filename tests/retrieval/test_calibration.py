"""Probabilities and thresholds that are learned from pairs mean what they say for other people."""

import json

import numpy as np
import pytest

from muva.errors import MuvaError, SettingsError
from muva.retrieval.calibration import Calibration
from muva.retrieval.calibration_fit import Pairs, calibrate, calibration_pairs, thresholds_of
from muva.retrieval.camera_rule import checked_rule


def network(
    seed: int, *, mean: float = 0.6, impostors: int = 40_000, people: int = 200, wide: float = 0.1
) -> Pairs:
    """Normal cosines of different means, whose log-odds are linear or, if `wide`, quadratic."""
    rng = np.random.default_rng(seed)
    pids = rng.permutation(np.repeat(np.arange(people), 20))
    return Pairs(
        genuine=rng.normal(mean, 0.1, len(pids)),
        genuine_pids=pids,
        impostors=rng.normal(0.2, wide, impostors),
        impostor_pids=rng.integers(0, people, impostors),
    )


def test_the_probability_is_that_of_the_densities() -> None:
    found = calibrate({"a": network(0), "b": network(1)})
    # Both deviations are 0.1: the logarithm of the ratio of the densities is linear.
    cosines = np.array([0.3, 0.4, 0.5])
    log_odds = ((cosines - 0.2) ** 2 - (cosines - 0.6) ** 2) / (2 * 0.1**2)
    np.testing.assert_allclose(found.probability(cosines), 1 / (1 + np.exp(-log_odds)), atol=0.02)
    assert found.people == 400 and found.datasets == ("a", "b")


def test_a_prior_multiplies_the_odds() -> None:
    found = calibrate({"a": network(0)})
    [half], [tenth] = (found.probability(np.array([0.45]), prior=p) for p in (0.5, 0.1))
    assert tenth / (1 - tenth) == pytest.approx(half / (1 - half) / 9)
    with pytest.raises(SettingsError, match="between 0 and 1"):
        found.probability(np.array([0.45]), prior=1.0)


def test_the_map_that_fits_people_left_out_is_taken() -> None:
    linear, quadratic = (calibrate({"a": network(0, wide=wide)}) for wide in (0.1, 0.02))
    assert linear.method == "logistic"
    assert quadratic.method == "isotonic"
    assert quadratic.cross_entropy["isotonic"] < quadratic.cross_entropy["logistic"]
    rising = quadratic.probability(np.linspace(-1, 1, 101))
    assert (np.diff(rising) >= 0).all() and 0 < rising[0] < 0.01 and 0.99 < rising[-1] < 1


def test_thresholds_give_their_rates_on_average_over_networks_of_any_size() -> None:
    large, small = network(0), network(1, impostors=4_000)
    small = Pairs(
        genuine=small.genuine,
        genuine_pids=small.genuine_pids,
        impostors=small.impostors + 0.1,
        impostor_pids=small.impostor_pids,
    )
    found = thresholds_of({"large": large, "small": small})
    assert set(found) == {1e-1, 1e-2}  # 0.1 % of 14,545 would say nothing
    for rate, threshold in found.items():
        rates = [np.mean(pairs.impostors > threshold) for pairs in (large, small)]
        assert np.mean(rates) == pytest.approx(rate, abs=1 / 4_000)


def test_it_is_stored_as_json() -> None:
    found = calibrate({"a": network(0, wide=0.05)})
    assert Calibration.from_json(json.loads(json.dumps(found.as_json()))) == found
    with pytest.raises(MuvaError, match=r"Calibrate it again"):
        Calibration.from_json({"method": "logistic"})


def test_too_few_people_are_refused() -> None:
    with pytest.raises(MuvaError, match=r"b: expected .* at least 10 people .* found 9"):
        calibrate({"a": network(0), "b": network(1, people=9)})


def test_pairs_follow_the_camera_rule() -> None:
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((2, 6, 8)).astype(np.float32)
    labels = {
        "query_pids": np.array([1, 1, 2, 3, 3, -1]),
        "query_camids": np.array([0, 1, 0, 0, 1, 0]),
        "gallery_pids": np.array([1, 1, 2, 2, 4, -1]),
        "gallery_camids": np.array([0, 1, 0, 1, 0, 0]),
    }
    found = calibration_pairs(query, gallery, checked_rule(**labels, queries=6, gallery=6))
    unit = [f / np.linalg.norm(f.astype(float), axis=1, keepdims=True) for f in (query, gallery)]
    cosines = unit[0] @ unit[1].T
    genuine = sorted([cosines[0, 1], cosines[1, 0], cosines[2, 3]])
    np.testing.assert_allclose(sorted(found.genuine), genuine)
    assert sorted(found.genuine_pids) == [1, 1, 2]
    allowed = {round(float(cosines[q, g]), 12) for q in (0, 1) for g in (2, 3, 4)}
    allowed |= {round(float(cosines[2, g]), 12) for g in (0, 1, 4)}
    assert {round(value, 12) for value in found.impostors.tolist()} <= allowed
    assert set(found.impostor_pids) <= {1, 2}
