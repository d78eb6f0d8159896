"""System metrics of each node, and maps of domains: figures that pictures are drawn of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mlflow import MlflowClient

from tracking.runs import Tracker
from workflows.runtime.node_metrics import node_metrics_recorded
from workflows.steps.domain_map import same_domain_nearest


def test_what_the_machine_does_is_written_while_the_work_lasts(
    ray_session: None, tmp_path: Path
) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "muva/demo")
    client = MlflowClient(tracker.tracking_uri)
    with (
        tracker.open(name="pipeline", key="pipeline") as run,
        node_metrics_recorded(run, every_s=0.1),
    ):
        ends_at = time.monotonic() + 120
        while len(_points(client, run.ref.run_id)) < 3:
            assert time.monotonic() < ends_at
            time.sleep(0.1)
    metrics = client.get_run(run.ref.run_id).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert metrics["system/system_memory_usage_megabytes"] > 100
    assert metrics["system/disk_available_megabytes"] > 0
    written = len(_points(client, run.ref.run_id))
    time.sleep(0.5)
    assert len(_points(client, run.ref.run_id)) == written, "nothing is written afterwards"


def _points(client: MlflowClient, run_id: str) -> Sequence[object]:
    return client.get_metric_history(run_id, "system/cpu_utilization_percentage")


def test_domains_that_lie_apart_are_their_own_neighbours() -> None:
    rng = np.random.default_rng(0)
    domains = np.array(["a"] * 20 + ["b"] * 20)
    mixed = rng.normal(size=(40, 8))
    apart = mixed + 20 * np.where(domains == "a", 1.0, -1.0)[:, None] * np.eye(8)[0]
    for features in (mixed, apart):
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        naive = []
        for i, one in enumerate(features):
            similar = [-np.inf if i == j else one @ other for j, other in enumerate(features)]
            naive.append(domains[int(np.argmax(similar))] == domains[i])
        assert same_domain_nearest(features, domains) == np.mean(naive)
    assert same_domain_nearest(apart, domains) == 1
