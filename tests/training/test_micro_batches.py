"""Micro-batches save memory and change nothing: steps, weights, memory and statistics are the same.

The reference is the training without them, which test_stage2 and the parity tests check.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from muva.config import Stage2Config
from muva.data.draw import Draw
from muva.model.distributed import mean_over_workers
from muva.model.muva_model import MuvaModel
from muva.training.compute import Compute
from muva.training.optimisers import stage2_optimiser
from muva.training.stage2 import train_image_encoder, training_step
from muva.training.visual_memory import VisualMemory, identity_centroids, new_memory
from tests.model.small import small_model
from tests.training.toy_images import ToyImages

CPU = torch.device("cpu")
PARTS = ("head", "upper_body", "legs")
SETTINGS = Stage2Config(
    batch_size=8,
    images_per_identity=2,
    epochs=2,
    lr=1e-4,
    warmup_epochs=1,
    milestones=(),
    precision="fp32",
)
WORKERS = 2
SIZES = (1, 3, 8)
"""One image, some that do not divide a worker's share, and no fewer than the share."""
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "offline gate": (PARTS, {}, {}),
    "online gate, soft memory": (PARTS, {"gating": "online"}, {"memory_hard_update": False}),
    "squared error": (PARTS, {}, {"mask_loss": "mse"}),
    "no parts": ((), {}, {}),
}
TWO_WORKERS = (("offline gate", 1), ("online gate, soft memory", 3), ("offline gate", 8))
LIMIT = 1e-9


@dataclasses.dataclass(frozen=True)
class Trace:
    """Terms (over all workers), memory and the neck's statistics by step, and the last weights."""

    steps: list[dict[str, Tensor]]
    weights: dict[str, Tensor]


def trace(
    case: str,
    compute: Compute,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device = CPU,
    **changed: Any,
) -> Trace:
    parts, model_settings, settings = CASES[case]
    model = small_model(identities=6, parts=parts, **model_settings).to(dtype)
    steps: list[dict[str, Tensor]] = []

    def record(terms: Mapping[str, Tensor], memory: VisualMemory) -> None:
        means = mean_over_workers([float(value) for value in terms.values()])
        steps.append(
            {
                **{
                    name: torch.tensor(mean, dtype=torch.float64)
                    for name, mean in zip(terms, means, strict=True)
                },
                "memory": memory.centroids.cpu(),
                **{name: value.to(CPU, copy=True) for name, value in model.bn_neck.named_buffers()},
            }
        )

    for _ in train_image_encoder(
        model=model,
        images=ToyImages(parts=len(parts), dtype=dtype),
        settings=SETTINGS.model_copy(update={**settings, **changed}),
        seed=5,
        device=device,
        compute=compute,
        after_step=record,
    ):
        pass
    return Trace(steps, model.cpu().state_dict())


def assert_same(found: Trace, expected: Trace, *, limit: float = LIMIT) -> None:
    assert len(found.steps) == len(expected.steps) >= 4
    for ours, theirs in zip(found.steps, expected.steps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit)
    for name, value in expected.weights.items():
        # The key third of these has a true gradient of zero: its steps are rounding.
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(found.weights[name], value, rtol=limit, atol=limit)


