"""A checkpoint of another program, from the file to a training that starts from it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

import muva
from muva.config import load_recipe
from muva.data.artifacts import find_artifact, list_artifacts, open_artifact
from muva.data.images import decode_rgb
from muva.data.shards import open_dataset
from muva.data.store import open_store
from muva.model.bundle import bundle_of_model
from muva.model.clip import OPENAI_MEAN, OPENAI_STD, load_clip
from muva.model.muva_model import MuvaModel, build_model
from muva.retrieval import evaluate
from tests.model.foreign_files import clip_reid_state, release_state, write
from tests.shared import linked_copy
from workflows.cli import main
from workflows.results.comparison import compare_results, results_in
from workflows.steps.training_inputs import TrainingInputs

Run = Callable[..., Any]
TARGET = "syn-station"
KEPT = ("--workers", "1", "--keep-every", "1")
STILL = ("--set", "stage1.epochs=1", "--set", "stage2.epochs=1", "--set", "stage2.lr=1e-12")
"""A training that moves nothing: what comes out is what it started from."""


@pytest.fixture
def run(tmp_path: Path, smoke_recipe: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb in a home of its own; gives its JSON, or what it says where it fails."""

    def run_verb(*words: str, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as stop:
            common = ["--json", "--home", f"{tmp_path / 'runs'}"]
            recipe = ["--recipe", f"{smoke_recipe}"] if words[:2] != ("models", "show") else []
            main([*words, *recipe, *common])
        printed = capsys.readouterr()
        assert stop.value.code == code, printed.err
        return json.loads(printed.out) if code == 0 else " ".join(printed.err.split())

    return run_verb


def foreign_model(recipe: Path, *, seed: int = 7, **changed: Any) -> MuvaModel:
    """A model as somebody else may have trained it."""
    config = load_recipe(recipe)
    settings = config.model.model_copy(update=changed)
    size = (settings.image_height, settings.image_width)
    clip = load_clip(settings.clip, image_size=size, stride=settings.stride)
    model = build_model(clip, model=settings, prompts=config.prompts, identities=9, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.image_encoder.parameters():
        parameter.data.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    model.bn_neck.running_mean = 0.1 * torch.randn(model.feature_dim, generator=generator)
    return model.eval()


def test_a_checkpoint_is_imported_judged_and_trained_on(
    run: Run, smoke_store: Path, smoke_recipe: Path, tmp_path: Path
) -> None:
    linked_copy(smoke_store / "datasets", tmp_path / "runs" / "store" / "datasets")
    original = foreign_model(smoke_recipe)
    file = write(release_state(original), tmp_path / "market.pth", how="wrapped")

    found = run("models", "import", f"{file}", "--name", "authors")
    assert (found["form"], found["identities"]) == ("muva", 9)
    store = open_store(tmp_path / "runs" / "store")
    made = find_artifact(store, "models", "authors").manifest()
    assert run("models", "import", f"{file}", "--name", "authors") == found
    assert find_artifact(store, "models", "authors").manifest() == made
    shown = run("models", "show", "authors")
    assert shown["metadata"]["imported"]["rows"] == found["rows"]
    assert shown["made_from"] == "market.pth (muva)"

    judged = run("evaluate", "authors", "--targets", TARGET)[TARGET]
    dataset = open_dataset(find_artifact(store, "datasets", TARGET))
    rows = dataset.rows(["pid", "camid", "split"], splits=["query", "gallery"])
    images = dataset.read_images(rows["row"].to_numpy())
    features = bundle_of_model(original, metadata={}).embed([decode_rgb(image) for image in images])
    asked = rows["split"].to_numpy(zero_copy_only=False) == "query"
    pids, camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()
    expected = evaluate(
        query_features=features[asked],
        gallery_features=features[~asked],
        query_pids=pids[asked],
        gallery_pids=pids[~asked],
        query_camids=camids[asked],
        gallery_camids=camids[~asked],
    )
    assert math.isclose(judged["mean_ap"], expected.mean_ap, abs_tol=1e-6)

    refused = run("train", "--init", "authors", "--set", "model.parts=[head]", code=1)
    assert "parts is ('head', 'upper_body', 'legs') in that model, ('head',) here" in refused
    assert not list_artifacts(store, "labels", unfinished=True)

    linked_copy(smoke_store / "labels", tmp_path / "runs" / "store" / "labels")
    first = run("train", "--init", "authors", "--name", "first", "--set", "seed=5", *STILL, *KEPT)
    assert {row["what"]: row["outcome"] for row in first["start"]} == {
        **dict.fromkeys(("image encoder", "part tokens", "mask predictor", "BN neck"), "taken"),
        **dict.fromkeys(("classifier", "contexts", "text side"), "new"),
    }
    states = [*store.list(open_artifact(first["model"]).key("states"))]
    assert states, "--keep-every 1 keeps the state of each epoch"
    trained = muva.load(first["model"]).model
    for name, value in original.image_encoder.state_dict().items():
        ours = trained.image_encoder.state_dict()[name]
        torch.testing.assert_close(ours, value, atol=1e-6, rtol=0)
    manifest = find_artifact(store, "models", "first").manifest()
    assert manifest is not None
    assert manifest["inputs"]["init"] == find_artifact(store, "models", "authors").address

    run("evaluate", "first", "--targets", TARGET)
    assert {(one.method, one.sources) for one in compare_results(results_in(store))} == {
        ("authors", ()),  # what it learned from is not known
        ("first, initialised from authors", tuple(sorted(load_recipe(smoke_recipe).sources))),
    }

    # Trained here on the same people: its classes are those of the next training on them.
    config = load_recipe(smoke_recipe)
    inputs = TrainingInputs.of(
        config,
        sources=[find_artifact(store, "datasets", name) for name in config.sources],
        labels=[find_artifact(store, "labels", name) for name in config.sources],
        init=open_artifact(first["model"]),
    )
    again, _ = inputs.open(predicts_masks=True)
    assert torch.equal(again.classifier.weight, trained.classifier.weight)
    other_way = dataclasses.replace(inputs.sources, domains=inputs.sources.domains[::-1])
    swapped = dataclasses.replace(inputs, sources=other_way, labels=inputs.labels[::-1])
    other, _ = swapped.open(predicts_masks=True)
    assert not torch.equal(other.classifier.weight, trained.classifier.weight)
    assert torch.equal(other.image_encoder.proj, trained.image_encoder.proj)


def test_models_are_listed_with_what_they_were_made_from(
    run: Run, smoke_recipe: Path, small_clip: Path, tmp_path: Path
) -> None:
    model = foreign_model(smoke_recipe, parts=())
    file = write(clip_reid_state(model), tmp_path / "ViT-B-16_60.pth")
    found = run("models", "import", f"{file}", "--name", "reid", "--clip", f"{small_clip}")
    wrong = run("models", "import", f"{file}", "--name", "reid", "--form", "clip", code=1)
    assert "not of the form clip" in wrong and "--form clip-reid" in wrong
    described = {
        setting["name"]: (setting["value"], setting["origin"]) for setting in found["settings"]
    }
    assert described["model.stride"] == (8, "given")
    assert described["model.parts"] == ([], "the form")
    with pytest.raises(SystemExit):
        main(["models", "list", "--home", f"{tmp_path / 'runs'}"])
    pixels = torch.rand(3, 3, 64, 32)
    np.testing.assert_allclose(
        muva.load(found["model"]).embed_pixels(pixels),
        bundle_of_model(model, metadata={}).embed_pixels(pixels),
        atol=1e-6,
    )


def test_a_clip_of_larger_patches_than_the_recipes_opens(tmp_path: Path) -> None:
    clip = open_clip.CLIP(
        32,
        vision_cfg=open_clip.CLIPVisionCfg(layers=1, width=64, patch_size=32, image_size=96),
        text_cfg=open_clip.CLIPTextCfg(context_length=77, width=64, heads=1, layers=1),
        quick_gelu=True,
    ).eval()
    file = write(dict(clip.state_dict()), tmp_path / "ViT-B-32.pt")
    size = ("--recipe", "base", "--set", "model.image_height=96", "--set", "model.image_width=96")
    with pytest.raises(SystemExit) as stop:
        home = ("--home", f"{tmp_path / 'runs'}")
        main(["models", "import", f"{file}", "--name", "large", *size, *home])
    assert stop.value.code == 0
    model = find_artifact(open_store(tmp_path / "runs" / "store"), "models", "large")
    bundle = muva.load(model.uri)
    assert (bundle.model.config.stride, bundle.model.grid) == (32, (3, 3))
    pixels = torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(s)[:, None, None] for s in (OPENAI_MEAN, OPENAI_STD))
    with torch.no_grad():
        expected = clip.encode_image((pixels - mean) / std, normalize=True).numpy()
    np.testing.assert_allclose(bundle.embed_pixels(pixels), expected, atol=2e-6)
