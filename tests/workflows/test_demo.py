"""`muva demo` as a newcomer runs it, on the smallest recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.workflows.commands import finish, start


@pytest.mark.timeout(600)  # minutes by itself, and another test beside it
def test_the_demo_ends_with_a_table_and_a_report(smoke_recipe: Path, tmp_path: Path) -> None:
    words = ("demo", "--recipe", f"{smoke_recipe}")
    output = finish(start(tmp_path, *words), within_s=400)
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    results = report["targets"]["syn-station"]
    assert set(results) == {"clip", "global_only", "muva"}
    for found in results.values():
        assert set(found) == {"mean_ap", "rank1"}
    for words_of_the_table in ("CLIP as it is", "global-only", "MUVA", "held-out mAP", "muva ui"):
        assert words_of_the_table in output

    place = report["mlflow"]
    client = MlflowClient(place["tracking_uri"])
    run = client.get_run(place["run_id"])
    assert run.info.experiment_id == place["experiment_id"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["syn-station/mAP"] == results["muva"]["mean_ap"]
    assert set(report["seconds"]) >= {"import syn-station", "tune", "submit", "total"}
