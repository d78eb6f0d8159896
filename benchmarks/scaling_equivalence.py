"""Equivalence of several workers, and of micro-batches, to one worker in stage 2, step by step.

    python -m benchmarks.scaling_equivalence [--json FILE] [--check]

A small model trains for an epoch on noise, with the library's own loop, in processes of one thread
that communicate through gloo: one, two and four of them, and with micro-batches of three images.
Prints the largest differences from one worker with the whole batch: after every step, of each loss
term (mean over the workers), of the memory's centroids and of the BN neck's running statistics; and
at the end, of the weights. With --check, the exit status is 1 if a difference exceeds its limit, or
if the workers of a training do not end every step with bit-identical memories.

The key third of an attention's bias is printed but not checked: its true gradient is zero (it adds
the same value to all of a query's scores), so its steps are rounding errors.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.baseline import Row, Table, benchmark_parser, exit_code, write_results
from muva.config import ModelConfig, PromptConfig, Stage2Config
from muva.data.training_images import flip_part_masks
from muva.model.clip import new_clip, token_ids_in
from muva.model.distributed import mean_over_workers
from muva.model.muva_model import MuvaModel, build_model
from muva.model.prompts import prompt_texts
from muva.training.compute import Compute
from muva.training.stage2 import train_image_encoder
from muva.training.visual_memory import VisualMemory

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
MICRO_BATCH = 3
"""Batches have eight images, so the last micro-batch is smaller."""
TRAININGS: dict[int, tuple[int | None, ...]] = {
    1: (None, MICRO_BATCH),
    2: (None, MICRO_BATCH),
    4: (None,),
}
"""Workers -> micro-batches of their trainings; the first training is the reference."""
SEED = 5
IDENTITIES, IMAGES_EACH = 8, 6
PATCH = 8
MODEL = ModelConfig(clip="small", image_height=48, image_width=24, stride=PATCH)
SETTINGS = Stage2Config(
    batch_size=8,
    images_per_identity=2,
    epochs=1,
    lr=1e-4,
    warmup_epochs=0,
    milestones=(),
    precision="fp32",
)

Numbers = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A worker's record: values of each step by name, and weights before and after the training."""

    steps: list[Numbers]
    """Loss terms over all workers by name, `centroids` and `statistics`."""
    before: Numbers
    after: Numbers


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Largest absolute differences of a training from that of one worker with the whole batch."""

    dtype: str
    workers: int
    micro_batch: int | None
    limit: float
    steps: list[dict[str, float]]
    weights: float
    key_biases: float
    """Not checked."""
    moved: float
    """The largest change of a weight in the reference training."""
    workers_alike: bool
    """Whether all workers had identical values after each step and identical weights."""

    @property
    def passed(self) -> bool:
        """Whether every difference is within its limit; NaN is not."""
        differences = [self.weights, *(value for step in self.steps for value in step.values())]
        return self.workers_alike and all(value <= self.limit for value in differences)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all trainings and print the comparisons; with --check, return 1 if one fails."""
    parser = benchmark_parser(
        "scaling_equivalence", __doc__, check="exit 1 where a limit is missed"
    )
    arguments = parser.parse_args(argv)
    comparisons = compare_all()
    for comparison in comparisons:
        print(table(comparison), end="\n\n")
    write_results(arguments, [asdict(found) for found in comparisons], baseline_tables)
    return exit_code(
        arguments,
        [
            f"{found.dtype}, {found.workers} workers, micro-batches of {found.micro_batch}"
            for found in comparisons
            if not found.passed
        ],
    )


def baseline_tables(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
    """`differences`: the largest of all steps, a row per training."""
    rows = []
    for found in comparisons:
        largest = {name: max(step[name] for step in found["steps"]) for name in found["steps"][0]}
        centroids, statistics = largest.pop("centroids"), largest.pop("statistics")
        row: Row = {
            "precision": found["dtype"],
            "workers": found["workers"],
            "losses": max(largest.values()),
            "centroids": centroids,
            "statistics": statistics,
            "weights": found["weights"],
            "key_biases": found["key_biases"],
            "goal": found["limit"],
        }
        rows.append(row | ({"micro_batch": found["micro_batch"]} if found["micro_batch"] else {}))
    return {"differences": Table(rows=rows, statistic="largest absolute difference")}


def compare_all(
    trainings: Mapping[int, Sequence[int | None]] = TRAININGS,
    dtypes: Sequence[torch.dtype] = tuple(LIMITS),
) -> list[Comparison]:
    """Compare every training with the first one, in each precision."""
    traces = {workers: traces_of(workers, sizes, dtypes) for workers, sizes in trainings.items()}
    first = next((workers, sizes[0]) for workers, sizes in trainings.items())
    return [
        compare(
            [of_worker[dtype, size] for of_worker in traces[workers]],
            traces[first[0]][0][dtype, first[1]],
            dtype=dtype,
            micro_batch=size,
        )
        for dtype in dtypes
        for workers, sizes in trainings.items()
        for size in sizes
        if (workers, size) != first
    ]


def compare(
    found: Sequence[Trace], expected: Trace, *, dtype: torch.dtype, micro_batch: int | None
) -> Comparison:
    """Compare a training, with a trace per worker, with the reference trace."""
    first = found[0]
    weights = {name: apart(first.after[name], value) for name, value in expected.after.items()}
    return Comparison(
        dtype=str(dtype).removeprefix("torch."),
        workers=len(found),
        micro_batch=micro_batch,
        limit=LIMITS[dtype],
        steps=[
            {name: apart(ours[name], value) for name, value in theirs.items()}
            for ours, theirs in zip(first.steps, expected.steps, strict=True)
        ],
        weights=max(value for name, value in weights.items() if not name.endswith(KEYS)),
        key_biases=max(value for name, value in weights.items() if name.endswith(KEYS)),
        moved=max(
            apart(expected.before[name], value)
            for name, value in expected.after.items()
            if not name.endswith(KEYS)
        ),
        workers_alike=all(
            torch.equal(ours[name], value)
            for other in found[1:]
            for ours, theirs in zip(
                [*other.steps, other.after], [*first.steps, first.after], strict=True
            )
            for name, value in theirs.items()
        ),
    )


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference."""
    return float((ours - theirs).abs().max())


def traces_of(
    workers: int, micro_batches: Sequence[int | None], dtypes: Sequence[torch.dtype]
) -> list[dict[tuple[torch.dtype, int | None], Trace]]:
    """The traces of these trainings for each of so many workers."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_work, (workers, micro_batches, dtypes, folder), nprocs=workers)
        return [
            # Written by our own processes; a trace contains more than tensors.
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False)
            for rank in range(workers)
        ]


