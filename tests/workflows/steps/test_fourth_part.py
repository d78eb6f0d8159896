"""A part of a recipe's own through the whole pipeline: grounded, trained, evaluated, reported."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import muva
from muva.config import PARTS, ExperimentConfig, load_recipe
from muva.data.draw import Draw
from muva.data.images import decode_rgb
from muva.data.shards import open_dataset
from muva.errors import MuvaError, SettingsError
from muva.grounding.labels import open_labels
from muva.grounding.release import base_name
from tracking.mask_report import mask_report
from workflows.results.mask_statistics import mask_pictures, mask_statistics
from workflows.runtime.workers import Workers
from workflows.session import Session, open_session
from workflows.steps.import_labels import import_release
from workflows.steps.pipeline import PipelineReport, run_pipeline
from workflows.steps.refine import refine
from workflows.steps.train import check_parts, declare_training, train
from workflows.steps.training_inputs import TrainingInputs

FOUR = (*PARTS, "shoes")
BOXES = {
    "head": "[[300,20,700,200]]",
    "upper body": "[[150,180,850,520]]",
    "legs": "[[200,500,800,960]]",
    "shoes": "[[200,880,800,990]]",
}
"""Words of a question -> the answer."""


class _Handler(BaseHTTPRequestHandler):
    """A chat endpoint that knows where the parts of an upright person are."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, question = asked["messages"][0]["content"]
        encoded = image["image_url"]["url"].partition(",")[2]
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (32, 64)
        [box] = (box for words, box in BOXES.items() if f"the {words}" in question["text"])
        body = json.dumps({"choices": [{"message": {"content": box}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Pipeline(NamedTuple):
    session: Session
    config: ExperimentConfig
    report: PipelineReport


@pytest.fixture(scope="module")
def recipe(smoke_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe with shoes; the shipped CLIP knows the word."""
    file = tmp_path_factory.mktemp("recipes") / "four.yaml"
    file.write_text(
        f"""
extends: {smoke_recipe}
name: four
variants: [muva]
grounding: {{expert: http, checkpoint: some-model, phrases: {{shoes: the shoes}}}}
model: {{clip: tiny, parts: [head, upper_body, legs, shoes]}}
stage1: {{epochs: 1}}
stage2: {{epochs: 1}}
"""
    )
    return file


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def pipeline(
    ray_session: None, recipe: Path, endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Pipeline:
    session = open_session(home=tmp_path_factory.mktemp("home"))
    session = dataclasses.replace(session, tracking_uri=None)
    config = load_recipe(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUVA_EXPERT_URL", endpoint)
        report = run_pipeline(session, config)
    return Pipeline(session, config, report)


@pytest.mark.timeout(600)
def test_a_pipeline_of_four_parts_ends_in_a_model_that_embeds(pipeline: Pipeline) -> None:
    dataset = open_dataset(pipeline.report.datasets["syn-harbour"])
    labels = open_labels(pipeline.report.labels["syn-harbour"], dataset=dataset)
    assert set(labels.parts) == set(FOUR)
    boxes, found = labels.boxes(labels.image_ids[:1], parts=["shoes"])
    assert found.all()
    np.testing.assert_allclose(boxes[0, 0], [0.2, 0.88, 0.8, 0.99], rtol=1e-6)

    assert 0 < pipeline.report.targets["syn-station"]["muva"].mean_ap <= 1
    model = muva.load(pipeline.report.models["muva"])
    images = [decode_rgb(encoded) for encoded in dataset.read_images([0, 1])]
    features = model.embed(images)
    assert features.shape[1] % 5 == 0, "the person's and four parts'"
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)


def test_quality_report_pictures_and_rules_know_the_fourth_part(pipeline: Pipeline) -> None:
    source = pipeline.report.datasets["syn-harbour"]
    raw = pipeline.report.labels["syn-harbour"]
    dataset = open_dataset(source)
    labels = open_labels(raw, dataset=dataset)
    figures, trusted = mask_statistics(dataset, labels, None)
    assert {part.part: part.found for part in figures.parts} == dict.fromkeys(labels.parts, 1.0)
    assert all(part.disordered == 0 for part in figures.parts)
    page = mask_report(figures, mask_pictures(dataset, labels, trusted))
    assert "shoes" in page

    done = refine(pipeline.session, source, raw, ["drop-disordered", "cut-overlap"])
    changed = done.summary["rules"]
    assert changed["drop-disordered"] == dict.fromkeys(labels.parts, 0)
    images = len(labels.image_ids)
    cut = {"head": images, "upper_body": images, "legs": images, "shoes": 0}
    assert changed["cut-overlap"] == cut, "shoes have no place in the order from top to bottom"


def test_a_training_gets_the_masks_of_imported_labels_of_four_parts(
    pipeline: Pipeline, recipe: Path, tmp_path: Path
) -> None:
    session, report = pipeline.session, pipeline.report
    parts = (*PARTS, "bag")
    overrides = ["grounding={expert: imported}", f"model.parts=[{', '.join(parts)}]"]
    config = load_recipe(recipe, overrides=[*overrides, "prompts.template=part-agnostic"])
    imported = []
    for name in config.sources:
        dataset = open_dataset(report.datasets[name])
        labels = open_labels(report.labels[name], dataset=dataset)
        boxes, _ = labels.boxes(labels.image_ids, parts=FOUR)
        file = tmp_path / f"{name}.pkl"
        named = {base_name(i): b.numpy() for i, b in zip(labels.image_ids, boxes, strict=True)}
        file.write_bytes(pickle.dumps(named))
        done = import_release(
            session, report.datasets[name], file, parts=parts, grid=None, missing=False
        )
        imported.append(done.artifact)
    check_parts(config, imported)
    sources = [report.datasets[name] for name in config.sources]
    inputs = TrainingInputs.of(config, sources=sources, labels=imported)
    model, images = inputs.open(predicts_masks=True)
    assert model.config.parts == parts
    _, masks = images.batch(Draw(np.array([0])))
    assert masks is not None
    rows = masks[0].unflatten(1, model.grid).any(dim=2).int()
    first = rows.argmax(dim=1).tolist()
    assert first == sorted(first) and first[0] < first[-1], (
        "head, upper body, legs, bag at the feet"
    )


def test_labels_of_a_name_that_no_part_may_have_are_not_imported(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    source = pipeline.report.datasets["syn-harbour"]
    with pytest.raises(SettingsError, match="part 'Bag': expected small letters"):
        import_release(
            pipeline.session,
            source,
            tmp_path / "never-read.pkl",
            parts=(*PARTS, "Bag"),
            grid=None,
            missing=False,
        )


def test_a_part_without_phrase_or_labels_is_refused_with_the_remedy(
    pipeline: Pipeline, recipe: Path
) -> None:
    config = load_recipe(recipe, overrides=["model.parts=[head, bag]"])
    sources = [pipeline.report.datasets[name] for name in config.sources]
    with pytest.raises(MuvaError, match=r"names bag, .* --set grounding\.phrases\.bag='the bag'"):
        declared = declare_training(
            pipeline.session, config, sources=sources, labels=None, name="bag"
        )
        train(pipeline.session, declared, Workers())
