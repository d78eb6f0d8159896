"""`muva masks`: reports, pictures, rules, and masks in the release's form, as a person asks."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from muva.config import PARTS, GroundingConfig
from muva.data.artifacts import Artifact, find_artifact
from muva.data.shards import Dataset, open_dataset, write_shards
from muva.errors import MuvaError
from muva.grounding.experts import choose_expert, label_config
from muva.grounding.ground import ground_shard
from muva.grounding.labels import LabelSet, open_labels, summarise_labels, write_shard_labels
from muva.grounding.part_masks import patch_centres
from muva.synthetic import synthetic_records
from workflows.cli import main
from workflows.session import Session, open_session
from workflows.steps.ground import ground
from workflows.steps.step import ARTIFACT_TAG

HOME = "home"
ROWS, COLUMNS = (patch_centres(count, patch=1, stride=1) for count in (8, 4))


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("MUVA_HOME", str(tmp_path / HOME))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return open_session(home=tmp_path / HOME)


@pytest.fixture
def town(session: Session) -> Dataset:
    """Synthetic people with exact labels by the annotated expert."""
    artifact = Artifact(session.store, "datasets", "syn-station", "0" * 16)
    records = synthetic_records(
        "syn-station", train_people=2, test_people=2, images_per_camera=2, height=64, width=32
    )
    summary = dataclasses.asdict(write_shards(records, artifact=artifact, shard_bytes=20_000))
    artifact.commit(format_version=1, config={}, inputs={}, summary=summary)
    made = open_dataset(artifact)
    chosen = choose_expert(GroundingConfig())
    labels = Artifact(session.store, "labels", made.name, "1" * 16)
    for index in range(len(made.shards)):
        table, _ = ground_shard(made, index, expert=chosen.load(), name="annotated")
        write_shard_labels(labels, index, table)
    summary = summarise_labels(labels, made, parts=PARTS)
    labels.commit(
        format_version=1,
        config=label_config(chosen),
        inputs={"dataset": artifact.address},
        summary=summary,
    )
    return made


def masks(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    with pytest.raises(SystemExit) as stop:
        main(["masks", *words])
    said = capsys.readouterr()
    assert stop.value.code == code, said.err
    if code:
        return " ".join(said.err.split())
    return json.loads(said.out) if "--json" in words else said.out


def on_grid(labels: LabelSet, ids: list[str]) -> torch.Tensor:
    return labels.masks(ids, row_centres=ROWS, column_centres=COLUMNS)


def image_ids(town: Dataset) -> list[str]:
    return town.rows(["image_id"])["image_id"].to_pylist()


def test_a_report_says_what_the_labels_hold_on_a_page_of_its_own_and_in_mlflow(
    session: Session, town: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = masks(capsys, "report", town.name, "--json")
    assert [part["part"] for part in figures["parts"]] == list(PARTS)
    camids = sorted(set(town.rows(["camid"])["camid"].to_pylist()))
    assert all([int(c) for c in part["found_by_camera"]] == camids for part in figures["parts"])
    assert all(part["found"] > 0.9 and part["disordered"] == 0 for part in figures["parts"])
    page = Path(figures["report"]).read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert figures["outliers"][0]["image_id"] in page
    masks(capsys, "report", town.name, "--json")
    client = MlflowClient(session.tracking_uri)
    [run] = client.search_runs(["1"], "attributes.run_name = 'masks of syn-station'")
    assert run.data.metrics["found/head"] == figures["parts"][0]["found"]
    assert run.data.tags[ARTIFACT_TAG] == figures["labels"]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {
        Path(figures["report"]).name,
        "overlays.png",
        "least-trusted.png",
        "distributions.png",
    } <= files


def test_a_page_with_people_stays_out_of_mlflow_where_they_are_hidden(
    session: Session,
    town: Dataset,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUVA_PEOPLE", "hidden")
    figures = masks(capsys, "report", town.name, "--json")
    client = MlflowClient(session.tracking_uri)
    [run] = client.search_runs(["1"], "attributes.run_name = 'masks of syn-station'")
    assert run.data.metrics["found/head"] == figures["parts"][0]["found"]
    assert client.list_artifacts(run.info.run_id) == []
    assert Path(figures["report"]).exists()


def test_rules_make_labels_of_their_own_that_training_can_ask_for(
    session: Session, town: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    done = masks(capsys, "refine", town.name, "--rules", "cut-overlap", "--json")
    assert sum(done["rules"]["cut-overlap"].values()) > 0
    raw = open_labels(Artifact(session.store, "labels", town.name, "1" * 16), dataset=town)
    refined = open_labels(
        find_artifact(session.store, "labels", done["artifact"].split("/")[-1]), dataset=town
    )
    before, _ = raw.boxes(image_ids(town))
    after, found = refined.boxes(image_ids(town))
    assert found.all()
    assert (after[:, 1, 3] <= after[:, 2, 1]).all()
    assert (before[:, 1, 3] > before[:, 2, 1]).any()
    assert refined.details()["answer"].to_pylist() == raw.details()["answer"].to_pylist()
    report = masks(
        capsys, "report", town.name, "--expert", "annotated", "--against", "refined", "--json"
    )
    assert 0.5 < report["parts"][2]["agreement"]["median_iou"] < 1
    assert masks(capsys, "refine", town.name, "--rules", "cut-overlap", "--json") == done
    itself = ("report", town.name, "--expert", "annotated", "--against", "annotated")
    assert "the label set of the report itself" in masks(capsys, *itself, code=1)
    other = masks(capsys, "report", town.name, "--against", "refined", "--json")
    assert other["labels"] == raw.artifact.address and isinstance(
        other["overlaps"][0]["median_iou"], float
    )
    both = ("report", town.name, "--expert", "annotated", "--labels", raw.artifact.address)
    assert "expected either --labels, which" in masks(capsys, *both, code=2)
    explanation = masks(capsys, "refine", town.name, "--rules", "drop-tyni", code=2)
    assert "closest: drop-tiny" in explanation


def test_masks_travel_in_the_releases_form_and_back_as_they_are(
    session: Session, town: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "release.pkl"
    file.write_text("of before")
    assert "exists already" in masks(capsys, "export", town.name, str(file), code=1)
    assert file.read_text() == "of before"
    masks(capsys, "export", town.name, str(file), "--grid", "8x4", "--overwrite")
    content = pickle.loads(file.read_bytes())
    assert content.keys() == {i.split("/")[-1] for i in image_ids(town)}
    content["of-another.jpg"] = next(iter(content.values()))
    file.write_bytes(pickle.dumps(content))
    done = masks(capsys, "import", town.name, str(file), "--json")
    assert (done["extra"], done["missing"], done["grid"]) == (1, 0, [8, 4])
    source = town.artifact
    config = GroundingConfig(expert="imported")
    [found] = ground(session, [source], config)
    imported = open_labels(found.artifact, dataset=town)
    original = open_labels(Artifact(session.store, "labels", town.name, "1" * 16), dataset=town)
    ids = image_ids(town)
    assert on_grid(imported, ids).equal(on_grid(original, ids))
    around, _ = imported.boxes(ids)
    exact, _ = original.boxes(ids)
    assert (around - exact).abs().max() < 0.26  # a patch is a quarter of the width
    with pytest.raises(MuvaError, match=r"expected masks of 4 x 4 patches .*, found 8 x 4"):
        imported.masks(ids, row_centres=COLUMNS, column_centres=COLUMNS)
    with pytest.raises(MuvaError, match="contains masks; expected boxes"):
        ground(session, [source], GroundingConfig(expert="imported", rules=("drop-tiny",)))
    assert "8 x 4" not in masks(capsys, "report", town.name, "--expert", "imported")


def test_images_without_an_entry_are_named_or_not_found(
    town: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [i.split("/")[-1] for i in image_ids(town)]
    learned = [i.split("/")[-1] for i in image_ids(town) if i.startswith("train/")]
    assert 2 < len(learned) < len(names)
    file = tmp_path / "boxes.pkl"

    def write(named: list[str]) -> None:
        file.write_bytes(
            pickle.dumps({name: np.array([[0.1, 0.1, 0.9, 0.9]] * 3) for name in named})
        )

    write([name for name in names if name not in learned[:2]])
    explanation = masks(capsys, "import", town.name, str(file), code=1)
    assert f"no entry for 2 of {len(learned)} training images of syn-station" in explanation
    words = ("import", town.name, str(file), "--json")
    done = masks(capsys, *words, "--missing", "not-found")
    assert done["missing"] == 2 and done["found"]["head"] == 1 - 2 / len(names)
    write(learned)
    done = masks(capsys, *words)
    assert done["missing"] == len(names) - len(learned)


def test_one_image_is_drawn_and_explained(
    town: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    picture = tmp_path / "one.png"
    first = image_ids(town)[0]
    shown = masks(capsys, "show", town.name, first, "--out", str(picture), "--json")
    boxes = town.rows(["image_id", "box_head"]).to_pylist()[0]
    assert shown["parts"][0]["box"] == pytest.approx(boxes["box_head"], abs=1e-3)
    assert shown["parts"][0]["answer"] == "annotated"
    assert Image.open(picture).height > 500
    occupied = str(tmp_path / "one.png" / "two.png")
    explanation = masks(capsys, "show", town.name, first, "--out", occupied, code=1)
    assert "cannot be written" in explanation and "another file with --out" in explanation


def test_patches_that_came_as_such_are_drawn_as_such(
    town: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    names = [i.split("/")[-1] for i in image_ids(town)]
    pictures = []
    for patch in (0, 31):
        mask = np.zeros((3, 32), bool)
        mask[0, patch] = True
        file = tmp_path / f"masks-{patch}.pkl"
        file.write_bytes(pickle.dumps(dict.fromkeys(names, mask)))
        masks(capsys, "import", town.name, str(file), "--grid", "8x4")
        picture = tmp_path / f"{patch}.png"
        masks(capsys, "show", town.name, image_ids(town)[0], "--out", str(picture))
        pictures.append(np.asarray(Image.open(picture), int))
    rows, columns = np.nonzero((pictures[0] != pictures[1]).any(axis=2))
    # The first and the last patch of the second view differ, the picture between them does not.
    assert np.diff(np.unique(rows)).max() > 100 and np.diff(np.unique(columns)).max() > 50


@pytest.mark.parametrize(
    ("words", "explanation"),
    [
        (
            ("show", "syn-station", "train/0001_c1_0.jpg"),
            "has no image .*; closest: train/0001_c1_",
        ),
        (("report", "syn-staton"), "closest: syn-station"),
        (("report", "syn-station", "--expert", "owlv2"), "no labels by owlv2; .* annotated"),
        (("report", "syn-station", "--labels", "other-0123456789abcdef"), "no labels 'other-"),
        (("export", "syn-station", "x.pkl", "--grid", "8"), "expected ROWSxCOLUMNS"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    town: Dataset,
    words: tuple[str, ...],
    explanation: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = 2 if "--grid" in words else 1
    assert re.search(explanation, masks(capsys, *words, code=code))


def test_labels_of_other_images_are_not_taken_for_these(
    session: Session, town: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = Artifact(session.store, "labels", town.name, "2" * 16)
    summary = summarise_labels(
        Artifact(session.store, "labels", town.name, "1" * 16), town, parts=PARTS
    )
    labels.commit(
        format_version=1,
        config={"expert": "tiny"},
        inputs={},
        summary=summary | {"dataset_fingerprint": "another"},
    )
    assert "no labels by tiny" in masks(capsys, "report", town.name, "--expert", "tiny", code=1)
    named = f"{town.name}-{'2' * 16}"
    explanation = masks(capsys, "report", town.name, "--labels", named, code=1)
    assert "expected labels of syn-station with the content" in explanation
    assert "found those of syn-station with another" in explanation