def _work(
    rank: int,
    workers: int,
    micro_batches: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    folder: str,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers
    )
    traces = {
        (dtype, size): trace(dtype, micro_batch=size) for dtype in dtypes for size in micro_batches
    }
    torch.save(traces, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def trace(dtype: torch.dtype, *, micro_batch: int | None) -> Trace:
    """The trace of an epoch of stage 2 on this worker."""
    model = small_model().to(dtype)
    before = _weights(model)
    steps: list[Numbers] = []

    def record(terms: Mapping[str, Tensor], memory: VisualMemory) -> None:
        means = mean_over_workers([float(value) for value in terms.values()])
        numbers = dict(zip(terms, torch.tensor(means, dtype=torch.float64), strict=True))
        numbers["centroids"] = memory.centroids
        statistics = [model.bn_neck.get_buffer(f"running_{name}") for name in ("mean", "var")]
        numbers["statistics"] = torch.cat(statistics)
        steps.append(numbers)

    for _ in train_image_encoder(
        model=model,
        images=Noise(dtype),
        settings=SETTINGS,
        seed=SEED,
        device=torch.device("cpu"),
        compute=Compute(micro_batch=micro_batch),
        after_step=record,
    ):
        pass
    return Trace(steps=steps, before=before, after=_weights(model))


KEYS = ".in_proj_bias of keys"


def _weights(model: MuvaModel) -> Numbers:
    """Copies of the weights, with attention biases split into queries, keys and values."""
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().clone()
        if name.endswith(".in_proj_bias"):
            for part, third in zip(("queries", "keys", "values"), value.chunk(3), strict=True):
                weights[f"{name} of {part}"] = third.clone()
        else:
            weights[name] = value
    return weights


def small_model() -> MuvaModel:
    """A model with two blocks of width 64, three parts and random weights."""
    clip = new_clip(
        token_ids=token_ids_in(prompt_texts(MODEL.parts, PromptConfig())),
        seed=SEED,
        image_size=(MODEL.image_height, MODEL.image_width),
        patch=PATCH,
        vision_width=64,
        vision_layers=2,
        text_width=64,
        text_layers=2,
        embed_dim=32,
    )
    return build_model(clip, model=MODEL, prompts=PromptConfig(), identities=IDENTITIES, seed=SEED)


class Noise:
    """Training images: noise around a pattern for each identity, with random part masks.

    Unlike the cheaper noise of `benchmarks.phases`, every index has a different image.
    """

    def __init__(self, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(SEED)
        self.labels = np.repeat(np.arange(IDENTITIES), IMAGES_EACH)
        self.image_ids = [f"noise/{row}" for row in range(len(self.labels))]
        size = (3, MODEL.image_height, MODEL.image_width)
        patterns = torch.randn(IDENTITIES, *size, generator=generator)
        noise = torch.randn(len(self.labels), *size, generator=generator)
        self._images = (patterns[self.labels] + 0.5 * noise).to(dtype)
        self._grid = (MODEL.image_height // PATCH, MODEL.image_width // PATCH)
        shape = (len(self.labels), len(MODEL.parts), self._grid[0] * self._grid[1])
        self._masks = torch.rand(shape, generator=generator) < 0.4

    def batch(self, indices: np.ndarray, flips: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `muva.training.loader.TrainingImages`."""
        images, masks = self._images[indices], self._masks[indices]
        if flips is not None:
            images = torch.where(flips[:, None, None, None], images.flip(-1), images)
            mirrored = flip_part_masks(masks, grid=self._grid)
            masks = torch.where(flips[:, None, None], mirrored, masks)
        return images, masks


def table(comparison: Comparison) -> str:
    """A comparison as text: a line per step, and one for the end."""
    names = list(comparison.steps[0])
    size = comparison.micro_batch
    what = f"{comparison.workers} worker{'s' if comparison.workers > 1 else ''}" + (
        f", micro-batches of {size}" if size else ""
    )
    rows = [
        [str(number), *(f"{step[name]:.1e}" for name in names)]
        for number, step in enumerate(comparison.steps, start=1)
    ]
    lines = [
        f"{comparison.dtype}, {what}: differences to one worker, limit {comparison.limit:.0e}: "
        f"{'ok' if comparison.passed else 'FAIL'}",
        "",
        f"| step | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Weights at the end {comparison.weights:.1e} (they moved by up to {comparison.moved:.1e}),"
        f" key biases {comparison.key_biases:.1e}; all workers "
        f"{'alike, bit for bit' if comparison.workers_alike else 'DIFFER'}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
