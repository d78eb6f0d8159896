"""`muva models push` and `save`, and verbs that take a model from the hub or a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from PIL import Image

import muva
from muva.data import formats
from muva.data.artifacts import Artifact, fingerprint, open_artifact
from muva.data.store import open_store
from muva.retrieval.results import Scores
from muva.synthetic import render
from tests.hub.hub_server import WRITER, Hub
from tests.model.small import stored_model
from workflows.cli import main

Run = Callable[..., Any]
NAME = "team/people"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with one model, and a folder of crops beside it."""
    stored_model(tmp_path / "runs", f"mine-{0:016x}", metadata={"source_names": ["market1501"]})
    (tmp_path / "crops").mkdir()
    for pid in (1, 2, 3):
        image = render("syn-station", pid=pid, camid=1, index=0, height=48, width=24).image
        Image.fromarray(image).save(tmp_path / "crops" / f"{pid}.png")
    return tmp_path / "runs"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a verb with a token in the environment; gives its JSON, or what it says."""
    monkeypatch.setenv("HF_TOKEN", WRITER)

    def run_verb(*words: str, code: int = 0, as_json: bool = True) -> Any:
        with pytest.raises(SystemExit) as stop:
            main([*words, *(["--json"] if as_json else []), "--home", f"{home}"])
        printed = capsys.readouterr()
        assert stop.value.code == code, printed.err
        assert WRITER not in printed.out + printed.err
        if code == 0:
            return json.loads(printed.out) if as_json else printed.out
        return " ".join(printed.err.split())

    return run_verb


def evaluation(home: Path, target: str, *, of: str, **changed: Any) -> None:
    """The artifacts that an evaluation leaves: features of a model, and their metrics."""
    settings = {
        "mean_ap": 0.25, "mean_inp": 0.125, "cmc": {1: 0.5}, "curve": {1: 0.5}, "queries": 9,
        "valid_queries": 9, "gallery": 9, "cameras_known": True, "reranked": False, "trials": 0,
        "intervals": {}, "camera_pairs": (), "verification": None,
    }  # fmt: skip
    scores = Scores(**{**settings, **changed})
    store = open_store(home / "store")
    key = fingerprint([target, of, changed])
    features = Artifact(store, "features", f"mine-on-{target}", key)
    features.commit(format_version=formats.FEATURES, config={}, inputs={"model": of}, summary={})
    Artifact(store, "metrics", f"mine-on-{target}", key).commit(
        format_version=formats.METRICS,
        config={},
        inputs={"features": features.address},
        summary=scores.as_json(),
        facts={"target": target, "held_out": False},
    )


def test_a_pushed_model_is_used_by_its_address_on_the_hub(hub: Hub, home: Path, run: Run) -> None:
    pushed = run("models", "push", "mine", NAME, "--private", "--licence", "apache-2.0")
    assert hub.repositories[NAME].private
    assert (pushed["uri"], pushed["changed"]) == (f"hf://{NAME}@{pushed['commit']}", True)

    crops, here, there = home.parent / "crops", home / "here.parquet", home / "there.parquet"
    run("embed", f"{crops}", "--model", "mine", "--out", f"{here}")
    embedded = run("embed", f"{crops}", "--model", f"hf://{NAME}", "--out", f"{there}")
    # What used it is recorded: the copy in the store, which names the commit.
    copied = open_artifact(embedded["model"])
    assert (copied.store.uri, copied.name) == (f"{home / 'store'}", "team--people")
    assert muva.load(copied.uri).metadata["hub"] == {
        "repository": NAME,
        "commit": pushed["commit"],
    }
    query = f"{crops / '1.png'}"
    for model in ("mine", f"hf://{NAME}", pushed["uri"]):  # the same weights, so the same features
        found = run("search", "--query", query, "--gallery", f"{there}", "--model", model)
        assert found["matches"][0]["image_id"] == "1.png"
    shown = run("models", "show", f"hf://{NAME}")
    assert shown["made_from"] == f"market1501 (hf://{NAME}@{pushed['commit']})"
    run("export", f"hf://{NAME}", "--format", "safetensors", "--out", f"{home / 'a.safetensors'}")
    assert [row["address"] for row in run("models", "list")] == [
        f"models/mine-{0:016x}",
        copied.address,
    ]


def test_a_hub_that_is_down_does_not_stop_a_command(
    hub: Hub, home: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    pushed = run("models", "push", "mine", NAME)
    run("models", "show", f"hf://{NAME}")
    hub.status = 503
    run("models", "show", f"hf://{NAME}")
    assert f"the cached commit {pushed['commit']} is used" in caplog.text
    assert "status 503, and the local cache" in run("models", "show", "hf://team/other", code=1)
    assert "expected the address of a model" in run("models", "show", "hf://other", code=2)


def test_pushing_again_commits_nothing_and_says_so(hub: Hub, run: Run) -> None:
    first = run("models", "push", "mine", NAME, as_json=False).splitlines()
    again = run("models", "push", "mine", NAME, as_json=False).splitlines()
    assert again == [*first, "Nothing was committed: the hub has this content already"]
    # The copy of the model in the store has the same content.
    assert run("models", "push", f"hf://{NAME}", NAME)["changed"] is False


def test_the_card_shows_the_newest_scores_of_this_model_alone(
    hub: Hub, home: Path, run: Run
) -> None:
    address = f"models/mine-{0:016x}"
    evaluation(home, "msmt17", of=address, mean_ap=0.1)
    evaluation(home, "msmt17", of=address)
    evaluation(home, "msmt17", of=address, mean_ap=0.9, reranked=True)
    evaluation(home, "market1501", of=f"models/other-{1:016x}")
    pushed = run("models", "push", "mine", NAME, "--revision", "v2", "--message", "With scores")
    files = hub.repositories[NAME].commits[pushed["commit"]]
    data: Any = ModelCard(files["README.md"].decode()).data
    scores = {(one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    assert scores == {
        ("msmt17", "mAP"): 0.25,
        ("msmt17", "rank-1"): 0.5,
        ("msmt17", "mINP"): 0.125,
    }


def test_a_saved_folder_is_a_model(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.parent)
    evaluation(home, "msmt17", of=f"models/mine-{0:016x}")
    saved = run("models", "save", "mine", "saved", "--compact", "--licence", "apache-2.0")
    files = [*(home.parent / "saved").iterdir()]
    assert saved["bytes"] == sum(file.stat().st_size for file in files)
    card = (home.parent / "saved" / "README.md").read_text()
    assert "| msmt17 | 50.0 | 25.0 | 12.5 |" in card
    assert "Of these weights: apache-2.0." in card
    assert "--model ./saved " in card

    crops, here, there = home.parent / "crops", home / "here.parquet", home / "there.parquet"
    run("embed", f"{crops}", "--model", "mine", "--out", f"{here}")
    embedded = run("embed", f"{crops}", "--model", "./saved", "--out", f"{there}")
    copied = open_artifact(embedded["model"])
    assert (copied.store.uri, copied.name) == (f"{home / 'store'}", "saved")
    features = [np.stack(pq.read_table(file)["features"].to_pylist()) for file in (here, there)]
    assert (features[0] * features[1]).sum(axis=1).min() > 0.9999
    assert "no models 'saved-not'" in run("models", "show", "saved-not", code=1)


def test_the_shipped_model_is_not_confused_with_another_of_its_name(home: Path, run: Run) -> None:
    crops, out = home.parent / "crops", home / "a.parquet"
    shipped = run("embed", f"{crops}", "--out", f"{out}")["model"]
    assert open_artifact(shipped).name == "synthetic"
    assert run("embed", f"{crops}", "--out", f"{out}")["model"] == shipped
    own = stored_model(home, f"synthetic-{1:016x}")
    refused = run("embed", f"{crops}", "--out", f"{out}", code=2)
    assert f"give its address, {own.address}" in refused
    found = run("embed", f"{crops}", "--model", own.address, "--out", f"{out}")
    assert found["model"] == own.uri


def test_nothing_is_created_for_a_model_that_does_not_exist(hub: Hub, run: Run) -> None:
    assert "no models 'others'" in run("models", "push", "others", NAME, code=1)
    assert "expected the address of a model on the hub" in run(
        "models", "push", "mine", "people", code=2
    )
    assert hub.requests == []
