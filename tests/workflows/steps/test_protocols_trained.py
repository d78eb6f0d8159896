"""The classical and the same-domain protocol from trees to numbers, which are counted again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muva.data.artifacts import Artifact, artifact_at, find_artifact
from muva.data.shards import open_dataset
from muva.data.store import Store, open_store
from muva.synthetic import synthetic_records
from tests.shared import linked_copy
from tests.workflows.layouts import write_cuhk02, write_market1501, write_viper
from workflows.cli import main

TRAIN_PEOPLE, TEST_PEOPLE = 4, 3
SOURCES = {"market1501": ("syn-harbour", write_market1501), "cuhk02": ("syn-airport", write_cuhk02)}
VIPER_PEOPLE = 11


@pytest.fixture(scope="module")
def imported(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two sources, one of them with people to test on and part boxes, and VIPeR."""
    home = tmp_path_factory.mktemp("trained")
    for name, (domain, write) in SOURCES.items():
        root = write(people(domain, TRAIN_PEOPLE, TEST_PEOPLE), home / "trees" / name)
        muva("data", "import", name, "--from", str(root), "--accept-counts", "--home", str(home))
    muva("ground", "market1501", "--expert", "tiny", "--home", str(home))
    root = write_viper(people("syn-station", VIPER_PEOPLE, 0), home / "trees" / "viper")
    muva("data", "import", "viper", "--from", str(root), "--accept-counts", "--home", str(home))
    return home


def people(domain: str, train: int, test: int) -> list[Any]:
    return list(
        synthetic_records(
            domain, train_people=train, test_people=test, images_per_camera=2, height=64, width=32
        )
    )


def muva(*words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 0


def run(
    home: Path, recipe: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> dict[str, Any]:
    capsys.readouterr()
    muva(
        *("run", *words, "--recipe", str(recipe), "--set", "variants=[muva]"),
        *("--set", "grounding.expert=tiny", "--set", "stage1.epochs=1", "--set", "stage2.epochs=1"),
        *("--home", str(home), "--json"),
    )
    (report,) = json.loads(capsys.readouterr().out)
    return report


def summary(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest()
    assert manifest is not None
    return manifest["summary"]


def embedded(store: Store, name: str) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The features of a target as they are stored, and whose they are."""
    artifact = find_artifact(store, "features", f"{name}-by-smoke-muva")
    parts = sorted(key for key in store.list(f"{artifact.address}/") if key.endswith(".npy"))
    features = np.concatenate([np.load(store.path(key)) for key in parts]).astype(np.float64)
    manifest = artifact.manifest()
    assert manifest is not None
    dataset = open_dataset(artifact_at(store, manifest["inputs"]["dataset"]))
    rows = dataset.rows(["image_id", "pid", "camid", "split"], splits=["query", "gallery"])
    assert len(rows) == len(features)
    return features, rows.to_pylist()


def naive(
    features: np.ndarray, rows: list[dict[str, Any]], query: list[int], gallery: list[int]
) -> tuple[float, float]:
    """mAP and rank-1, match by match."""
    precisions, firsts = [], []
    for asked in query:
        who = rows[asked]
        judged = [
            place
            for place in gallery
            if not (rows[place]["pid"] == who["pid"] and rows[place]["camid"] == who["camid"])
        ]
        judged.sort(key=lambda place: -float(features[asked] @ features[place]))
        hits = [rows[place]["pid"] == who["pid"] for place in judged]
        ranks = [rank for rank, hit in enumerate(hits, start=1) if hit]
        if ranks:
            precisions.append(np.mean([n / rank for n, rank in enumerate(ranks, start=1)]))
            firsts.append(ranks[0] == 1)
    return float(np.mean(precisions)), float(np.mean(firsts))


def people_of_trial(trial: int) -> set[int]:
    """The half of VIPeR's people that a trial is of, by the rule that is documented."""
    by_hash = sorted(
        range(1, VIPER_PEOPLE + 1),
        key=lambda pid: hashlib.sha256(f"viper/{trial}/{pid}".encode()).hexdigest(),
    )
    return set(by_hash[: (VIPER_PEOPLE + 1) // 2])


def test_the_classical_protocol_learns_from_everyone_and_averages_ten_splits(
    imported: Path, smoke_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ("--without", "dukemtmc,cuhk03-detected,cuhksysu")
    words = ("classical", "--target", "viper", *absent)
    report = run(imported, smoke_recipe, capsys, *words)
    store = open_store(imported / "store")
    model = summary(find_artifact(store, "models", "smoke-muva"))
    assert model["identities"] == len(SOURCES) * (TRAIN_PEOPLE + TEST_PEOPLE)
    (epoch,) = model["history"]
    assert np.isfinite(epoch["loss"])

    features, rows = embedded(store, "viper")
    assert features.shape[0] == 2 * VIPER_PEOPLE
    by_trial = []
    for trial in range(10):
        half = people_of_trial(trial)
        sides = (
            [
                place
                for place, row in enumerate(rows)
                if row["split"] == split and row["pid"] in half
            ]
            for split in ("query", "gallery")
        )
        by_trial.append(naive(features, rows, *sides))
    assert len(set(by_trial)) > 1, "the splits differ"
    mean_ap, rank1 = np.mean(by_trial, axis=0)
    found = report["targets"]["viper"]["muva"]
    assert found["mean_ap"] == pytest.approx(mean_ap, abs=1e-9)
    assert found["rank1"] == pytest.approx(rank1, abs=1e-9)
    metrics = summary(find_artifact(store, "metrics", "smoke-muva-on-viper"))
    assert (metrics["trials"], metrics["queries"], metrics["gallery"]) == (10, 6, 6)


def test_the_same_domain_protocol_learns_from_training_people_alone(
    imported: Path, smoke_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("datasets", "labels"):
        linked_copy(imported / "store" / kind, tmp_path / "store" / kind)
    report = run(tmp_path, smoke_recipe, capsys, "same-domain", "--source", "market1501")
    assert list(report["targets"]) == ["market1501"]
    store = open_store(tmp_path / "store")
    model = summary(find_artifact(store, "models", "smoke-muva"))
    assert (model["identities"], len(model["history"])) == (TRAIN_PEOPLE, 1)
    features, rows = embedded(store, "market1501")
    query, gallery = (
        [place for place, row in enumerate(rows) if row["split"] == split]
        for split in ("query", "gallery")
    )
    assert {rows[place]["pid"] for place in query} == set(
        range(TRAIN_PEOPLE + 1, TRAIN_PEOPLE + TEST_PEOPLE + 1)
    )
    found = report["targets"]["market1501"]["muva"]
    assert (found["mean_ap"], found["rank1"]) == pytest.approx(
        naive(features, rows, query, gallery), abs=1e-9
    )
