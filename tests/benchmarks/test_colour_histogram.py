"""The colour baseline sees colour and where it is, and nothing else."""

import numpy as np
import pytest

from benchmarks.colour_histogram import STRIPES, People, colour_histogram, score, within_cameras

RED, BLUE = (200, 30, 30), (30, 30, 200)


def two_halves(upper, lower) -> np.ndarray:
    image = np.empty((60, 40, 3), np.uint8)
    image[:30], image[30:] = upper, lower
    return image


def test_each_stripe_is_a_unit_vector():
    features = colour_histogram(two_halves(RED, BLUE)).reshape(STRIPES, -1)
    np.testing.assert_allclose((features**2).sum(axis=1), 1, rtol=1e-5)


def test_mirroring_changes_nothing_and_swapping_halves_does():
    image = two_halves(RED, BLUE)
    image[:, :12] //= 2
    mirrored = np.ascontiguousarray(image[:, ::-1])
    np.testing.assert_array_equal(colour_histogram(image), colour_histogram(mirrored))
    swapped = colour_histogram(two_halves(BLUE, RED)) @ colour_histogram(two_halves(RED, BLUE))
    assert swapped == pytest.approx(0, abs=1e-6)


def test_perfect_features_score_one_and_swapped_ones_zero():
    pids, camids = np.array([1, 2]), np.array([1, 1])
    features = np.eye(2, dtype=np.float32)
    query, gallery = People(features, pids, camids), People(features, pids, camids + 1)
    assert score(query, gallery)["rank1"] == 1
    assert score(query, People(features[::-1], pids, camids + 1))["rank1"] == 0
    assert within_cameras(query, People(features, pids, camids))["mean_ap"] == 1
