"""How a machine computes is no setting of the result: the same losses, weights and memory.

The reference is the training without any of these settings.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor
from torch._inductor.utils import fresh_cache

from muva.config import Stage2Config
from muva.data.draw import Draw
from muva.errors import MuvaError
from muva.model.image_encoder import ImageFeatures, call_directly
from muva.model.muva_model import MuvaModel
from muva.training.compute import Compute, apply_compute
from muva.training.cuda_graphs import GraphedEncoder, TensorOutputs
from muva.training.optimisers import trained_parameters
from muva.training.report import EpochReport
from muva.training.stage2 import train_image_encoder
from tests.model.small import small_model
from tests.training.test_micro_batches import (
    CASES,
    CPU,
    PARTS,
    SETTINGS,
    LiveBytes,
    assert_identical,
    assert_same,
    one_step,
    trace,
)
from tests.training.toy_images import ToyImages

SAME = {
    "checkpointing": Compute(activation_checkpointing=True),
    "checkpointing of micro-batches": Compute(activation_checkpointing=True, micro_batch=3),
    "channels last": Compute(channels_last=True),
    "deterministic": Compute(deterministic=True),
    "loaders": Compute(loaders=2),
}


@pytest.mark.parametrize("compute", SAME.values(), ids=SAME)
@pytest.mark.parametrize("case", ["online gate, soft memory", "no parts"])
def test_a_training_learns_the_same(case: str, compute: Compute) -> None:
    assert_same(trace(case, compute), trace(case, Compute()))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with fresh_cache():
        yield
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_features_and_gradients(fresh_compiler: None) -> None:
    images, _ = ToyImages().batch(Draw(np.arange(8)))
    found: list[list[Tensor]] = []
    for compute in (Compute(), Compute(compile=True)):
        model = small_model(identities=6, parts=PARTS, vision_layers=1)
        with apply_compute(model.image_encoder, compute):
            encoded = model.encode_images(images)
        assert encoded.mask_logits is not None
        (encoded.feature.square().mean() + encoded.mask_logits.square().mean()).backward()
        learning = trained_parameters(model).items()
        encoder = [p.grad for name, p in learning if name.startswith("image_encoder")]
        gradients = [gradient for gradient in encoder if gradient is not None]
        found.append([encoded.feature, encoded.mask_logits, *gradients])
    plain, compiled = found
    assert len(plain) == len(compiled) > 20
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_error_says_so(
    fresh_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    with pytest.raises(MuvaError, match=r"torch\.compile failed: .* train without --compile"):
        train(small_model(identities=6, parts=PARTS), ToyImages(), compute=Compute(compile=True))


def test_a_captured_pass_is_replayed_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded on a processor, where a graph is the pass itself: what is recorded, and what not."""
    sizes: list[int] = []

    def record(self: GraphedEncoder, images: Tensor) -> Any:
        sizes.append(len(images))
        return TensorOutputs(self._encoder, self._encode)

    for case in CASES:
        expected = trace(case, Compute())
        with monkeypatch.context() as patched:
            patched.setattr(GraphedEncoder, "_record", record)
            assert_same(trace(case, Compute(cuda_graphs=True)), expected)
    assert sizes == [SETTINGS.batch_size] * len(CASES)


def test_a_batch_in_another_precision_is_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[bool] = []

    def record(self: GraphedEncoder, images: Tensor) -> Any:
        kinds.append(torch.is_autocast_enabled("cpu"))
        return TensorOutputs(self._encoder, self._encode)

    monkeypatch.setattr(GraphedEncoder, "_record", record)
    model = small_model(identities=6, parts=PARTS)
    with apply_compute(model.image_encoder, Compute(cuda_graphs=True)):
        for precision in ("fp32", "bf16", "fp32", "bf16"):
            one_step(model, None, precision=precision)
    assert kinds == [False, True]


def test_cuda_graphs_are_refused_where_they_cannot_be() -> None:
    model = small_model(identities=6, parts=PARTS)
    with pytest.raises(
        MuvaError, match=r"on a CUDA GPU, found 1 worker\(s\) on cpu: train without --cuda-graphs"
    ):
        train(model, ToyImages(), compute=Compute(cuda_graphs=True))
    with pytest.raises(MuvaError, match=r"--micro-batch splits the batch: use only one of them"):
        Compute(cuda_graphs=True, micro_batch=4)


