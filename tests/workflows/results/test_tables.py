"""Tables of scores say how many queries the scores are of."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from muva.config import load_recipe
from muva.retrieval.results import Identification, Interval, Scores, Verification
from workflows.cli import main
from workflows.results.tables import (
    evaluation_table,
    pipeline_table,
    verification_table,
    warn_of_few_queries,
)
from workflows.verb import as_text


def scores(**changed: Any) -> Scores:
    curve = dict.fromkeys(range(1, 51), 1.0)
    settings: dict[str, Any] = {
        "mean_ap": 1.0,
        "mean_inp": 1.0,
        "cmc": curve,
        "curve": curve,
        "queries": 24,
        "valid_queries": 24,
        "gallery": 24,
        "cameras_known": True,
        "reranked": False,
        "trials": 0,
        "intervals": {name: Interval(low=0.9, high=1.0) for name in ("mean_ap", "rank1")},
        "camera_pairs": (),
        "verification": None,
    }
    return Scores(**settings | changed)


def test_a_table_of_targets_has_the_valid_queries_and_no_interval_of_few() -> None:
    found = {"many": scores(), "one": scores(valid_queries=1, intervals={})}
    lines = as_text(evaluation_table(found, title="Evaluated: a")).splitlines()
    [header] = [line for line in lines if "mINP" in line]
    assert "valid queries" in header
    [many], [one] = ([line for line in lines if name in line] for name in ("many", "one"))
    assert "24 of 24" in many and many.count("90.0 to 100.0") == 2
    assert "1 of 24" in one and " to " not in one


VERIFICATION = Verification(
    genuine_pairs=24,
    impostor_pairs=552,
    eer=0.08,
    tar={1e-2: 0.7},
    thresholds={1e-2: 0.61},
    roc={0.01: 0.7, 1.0: 1.0},
    intervals={
        "eer": Interval(low=0.07, high=0.1),
        "tar-at-1e-2": Interval(low=0.6, high=0.8),
    },
    identification=Identification(
        enrolled_queries=12,
        unenrolled_queries=12,
        detected={0.1: 0.55},
        thresholds={0.1: 0.64},
        intervals={0.1: Interval(low=0.5, high=0.6)},
    ),
)


def test_scores_become_json_and_back() -> None:
    known = scores(verification=VERIFICATION)
    assert Scores.from_json(json.loads(json.dumps(known.as_json()))) == known
    assert Scores.from_json(json.loads(json.dumps(scores().as_json()))) == scores()


def test_verification_has_a_table_of_its_own_where_there_is_any() -> None:
    table = verification_table({"a": scores(verification=VERIFICATION), "b": scores()})
    assert table is not None
    lines = as_text(table).splitlines()
    [row] = [line for line in lines if "8.0" in line]
    for cell in ("a", "7.0 to 10.0", "70.0", "55.0"):
        assert cell in row
    assert not any(line.strip("│ ").startswith("b") for line in lines)
    assert verification_table({"b": scores()}) is None


def test_a_pipelines_table_has_the_valid_queries_of_each_target() -> None:
    few = scores(valid_queries=1, intervals={})
    report: Any = SimpleNamespace(
        models={"clip": "clip:tiny", "muva": "models/a"},
        targets={"a": {"clip": scores(), "muva": scores()}, "b": {"clip": few, "muva": few}},
    )
    lines = as_text(pipeline_table(load_recipe("demo"), report)).splitlines()
    [counts] = [line for line in lines if "valid queries" in line]
    assert counts.index("24 of 24") < counts.index("1 of 24")


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({}, ""),
        ({"valid_queries": 12}, ""),
        ({"valid_queries": 11}, "a: only 11 of 24 queries are valid"),
        ({"intervals": {}}, "fewer than 10 people, too few for a confidence interval"),
        ({"intervals": {}, "trials": 10}, ""),
    ],
)
def test_few_valid_queries_are_a_warning(
    changed: dict[str, Any], warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_few_queries("a", scores(**changed))
    said = " ".join(capsys.readouterr().err.split())
    assert warning in said and bool(warning) == bool(said)


def test_intervals_of_few_queries_that_an_earlier_version_stored_are_not_read() -> None:
    for valid, count in ((1, 0), (24, 2)):
        stored = json.loads(json.dumps(scores(valid_queries=valid).as_json()))
        assert len(Scores.from_json(stored).intervals) == count


def test_an_evaluation_of_one_valid_query_says_so_in_table_json_and_mlflow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pids, camids = np.repeat(np.arange(1, 13), 2), np.tile([1, 2], 12)
    pids, camids = np.append(pids, 1), np.append(camids, 1)  # the gallery: one further image
    file = tmp_path / "sparse.npz"
    np.savez(
        file,
        features=np.eye(12, dtype=np.float32)[pids - 1],
        ids=np.array([f"{number}.png" for number in range(25)]),
        pids=pids,
        camids=camids,
        split=np.array(["query"] * 24 + ["gallery"]),
    )
    home = tmp_path / "home"
    words = ["evaluate", "--features", f"{file}", "--recipe", "demo", "--home", f"{home}"]
    with pytest.raises(SystemExit):
        main(words)
    printed = capsys.readouterr()
    assert "1 of 24" in printed.out and " to " not in printed.out
    assert "sparse: only 1 of 24 queries are valid" in " ".join(printed.err.split())
    with pytest.raises(SystemExit):
        main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)["sparse"]
    assert (found["valid_queries"], found["queries"], found["intervals"]) == (1, 24, {})
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    [run] = client.search_runs([one.experiment_id for one in client.search_experiments()])
    metrics = run.data.metrics
    assert (metrics["sparse/valid-queries"], metrics["sparse/queries"]) == (1, 24)
