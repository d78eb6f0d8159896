"""A protocol by name, from trees in public data sets' layouts to rows beside the published ones."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from muva.data.artifacts import find_artifact
from muva.data.records import Record
from muva.data.shards import open_dataset
from muva.data.store import open_store
from muva.synthetic import synthetic_records
from tests.workflows.layouts import write_cuhk03np, write_market1501, write_msmt17
from workflows.cli import main

DATASETS: dict[str, tuple[str, Callable[..., Path]]] = {
    "market1501": ("syn-harbour", write_market1501),
    "msmt17": ("syn-station", write_msmt17),
    "cuhk03np-detected": ("syn-airport", write_cuhk03np),
}


def records_of(domain: str) -> list[Record]:
    return list(
        synthetic_records(
            domain, train_people=6, test_people=5, images_per_camera=2, height=64, width=32
        )
    )


def muva(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == code


@pytest.fixture(scope="module")
def home(ray_session: None, smoke_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets in their layouts, imported, and the trainings on one of them."""
    home = tmp_path_factory.mktemp("protocol")
    for name, (domain, write) in DATASETS.items():
        root = write(records_of(domain), home / name)
        muva("data", "import", name, "--from", str(root), "--accept-counts", "--home", str(home))
    muva(
        *("run", "single-source", "--source", "market1501", "--without", "dukemtmc"),
        *("--recipe", str(smoke_recipe), "--set", "variants=[muva]"),
        *("--set", "grounding.expert=tiny", "--home", str(home)),
    )
    return home


def test_a_tree_of_other_counts_is_refused_with_both_tables(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data", "import", "market1501", "--from", str(home / "market1501"))
    muva(*words, "--home", str(home), code=1)
    said = capsys.readouterr().err
    assert "Market-1501 at " in said
    assert "train    images         12936        48  differs" in said
    assert "--accept-counts to import it anyway; it is then marked as altered" in said


def test_a_data_set_is_the_same_in_every_layout(home: Path) -> None:
    for name, (domain, _) in DATASETS.items():
        records = records_of(domain)
        dataset = open_dataset(find_artifact(open_store(home / "store"), "datasets", name))
        rows = dataset.rows(["split", "pid", "camid"]).to_pylist()
        offset = 1041 if name == "msmt17" else 0
        assert sorted((row["split"], row["pid"], row["camid"]) for row in rows) == sorted(
            (r.split, r.pid + (offset if r.split != "train" else 0), r.camid) for r in records
        )


def test_rows_stand_beside_the_published_ones(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    muva("compare", "single-source", "--json", "--home", str(home))
    captured = capsys.readouterr()
    found: dict[str, dict[str, Any]] = {row["target"]: row for row in json.loads(captured.out)}
    assert set(found) == {"msmt17", "cuhk03np-detected"}
    row = found["msmt17"]
    assert (row["sources"], row["seeds"], row["checkpoint"]) == (["market1501"], 1, "last epoch")
    assert row["altered"] == ["market1501", "msmt17"]
    assert (row["published"]["mean_ap"], row["published"]["rank1"]) == (0.276, 0.568)
    assert row["mean_ap_difference"] == pytest.approx(row["mean_ap"] - 0.276)
    assert row["best"]["method"] == "MUVA"
    assert "No result in this store: market1501 -> dukemtmc;" in captured.err


def test_the_comparison_is_a_table_for_papers_and_for_spreadsheets(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    muva("compare", "--form", "csv", "--home", str(home))
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["target"] for row in rows] == ["cuhk03np-detected*", "msmt17*"]
    ours, paper = (float(rows[1][column]) for column in ("mAP", "published mAP"))
    assert paper == 27.6
    assert re.fullmatch(r"\d+ of \d+", rows[1]["valid queries"])
    assert float(rows[1]["mAP difference"]) == pytest.approx(ours - paper, abs=0.11)
    muva("compare", "--form", "markdown", "--home", str(home))
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith(
        "| market1501* | cuhk03np-detected* | muva (smoke) | last epoch | 1 |"
    )


def test_mlflow_shows_a_map_of_sources_and_targets(home: Path) -> None:
    muva("compare", "--home", str(home))
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("muva/comparison")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"comparison.csv", "source-target"} <= files
    assert "| market1501* | msmt17* |" in run.data.tags["mlflow.note.content"]


def test_what_is_not_imported_is_told_before_anything_is_trained(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    muva("run", "leave-one-out", "--target", "msmt17", "--home", str(home), code=1)
    assert "these data sets are not imported: dukemtmc." in capsys.readouterr().err
