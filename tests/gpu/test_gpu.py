"""What only a GPU can show: its numbers beside the processor's, its memory, and Ray Train on it.

`make test` leaves them out where there is none; nothing here needs more than one.
"""

from __future__ import annotations

import dataclasses
import gc
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import muva
from muva.config import Stage1Config, load_recipe, with_settings
from muva.data.artifacts import open_artifact
from muva.data.draw import Draw
from muva.data.shards import open_dataset
from muva.errors import MuvaError
from muva.model.bundle import bundle_of_model, pretrained_clip
from muva.model.export import check_pixels, export
from muva.model.precision import resolve_precision
from muva.training.compute import Compute
from muva.training.stage1 import image_centroids, learn_prompts
from tests.model.small import small_model
from tests.training.test_compute import train
from tests.training.test_micro_batches import (
    CASES,
    CPU,
    PARTS,
    Trace,
    assert_identical,
    assert_same,
    trace,
)
from tests.training.toy_images import ToyImages
from workflows.runtime.workers import Workers
from workflows.session import open_session
from workflows.steps.pipeline import run_pipeline

GPU = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")

WAYS = {
    "as it is": Compute(),
    "micro-batches": Compute(micro_batch=3),
    "checkpointing": Compute(activation_checkpointing=True),
    "channels last": Compute(channels_last=True),
    "deterministic": Compute(deterministic=True),
    "loaders": Compute(loaders=2),
    "CUDA graphs": Compute(cuda_graphs=True),
    "CUDA graphs of checkpointed blocks": Compute(cuda_graphs=True, activation_checkpointing=True),
}


@pytest.mark.parametrize("case", CASES)
def test_stage_2_learns_what_the_processor_learns(case: str) -> None:
    found = trace(case, Compute(), device=GPU)
    assert_same(found, trace(case, Compute()))


@pytest.mark.parametrize("compute", WAYS.values(), ids=list(WAYS))
def test_stage_2_learns_the_same_in_every_way(compute: Compute) -> None:
    case = "online gate, soft memory"
    assert_same(trace(case, compute, device=GPU), trace(case, Compute()))


def test_stage_1_learns_what_the_processor_learns() -> None:
    settings = Stage1Config(
        batch_size=8, images_per_identity=2, epochs=3, lr=0.05, precision="fp32"
    )
    images, contexts = ToyImages(dtype=torch.float64), []
    for device in (GPU, CPU):
        model = small_model(identities=6).double().to(device)
        centroids = image_centroids(model, images, settings, device=device)
        for _ in learn_prompts(
            model=model, centroids=centroids, labels=images.labels, settings=settings, seed=1
        ):
            pass
        contexts.append(model.contexts.detach().cpu())
    torch.testing.assert_close(*contexts, rtol=1e-9, atol=1e-9)