def assert_identical(found: Trace, expected: Trace) -> None:
    """To the bit, key biases too."""
    assert len(found.steps) == len(expected.steps) >= 4
    for ours, theirs in zip(
        [*found.steps, found.weights], [*expected.steps, expected.weights], strict=True
    ):
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_one_worker_with_micro_batches_gives_the_same_result(case: str, size: int) -> None:
    assert_same(trace(case, Compute(micro_batch=size)), trace(case, Compute()))


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS
    )
    traces = {
        (case, size): dataclasses.astuple(trace(case, Compute(micro_batch=size)))
        for case, size in TWO_WORKERS
    }
    torch.save(traces, Path(folder) / f"worker{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_with_micro_batches_give_the_result_of_one(tmp_path: Path) -> None:
    spawn(worker, (str(tmp_path),), nprocs=WORKERS)
    for rank in range(WORKERS):
        traces = torch.load(tmp_path / f"worker{rank}.pt")
        assert set(traces) == set(TWO_WORKERS)
        for (case, _), found in traces.items():
            assert_same(Trace(*found), trace(case, Compute()))


def one_step(
    model: MuvaModel, micro_batch: int | None, *, images_each: int = 4, **changed: Any
) -> None:
    """A step on all toy images, from a memory of their pixels."""
    images = ToyImages(images_each=images_each, dtype=model.classifier.weight.dtype)
    pixels, masks = images.batch(Draw(np.arange(len(images.labels))))
    labels = torch.as_tensor(images.labels)
    start = normalize(images.images.flatten(1)[:, : model.feature_dim])
    memory = new_memory(identity_centroids(start, labels, 6), SETTINGS)
    training_step(
        model.train(),
        images=pixels,
        labels=labels,
        part_masks=masks,
        prototypes=model.prototypes(),
        memory=memory,
        optimiser=stage2_optimiser(model, SETTINGS),
        settings=SETTINGS,
        micro_batch=micro_batch,
        **changed,
    )


def test_a_scaled_loss_gives_the_same_step_with_micro_batches() -> None:
    models = [small_model(identities=6, parts=PARTS).double() for _ in range(2)]
    for model, size in zip(models, (None, 3), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        one_step(model, size, scaler=scaler)
        assert scaler.get_scale() == 1024.0
    whole, cut = (model.state_dict() for model in models)
    fresh = small_model(identities=6, parts=PARTS).double().state_dict()
    assert not torch.equal(cut["image_encoder.proj"], fresh["image_encoder.proj"])
    for name, value in whole.items():
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(cut[name], value, rtol=LIMIT, atol=LIMIT)


def gradients(
    precision: str, micro_batch: int | None, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Of one step, unscaled."""
    model = small_model(identities=6, parts=PARTS).to(dtype)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16", init_scale=256.0)
    one_step(model, micro_batch, precision=precision, scaler=scaler)
    return {
        name: parameter.grad.double()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not name.endswith("in_proj_bias")
    }


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_micro_batches_round_no_worse_than_the_whole_batch(
    precision: str,
) -> None:
    exact = gradients("fp32", None, torch.float64)
    whole, cut = (
        [
            float((found[name] - exact[name]).norm() / exact[name].norm())
            for found in [gradients(precision, size)]
            for name in exact
        ]
        for size in (None, 1)
    )
    assert 0 < np.median(cut) < 1.02 * np.median(whole)
    assert max(cut) < 1.5 * max(whole) < 0.13


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that were made within and alive at once: `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(item) for item in tree_iter((args, kwargs)) if isinstance(item, Tensor)}
        result = func(*args, **(kwargs or {}))
        for item in tree_iter(result):
            if isinstance(item, Tensor) and _address(item) not in given | self._known:
                self._add(item.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        self._known.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, address, size)

    def _drop(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(micro_batch: int | None) -> tuple[int, int]:
    """The most live bytes within a step, and the largest batch that the image encoder saw."""
    model = small_model(identities=6, parts=PARTS, vision_layers=6)
    seen: list[int] = []
    model.image_encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with LiveBytes() as bytes_:
        one_step(model, micro_batch, images_each=8)
    return bytes_.peak, max(seen)


def test_bytes_are_counted_while_they_live() -> None:
    with LiveBytes() as tensors:
        first = torch.zeros(1000)
        view = first[10:].view(-1)
        view += 1
        assert (tensors.live, tensors.peak) == (4000, 4000)
        second = first + 1
        del first, view
        assert (tensors.live, tensors.peak) == (4000, 8000)
        del second
    assert (tensors.live, tensors.peak) == (0, 8000)


def test_a_step_keeps_the_activations_of_only_one_micro_batch() -> None:
    peaks, largest = zip(*(peak_bytes(size) for size in (None, 24, 12, 6)), strict=True)
    assert largest == (48, 24, 12, 6)
    # Weights, gradients and moments are there in any case; the activations halve.
    saved = -np.diff(peaks)
    np.testing.assert_allclose(saved / saved[-1], [4, 2, 1], rtol=0.15)
    assert peaks[-1] < peaks[0] / 4


def test_a_micro_batch_without_images_is_refused() -> None:
    model = small_model(parts=PARTS)
    with pytest.raises(ValueError, match="at least one image, found 0"):
        model(torch.zeros(2, 3, 48, 24), 0)
