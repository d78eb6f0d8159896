from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.part_accuracy import GRAINS, evaluate_grains, muva_models, print_table, targets_of
from muva.config import PARTS, SyntheticConfig
from muva.data.artifacts import Artifact, fingerprint
from muva.data.shards import open_dataset
from muva.data.store import open_store
from muva.model.bundle import bundle_of_model
from muva.retrieval.evaluation import evaluate
from tests.model.small import IMAGE_SIZE, small_model
from workflows.session import open_session
from workflows.steps.encoder import LAST_EPOCH, ON_SOURCES
from workflows.steps.import_data import datasets_of

TARGET = "syn-airport"


def test_the_whole_feature_scores_as_in_an_evaluation_and_true_masks_agree_with_boxes(
    ray_session: None, tmp_path: Path
) -> None:
    session = dataclasses.replace(open_session(home=tmp_path), tracking_uri=None)
    height, width = IMAGE_SIZE
    people = SyntheticConfig(train_people=1, test_people=6, height=height, width=width)
    target = datasets_of(session, [TARGET], people)[TARGET].artifact
    sources = [f"{domain}-{'0' * 16}" for domain in ("syn-boulevard", "syn-station", "syn-harbour")]
    bundle = bundle_of_model(small_model().eval(), metadata={"sources": sources})
    assert targets_of(bundle) == [TARGET]

    figures = evaluate_grains(session.store, bundle, TARGET)

    dataset = open_dataset(target)
    rows = dataset.rows(splits=["query", "gallery"])
    features = bundle.embed(dataset.read_images(rows["row"].to_numpy()))
    asks = rows["split"].to_numpy() == "query"
    expected = evaluate(
        query_features=features[asks],
        query_pids=rows["pid"].to_numpy()[asks],
        query_camids=rows["camid"].to_numpy()[asks],
        gallery_features=features[~asks],
        gallery_pids=rows["pid"].to_numpy()[~asks],
        gallery_camids=rows["camid"].to_numpy()[~asks],
    )
    assert figures["predicted/all"] == pytest.approx(expected.mean_ap, abs=1e-9)
    assert figures["true/all"] != figures["predicted/all"]
    assert all(0 < figures[f"true/{grain}"] <= 1 for grain in GRAINS)
    assert all(0 <= figures[f"iou/{part}"] < 1 for part in PARTS)


def test_models_with_parts_are_found_by_what_their_pipeline_recorded(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    recorded = [
        ("demo-muva", {"variant": "muva", "checkpoint": LAST_EPOCH}),
        ("demo-muva-chosen", {"variant": "muva", "checkpoint": ON_SOURCES}),
        ("demo-global-only", {"variant": "global_only", "checkpoint": LAST_EPOCH}),
        ("imported", {}),
    ]
    for name, facts in recorded:
        artifact = Artifact(store, "models", name, fingerprint(name))
        artifact.commit(format_version=1, config={}, inputs={}, summary={}, facts=facts)
    Artifact(store, "models", "unfinished-muva", "0" * 16).start(
        format_version=1, config={}, inputs={}, facts=recorded[0][1]
    )
    assert [artifact.name for artifact in muva_models(store)] == ["demo-muva"]


def test_the_table_gives_means_over_models(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [f"{kind}/{grain}" for kind in ("predicted", "true") for grain in ("all", *GRAINS)]
    figures = dict.fromkeys([*kinds, *(f"iou/{part}" for part in PARTS)], 0.5)
    print_table({TARGET: [figures, {**figures, "predicted/all": 0.1}]})
    row = capsys.readouterr().out.splitlines()[-1].strip("|").split("|")
    assert [cell.strip() for cell in row[:4]] == [TARGET, "2", "30.0", "50.0"]
    assert len(row) == 11