def test_the_encoder_is_as_it_was_after_a_training() -> None:
    model = small_model(parts=PARTS)
    with apply_compute(model.image_encoder, Compute(cuda_graphs=True)):
        assert isinstance(model.image_encoder.forward, GraphedEncoder)
    assert "forward" not in vars(model.image_encoder)
    compute = Compute(activation_checkpointing=True, deterministic=True)
    with apply_compute(model.image_encoder, compute):
        assert model.image_encoder.call is not call_directly
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    assert model.image_encoder.call is call_directly
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_deterministic_trainings_agree_bit_for_bit(precision: str) -> None:
    first, second = (
        trace("online gate, soft memory", Compute(deterministic=True), dtype=torch.float32,
              precision=precision)
        for _ in range(2)
    )  # fmt: skip
    assert_identical(first, second)


def test_checkpointed_blocks_keep_only_their_inputs() -> None:
    peaks = []
    for compute in (Compute(), Compute(activation_checkpointing=True)):
        model = small_model(identities=6, parts=PARTS, vision_layers=6)
        with apply_compute(model.image_encoder, compute), LiveBytes() as bytes_:
            one_step(model, None, images_each=8)
        peaks.append(bytes_.peak)
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_that_trains_has_a_gradient_in_every_step(case: str) -> None:
    """What DistributedDataParallel is promised: it looks for none that has none."""
    parts, model_settings, settings = CASES[case]
    model = small_model(identities=6, parts=parts, **model_settings)
    without: list[set[str]] = []

    def check(*_: Any) -> None:
        trained = trained_parameters(model)
        without.append({name for name, value in trained.items() if value.grad is None})

    train(model, ToyImages(parts=len(parts)), after_step=check, **settings)
    assert len(without) >= 4 and not set().union(*without)


def train(
    model: MuvaModel,
    images: ToyImages,
    *,
    compute: Compute | None = None,
    device: torch.device = CPU,
    after_step: Any = None,
    **settings: Any,
) -> list[EpochReport]:
    return list(
        train_image_encoder(
            model=model,
            images=images,
            settings=Stage2Config(**{**SETTINGS.model_dump(), **settings}),
            seed=5,
            device=device,
            compute=compute,
            after_step=after_step,
        )
    )


class FullAt:
    """An encoder on a device that has room for so many images with their activations."""

    def __init__(self, model: MuvaModel, *, train: int, features: int):
        self._encode, self._room = model.image_encoder.forward, (features, train)

    def __call__(self, images: Tensor, part_masks: Tensor | None = None) -> ImageFeatures:
        if len(images) > self._room[torch.is_grad_enabled()]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nMore.")
        return self._encode(images, part_masks)


@pytest.mark.parametrize(
    ("room", "where"),
    [
        ({"train": 2, "features": 8}, "stage 2, epoch 1, step 1 of 2"),
        ({"train": 8, "features": 2}, "stage 2, features for the memory of epoch 1"),
    ],
)
def test_following_the_advice_of_a_full_gpu_makes_training_fit(
    room: dict[str, int], where: str
) -> None:
    tried: list[int | None] = [None]
    while True:
        model = small_model(identities=6, parts=PARTS)
        model.image_encoder.forward = FullAt(model, **room)
        try:
            reports = train(model, ToyImages(), compute=Compute(micro_batch=tried[-1]))
        except MuvaError as error:
            message = str(error)
            assert message.startswith(
                f"{where}: the GPU is out of memory when encoding {tried[-1] or 8} of 8"
            )
            assert "PyTorch's message: CUDA out of memory. Tried to allocate 9.00 GiB." in message
            advised = re.search(r"--micro-batch (\d+)", message)
            assert advised is not None
            tried.append(int(advised[1]))
        else:
            break
    assert tried == [None, 4, 2] and len(reports) == 2


def test_a_full_gpu_is_advised_to_disable_cuda_graphs_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GraphedEncoder, "_record", lambda self, images: self._encode)
    model = small_model(identities=6, parts=PARTS)
    model.image_encoder.forward = FullAt(model, train=0, features=8)
    with pytest.raises(
        MuvaError, match=r"best option first: no --cuda-graphs, which keep .*; --micro"
    ):
        train(model, ToyImages(), compute=Compute(cuda_graphs=True))
    assert isinstance(model.image_encoder.forward, FullAt)


def test_a_full_gpu_is_advised_only_what_was_not_tried() -> None:
    model = small_model(identities=6, parts=PARTS)
    model.image_encoder.forward = FullAt(model, train=0, features=8)
    compute = Compute(micro_batch=1, activation_checkpointing=True)
    with pytest.raises(MuvaError) as full:
        train(model, ToyImages(), compute=compute, precision="bf16")
    assert "micro-batch" not in str(full.value) and "checkpointing" not in str(full.value)
    assert "precision=" not in str(full.value)
    assert "more --workers" in str(full.value) and "stage2.batch_size" in str(full.value)
