"""`muva demo` as a newcomer runs it, on the smallest recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.workflows.commands import finish, start


@pytest.mark.timeout(600)  # minutes by itself, and another test beside it
def test_the_demo_ends_with_a_table_and_a_report(
    smoke_recipe: Path, grounded_home: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The data sets and the pseudo-labels are there already: test_run.py makes them."""
    grounded_home(tmp_path)
    words = ("demo", "--recipe", f"{smoke_recipe}", "--set", "variants=[clip, muva]")
    output = finish(start(tmp_path, *words), within_s=400)
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    results = report["targets"]["syn-station"]
    assert set(results) == {"clip", "muva"}
    for found in results.values():
        assert set(found) == {"mean_ap", "rank1", "queries", "valid_queries"}
    for words_of_the_table in ("CLIP (zero-shot)", "MUVA", "held-out mAP", "muva ui"):
        assert words_of_the_table in output

    place = report["mlflow"]
    client = MlflowClient(place["tracking_uri"])
    run = client.get_run(place["run_id"])
    assert run.info.experiment_id == place["experiment_id"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["syn-station/mAP"] == results["muva"]["mean_ap"]
    below = "tags.mlflow.parentRunId = '{}'"
    search = [
        child
        for child in client.search_runs([place["experiment_id"]], below.format(place["run_id"]))
        if child.info.run_name == "tune smoke"
    ]
    assert len(search) == 1
    trials = client.search_runs([place["experiment_id"]], below.format(search[0].info.run_id))
    assert {trial.info.run_name for trial in trials} == {"trial 0", "trial 1"}
    assert all({"syn-harbour/mAP", "held-out/mAP"} <= trial.data.metrics.keys() for trial in trials)
    assert set(report["seconds"]) >= {"import syn-station", "tune", "submit", "total"}
