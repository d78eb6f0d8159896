"""Images per second and memory of each phase of a training, measured with the library's own loops.

The phases in order: stage 1 encodes all images once (`features`) and learns the prompts (`prompts`,
counted in identities); at the start of each epoch, stage 2 encodes all images (`memory`), then it
trains on batches (`steps`); the trained model embeds images (`embedding`, in float32, as `muva
evaluate` does). Rates exclude the first batch, which includes one-time costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.baseline import cpu_model
from benchmarks.memory import peak_memory_mb
from muva.config import AugmentationConfig, ExperimentConfig
from muva.data.draw import Draw
from muva.data.images import ImageLike
from muva.data.training_images import flip_part_masks
from muva.model.bundle import load_bundle, save_bundle
from muva.model.muva_model import MuvaModel
from muva.model.precision import resolve_precision
from muva.training.loader import TrainingImages
from muva.training.optimisers import trained_parameters
from muva.training.stage1 import image_centroids, learn_prompts
from muva.training.stage2 import train_image_encoder, visual_memory

PHASES = ("features", "prompts", "memory", "steps", "embedding")

PHASE_TITLES = {
    "grounding": "grounding",
    "features": "stage 1, features of all images",
    "prompts": "stage 1, prompts",
    "memory": "stage 2, memory at an epoch's start",
    "steps": "stage 2, steps",
    "embedding": "embedding",
}
"""What tables call the phases, and the grounding before them."""

Open = Callable[[], tuple[MuvaModel, TrainingImages]]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The work, speed and peak memory of a phase."""

    count: int
    """Images, or for `prompts` identities."""
    seconds: float
    per_s: float
    """Measured after the first batch."""
    cores: float
    """CPU seconds per second: fewer than threads under other load, or on a GPU."""
    peak_mb: float
    """RssAnon + RssShmem of the process, in 10^6 bytes."""
    gpu_peak_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Observations about a measured training."""

    phases: dict[str, Phase]
    losses: dict[str, list[float]]
    """`prompts`, `steps` -> the loss of each step."""
    unmoved: list[str]
    """Parameters that should train but did not change at all."""
    thawed: list[str]
    """Frozen parameters that changed."""
    features: np.ndarray
    """Features (images, F) by the bundle, after writing and loading it."""
    deviation: float
    """Largest difference of these features from those of the model in memory."""


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {torch.get_num_threads()} threads"


def best_device() -> torch.device:
    """The GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def learn(
    open_stage: Mapping[str, Open],
    config: ExperimentConfig,
    *,
    device: torch.device,
    pictures: Sequence[ImageLike],
    folder: Path,
) -> Learned:
    """Run and measure both stages and the embedding of `pictures`.

    `open_stage` returns a new model and its training images for `stage1` and `stage2`. The bundle
    is written to `folder`.
    """
    phases: dict[str, Phase] = {}
    model, images = open_stage["stage1"]()
    with measured(device) as pace:
        centroids = image_centroids(model, images, config.stage1, device=device, progress=pace.tick)
    phases["features"] = pace.phase(len(images.labels), config.stage1.batch_size)

    people = config.stage1.batch_size // config.stage1.images_per_identity
    start = model.contexts.detach().clone()
    losses: dict[str, list[float]] = {"prompts": [], "steps": []}
    with measured(device) as pace:
        for report in learn_prompts(
            model=model,
            centroids=centroids,
            labels=images.labels,
            settings=config.stage1,
            seed=config.seed,
        ):
            losses["prompts"] += report.step_losses
            pace.tick()
    steps = len(losses["prompts"])
    phases["prompts"] = pace.phase(steps * people, steps * people // config.stage1.epochs)
    contexts = model.contexts.detach().cpu()
    unmoved = ["contexts"] if torch.equal(model.contexts, start) else []
    del model, images, centroids, start

    model, images = open_stage["stage2"]()
    model.contexts.data.copy_(contexts)
    model.to(device)
    precision = resolve_precision(config.stage2.precision, device)
    batch = config.stage2.batch_size
    with measured(device) as pace:
        visual_memory(
            model, images, config.stage2, device=device, precision=precision, progress=pace.tick
        )
    phases["memory"] = pace.phase(len(images.labels), batch)
    before = {name: value.detach().cpu().clone() for name, value in model.named_parameters()}
    with measured(device) as pace:
        for report in train_image_encoder(
            model=model,
            images=images,
            settings=config.stage2,
            seed=config.seed,
            device=device,
            progress=pace.tick,
        ):
            losses["steps"] += report.step_losses
    passed = -(-len(images.labels) // batch)  # batches of the memory, at each epoch's start
    phases["steps"] = pace.steps(config.stage2.epochs, passed, batch)
    trained = set(trained_parameters(model))
    same = {
        name for name, value in model.named_parameters() if torch.equal(value.cpu(), before[name])
    }
    del before

    save_bundle(model.eval(), folder, metadata={})
    expected = model.cpu()
    bundle = load_bundle(folder).to(device)
    with measured(device) as pace:
        found = []
        for at in range(0, len(pictures), batch):
            found.append(bundle.embed(pictures[at : at + batch]))
            pace.tick()
    phases["embedding"] = pace.phase(len(pictures), batch)
    few = pictures[:4]
    with torch.inference_mode():
        direct = expected.retrieval_features(bundle.to("cpu").pixels(few)).numpy()
    return Learned(
        phases=phases,
        losses=losses,
        unmoved=sorted(unmoved + [name for name in trained if name in same]),
        thawed=sorted(set(dict(model.named_parameters())) - trained - same),
        features=np.concatenate(found),
        deviation=float(np.abs(bundle.embed(few) - direct).max()),
    )


@dataclass
class Pace:
    """Times a phase and each of its batches, and records its memory."""

    device: torch.device
    began_at: float = 0.0
    done_at: list[float] = field(default_factory=list)
    cores: float = 0.0
    peak_mb: float = 0.0
    gpu_peak_mb: float | None = None

    def tick(self, *_: int) -> None:
        """Mark a batch as finished, after synchronising with the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.done_at.append(time.perf_counter())

    def phase(self, count: int, batch: int) -> Phase:
        """The phase's pace, given its images or identities and those in the first batch."""
        seconds = self.done_at[-1] - self.began_at
        after_first = self.done_at[-1] - self.done_at[0]
        per_s = (count - batch) / after_first if count > batch else count / seconds
        return self._phase(count, seconds, per_s)

    def steps(self, epochs: int, passed: int, batch: int) -> Phase:
        """The pace of epochs that start with `passed` batches of another phase.

        The first step of each epoch is excluded, unless the epoch has only one.
        """
        each = len(self.done_at) // epochs
        spent, counted, seconds = 0.0, 0, 0.0
        for epoch in range(epochs):
            done_at = self.done_at[epoch * each : (epoch + 1) * each]
            seconds += done_at[-1] - done_at[passed - 1]
            first = passed if each - passed > 1 else passed - 1
            spent += done_at[-1] - done_at[first]
            counted += batch * (each - 1 - first)
        return self._phase(epochs * batch * (each - passed), seconds, counted / spent)

    def _phase(self, count: int, seconds: float, per_s: float) -> Phase:
        return Phase(
            count=count,
            seconds=seconds,
            per_s=per_s,
            cores=self.cores,
            peak_mb=self.peak_mb,
            gpu_peak_mb=self.gpu_peak_mb,
        )


@contextmanager
def measured(device: torch.device) -> Iterator[Pace]:
    """The pace and peak memory of a `with` block."""
    pace = Pace(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with peak_memory_mb() as peak:
        pace.began_at, spent = time.perf_counter(), time.process_time()
        yield pace
        pace.cores = (time.process_time() - spent) / (time.perf_counter() - pace.began_at)
    pace.peak_mb = peak[0]
    if device.type == "cuda":
        pace.gpu_peak_mb = torch.cuda.max_memory_allocated(device) / 1e6


class NoiseImages:
    """Training images for measurements: noise, with part masks in three bands."""

    augmentation = AugmentationConfig()

    def __init__(
        self, config: ExperimentConfig, *, identities: int, each: int, grid: tuple[int, int]
    ):
        self.labels = np.repeat(np.arange(identities), each)
        self.image_ids = [f"noise/{row}" for row in range(len(self.labels))]
        self._size = (config.model.image_height, config.model.image_width)
        self._grid = grid
        self._masks = None
        parts = len(config.model.parts)
        if parts:
            band = torch.arange(grid[0]) * parts // grid[0]
            rows = band == torch.arange(parts)[:, None]
            self._masks = rows[:, :, None].expand(-1, -1, grid[1]).flatten(1)

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """See `muva.training.loader.TrainingImages`."""
        rng = np.random.default_rng(int(draw.indices[0]))
        pixels = rng.standard_normal((len(draw), 3, *self._size), np.float32)
        if self._masks is None:
            return torch.from_numpy(pixels), None
        masks = self._masks.expand(len(draw), -1, -1)
        if draw.flips is not None:
            flips = torch.from_numpy(draw.flips)
            masks = torch.where(
                flips[:, None, None], flip_part_masks(masks, grid=self._grid), masks
            )
        return torch.from_numpy(pixels), masks