def test_float32_is_float32(small_clip: Path) -> None:
    """Not the ten bits that a GPU multiplies by where it is allowed to."""
    images, _ = ToyImages(dtype=torch.float64).batch(Draw(np.arange(8)))
    model = small_model(identities=6, parts=PARTS).eval()
    with torch.no_grad():
        exact = model.double().retrieval_features(images)
        found = model.float().to(GPU).retrieval_features(images.float().to(GPU)).cpu()
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6)

    clip = pretrained_clip(f"{small_clip}", image_height=64, image_width=32, stride=8)
    pixels = interpolate(images.float(), size=(64, 32)).clamp(0, 1)
    here = clip.embed_pixels(pixels)
    np.testing.assert_allclose(clip.to("cuda").embed_pixels(pixels), here, rtol=0, atol=2e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close_to_float32(precision: str) -> None:
    full, half = (
        _losses(trace("offline gate", Compute(), dtype=torch.float32, device=GPU, precision=one))
        for one in ("fp32", precision)
    )
    assert full[0] != half[0] and np.isfinite(half).all()
    # Of the first step: fp16 leaves out those that overflow until its scale fits.
    np.testing.assert_allclose(half[0], full[0], rtol=0.01)


def _losses(found: Trace) -> list[float]:
    return [float(step["loss"]) for step in found.steps]


def test_fp16_scales_its_loss_and_keeps_the_scale() -> None:
    model = small_model(identities=6, parts=PARTS)
    *_, last = train(model, ToyImages(), device=GPU, precision="fp16")
    assert float(torch.as_tensor(last.checkpoint()["scaler/scale"])) >= 1024


def test_auto_is_bf16_where_the_gpu_has_it() -> None:
    expected = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    assert resolve_precision("auto", GPU) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_deterministic_trainings_agree_bit_for_bit(precision: str) -> None:
    first, second = (
        trace(
            "online gate, soft memory",
            Compute(deterministic=True),
            dtype=torch.float32,
            device=GPU,
            precision=precision,
        )
        for _ in range(2)
    )
    assert_identical(first, second)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_replayed_passes_are_the_launched_ones_bit_for_bit(case: str, precision: str) -> None:
    launched, replayed = (
        trace(
            case,
            Compute(deterministic=True, cuda_graphs=graphs),
            dtype=torch.float32,
            device=GPU,
            precision=precision,
        )
        for graphs in (False, True)
    )
    assert_identical(replayed, launched)


@pytest.fixture
def little_memory() -> Iterator[float]:
    """Bytes of the GPU that this process may take: what other tests left there, and 150 MB."""
    gc.collect()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 150e6
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_following_the_advice_of_a_full_gpu_makes_training_fit(little_memory: float) -> None:
    tried: list[int | None] = [None]
    while message := refusal(tried[-1]):
        assert re.search(
            r"stage 2, (epoch 1, step 1 of 1|features .* epoch 1): the GPU is out of memory",
            message,
        )
        assert (
            re.search(r"a peak of [\d.]+ GB of the GPU's [\d.]+ GB so far", message)
            and "CUDA out of memory" in message
        )
        advised = re.search(r"--micro-batch (\d+)", message)
        assert advised is not None
        tried.append(int(advised[1]))
    assert len(tried) > 1
    assert torch.cuda.max_memory_allocated() <= little_memory


def refusal(micro_batch: int | None) -> str:
    """What a training of batches of 512 says that does not fit; nothing where it does."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        reports = train(
            small_model(identities=256, parts=PARTS, vision_layers=6),
            ToyImages(identities=256, images_each=2),
            compute=Compute(micro_batch=micro_batch),
            device=GPU,
            batch_size=512,
            epochs=1,
        )
    except MuvaError as error:
        return str(error)
    assert len(reports) == 1
    return ""


def test_a_pipeline_runs_on_the_gpu_and_its_model_anywhere(
    ray_session: None, smoke_recipe: Path, tmp_path: Path
) -> None:
    session = dataclasses.replace(open_session(home=tmp_path), tracking_uri=None)
    workers = Workers()
    assert workers.use_gpu and workers.compute.loaders
    settings = {
        "variants": ["muva"],
        "tune": None,
        "stage1.precision": "auto",
        "stage2.precision": "auto",
        "validation": {"identities": 0.34},
    }
    config = with_settings(load_recipe(smoke_recipe), settings, where="smoke")
    report = run_pipeline(session, config)
    manifest = open_artifact(report.models["muva"]).manifest()
    assert manifest is not None
    losses = [epoch["loss"] for epoch in manifest["summary"]["history"]]
    assert np.isfinite(losses).all()
    assert 0 < report.targets["syn-station"]["muva"].mean_ap <= 1

    dataset = open_dataset(report.datasets["syn-station"])
    images = dataset.read_images(dataset.rows(splits=["query"])["row"].to_numpy())
    bundle = muva.load(report.models["muva"])
    here = bundle.embed(images)
    np.testing.assert_allclose(bundle.to("cuda").embed(images), here, atol=1e-5)


@pytest.mark.parametrize("gating", ["offline", "online"])
def test_a_torchscript_export_runs_on_the_gpu_that_it_is_loaded_on(
    gating: str, tmp_path: Path
) -> None:
    bundle = bundle_of_model(small_model(gating=gating).eval(), metadata={})
    file = tmp_path / "model.torchscript"
    export(bundle, file, form="torchscript", model="models/small", takes="chw")
    pixels = check_pixels(bundle)
    convolution = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    before, convolution.fp32_precision = convolution.fp32_precision, "ieee"
    try:
        with torch.inference_mode():
            found = torch.jit.load(f"{file}", map_location="cuda")(pixels.to("cuda"))
    finally:
        convolution.fp32_precision = before
    assert found.device.type == "cuda"
    np.testing.assert_allclose(found.cpu().numpy(), bundle.embed_pixels(pixels), atol=1e-4)
