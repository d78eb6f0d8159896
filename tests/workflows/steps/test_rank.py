"""Features in parts, and their ranking by tasks: the figures of one process, whatever the tasks."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.retrieval import Reranking, evaluate
from muva.retrieval import features as features_module
from muva.retrieval.features import Features
from muva.retrieval.metrics import RetrievalResult, score
from workflows.steps.rank import PART_IMAGES, FeatureParts, encodings_by_tasks, ranks_of

RANKS = range(1, 21)
LOST_SOON = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "2",
}
"""Ray takes a node for lost after a second without a sign of life, not after half a minute."""


def crowd(*, queries: int, gallery: int, mixed: bool) -> Features:
    rng = np.random.default_rng(0)
    count = queries + gallery
    split = np.repeat(["query", "gallery"], [queries, gallery])
    if mixed:  # as people held out of a training are
        split = rng.permutation(split)
    pids = rng.integers(-1, 60, count)
    pids[split == "query"] = np.abs(pids[split == "query"])
    centres = rng.standard_normal((61, 16))
    return Features(
        features=(centres[pids] + rng.standard_normal((count, 16))).astype(np.float32),
        ids=np.array([f"{n:05d}.jpg" for n in range(count)]),
        pids=pids,
        camids=rng.integers(1, 5, count),
        split=split,
    )


def kept(folder: Path, features: np.ndarray) -> FeatureParts:
    artifact = Artifact(open_store(folder), "features", "crowd", "0" * 16)
    parts = FeatureParts(artifact)
    for first in range(0, len(features), PART_IMAGES):
        parts.write(first, features[first : first + PART_IMAGES])
    summary = {"images": len(features)}
    artifact.commit(format_version=formats.FEATURES, config={}, inputs={}, summary=summary)
    return parts


def test_parts_give_the_images_asked_for_in_their_order(tmp_path, monkeypatch):
    features = crowd(queries=100, gallery=1200, mixed=False).features
    parts = kept(tmp_path, features)
    asked = np.random.default_rng(1).permutation(len(features))[:777]
    assert np.array_equal(parts.read(asked), features[asked])
    monkeypatch.setattr(features_module, "MAX_IN_MEMORY_BYTES", 1000)
    mapped = parts.read(asked)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, features[asked])


def test_a_damaged_part_is_named(tmp_path):
    parts = kept(tmp_path, crowd(queries=10, gallery=600, mixed=False).features)
    key = parts.artifact.key(parts.name(512))
    parts.artifact.store.write(key, parts.artifact.store.read(key)[:100])
    with pytest.raises(MuvaError, match=r"part-000000512\.npy is damaged"):
        parts.read(np.array([1, 600]))


def assert_same(found: RetrievalResult, expected: RetrievalResult) -> None:
    assert np.array_equal(found.average_precision, expected.average_precision, equal_nan=True)
    assert (found.cmc, found.mean_inp) == (expected.cmc, expected.mean_inp)
    assert found.camera_pairs == expected.camera_pairs
    one, other = found.verification, expected.verification
    assert one is not None and other is not None
    # Curve and intervals are from cells of float32 cosines, which blocks may round differently.
    assert dataclasses.replace(one, roc=other.roc, intervals=other.intervals) == other
    assert one.roc == pytest.approx(other.roc, abs=1e-3)


@pytest.mark.parametrize("mixed", [False, True], ids=["test set", "held-out people"])
@pytest.mark.parametrize("chunk_images", [10_000, 700, 333])
def test_any_number_of_tasks_gives_the_figures_of_one_process(
    ray_session, tmp_path, mixed, chunk_images
):
    who = crowd(queries=150, gallery=1300, mixed=mixed)
    parts = kept(tmp_path, who.features)
    reports = []
    without = dataclasses.replace(who, features=np.empty((len(who), 0), np.float32))
    ranks, rule, verification = ranks_of(
        parts, without, chunk_images=chunk_images, on_progress=lambda done, _: reports.append(done)
    )
    expected = evaluate(**who.retrieval_inputs(), ranks=RANKS)
    assert_same(score(ranks, rule, ranks=RANKS, verification=verification), expected)
    assert reports[-1] == 1300
    assert len(reports) == -(-1300 // chunk_images)


@pytest.mark.parametrize("chunk_images", [10_000, 333])
def test_re_ranking_by_tasks_gives_the_figures_of_one_process(ray_session, tmp_path, chunk_images):
    who = crowd(queries=150, gallery=700, mixed=True)
    parts = kept(tmp_path, who.features)
    reports = []
    encodings = encodings_by_tasks(
        parts,
        dataclasses.replace(who, features=np.empty((len(who), 0), np.float32)),
        settings=Reranking(),
        chunk_images=chunk_images,
        on_progress=lambda done, total: reports.append((done, total)),
    )
    ranks, rule, verification = ranks_of(parts, who, encodings=encodings, chunk_images=chunk_images)
    expected = evaluate(**who.retrieval_inputs(), ranks=RANKS, rerank=True)
    assert_same(score(ranks, rule, ranks=RANKS, verification=verification), expected)
    assert reports[-1][0] == reports[-1][1]
    assert len(reports) == (1 if chunk_images > 850 else 6)


def test_nodes_that_are_lost_change_no_figure(tmp_path):
    command = [sys.executable, "-m", "tests.workflows.runtime.lost_node", str(tmp_path)]
    environment = {**os.environ, **LOST_SOON}
    subprocess.run(command, check=True, timeout=240, capture_output=True, env=environment)
    found = np.load(tmp_path / "found.npz")
    who = crowd(queries=90, gallery=900, mixed=False)
    for name, rerank in (("plain", False), ("reranked", True)):
        expected = evaluate(**who.retrieval_inputs(), ranks=RANKS, rerank=rerank)
        assert np.array_equal(found[name], expected.average_precision, equal_nan=True)
    assert len(found["lost"]) == 2
    assert all(0 < done < total for done, total in found["lost"])
