"""A model learns what its similarities mean, and says so about images it has not seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import muva
from muva.retrieval.calibration import Calibration
from muva.synthetic import render
from tests.model.small import stored_model
from workflows.cli import main

Run = Callable[..., Any]
RECIPE = (
    *("--recipe", "demo", "--set", "synthetic.train_people=2", "--set", "synthetic.test_people=16"),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with a model whose source is the boulevard."""
    stored_model(
        tmp_path / "runs", f"mine-{0:016x}", seed=0, metadata={"source_names": ["syn-boulevard"]}
    )
    return tmp_path / "runs"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb; gives its JSON, or what it says if it fails or `as_json` is False."""

    def run_verb(*words: str, code: int = 0, as_json: bool = True) -> Any:
        with pytest.raises(SystemExit) as stop:
            main([*words, *(["--json"] if as_json else []), "--home", f"{home}"])
        printed = capsys.readouterr()
        assert stop.value.code == code, printed.err
        if code == 0 and as_json:
            return json.loads(printed.out)
        return " ".join((printed.out + printed.err).split())

    return run_verb


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Two people before two cameras."""
    folder = tmp_path / "crops"
    folder.mkdir()
    for pid, camid in [(1, 1), (1, 2), (2, 1), (2, 2)]:
        picture = render("syn-station", pid=pid, camid=camid, index=0, height=96, width=40)
        Image.fromarray(picture.image).save(folder / f"{pid}-{camid}.png")
    return folder


def test_a_calibrated_model_keeps_its_features_and_says_how_sure_it_is(
    ray_session: None, run: Run, home: Path, crops: Path, tmp_path: Path
) -> None:
    found = run("calibrate", "mine", *RECIPE)
    assert found["datasets"] == ["syn-boulevard"] and found["people"] == 16
    assert list(found["thresholds"]) == [
        "0.1",
        "0.01",
    ]  # 0.1 % of 3,840 pairs of strangers are too few
    assert Path(found["model"]).name.startswith("mine-calibrated-")
    images = [crops / "1-1.png", crops / "1-2.png"]
    mine, calibrated = (muva.load(found[name]) for name in ("calibrated", "model"))
    features = mine.embed(images)
    assert np.array_equal(features, calibrated.embed(images))
    calibration = Calibration.from_json(calibrated.metadata["calibration"])
    assert calibration.thresholds[0.1] == found["thresholds"]["0.1"]
    again = run("calibrate", "mine", *RECIPE)
    assert again == found

    cosine = float(features[0].astype(float) @ features[1].astype(float))
    asked = (f"{images[0]}", f"{images[1]}", "--model", "mine-calibrated")
    said = run("same", *asked)
    assert said["similarity"] == pytest.approx(cosine, abs=1e-6)
    assert said["same_person"] == (cosine > found["thresholds"]["0.01"])
    [probability] = calibration.probability(np.array([cosine]))
    assert said["probability"] == pytest.approx(probability, abs=1e-6)
    assert "a false-accept rate of 1 %" in run("same", *asked, as_json=False)
    assert "has thresholds for 0.01, 0.1" in run("same", *asked, "--far", "0.2", code=2)

    out = tmp_path / "crops.parquet"
    run("embed", f"{crops}", "--model", "mine", "--out", f"{out}")
    query = ("search", "--query", "1-1.png", "--gallery", f"{out}")
    assert "probability" not in run(*query)["matches"][0]
    answer = run(*query, "--model", "mine-calibrated")
    [match] = [one for one in answer["matches"] if one["image_id"] == "1-2.png"]
    assert (match["probability"], match["same_person"]) == (
        said["probability"],
        said["same_person"],
    )
    assert "same person:" in run(*query, "--model", "mine-calibrated", as_json=False)
    assert "is not calibrated" in run(*query, "--far", "0.1", code=1)

    on = ("--targets", "syn-harbour", *RECIPE)
    scores = run("evaluate", "mine-calibrated", *on)["syn-harbour"]
    delivered = scores["verification"]["delivered"]["0.1"]
    assert delivered["threshold"] == found["thresholds"]["0.1"]
    assert 0 < delivered["far"] < 1 and 0 < delivered["tar"] <= 1
    table = run("evaluate", "mine-calibrated", *on, as_json=False)
    assert "what they promised" in table and f"{100 * delivered['tar']:.1f} %" in table


def test_a_model_without_calibration_is_told_how_to_get_one(run: Run, crops: Path) -> None:
    files = (f"{crops / '1-1.png'}", f"{crops / '1-2.png'}")
    assert "muva calibrate mine" in run("same", *files, "--model", "mine", code=1)


def test_sources_without_other_people_are_no_place_to_calibrate(
    ray_session: None, run: Run
) -> None:
    without = ("--recipe", "demo", "--set", "synthetic.train_people=2")
    said = run("calibrate", "mine", *without, "--set", "synthetic.test_people=0", code=1)
    assert "Name data sets of other people with --on" in said
