from __future__ import annotations

import numpy as np

from benchmarks.thresholds import OURS, broken_promises, s_norm


def unit(count: int, *, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).standard_normal((count, 8))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_scores_are_normalised_by_both_images_nearest_in_the_cohort() -> None:
    query, gallery, cohort = unit(3, seed=0), unit(4, seed=1), unit(20, seed=2)
    for nearest in (None, 5):
        found = s_norm(query, gallery, cohort, nearest=nearest)
        for i, one in enumerate(query):
            for j, other in enumerate(gallery):
                halves = []
                for image in (one, other):
                    scores = sorted((float(image @ c) for c in cohort), reverse=True)[:nearest]
                    halves.append((one @ other - np.mean(scores)) / np.std(scores))
                np.testing.assert_allclose(found[i, j], np.mean(halves))


def test_a_promise_may_be_missed_by_a_factor_of_three() -> None:
    def of(*far: float) -> dict[str, dict[str, list[float]]]:
        return {OURS: {"far/0.01": list(far)}}

    found = {"a": of(0.029), "b": of(0.0034), "c": of(0.02, 0.05), "d": of(0.003)}
    assert [line[:9] for line in broken_promises(found)] == ["c: 3.50 %", "d: 0.30 %"]
