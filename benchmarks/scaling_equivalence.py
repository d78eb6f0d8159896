"""Equivalence of several workers, and of micro-batches, to one worker in stage 2, step by step.

    python -m benchmarks.scaling_equivalence [--json FILE] [--check]

A small model trains for an epoch on noise, with the library's own loop, in processes of one thread
that communicate through gloo: one, two and four of them, and with micro-batches of three images.
Prints the largest differences from one worker with the whole batch: after every step, of each loss
term (mean over the workers), of the memory's centroids and of the BN neck's running statistics; and
at the end, of the weights. With --check, the exit status is 1 if a difference exceeds its limit, or
if the workers of a training do not end every step with bit-identical memories.

The limits are derived in the same run, because rounding depends on the CPU: products of other
sizes are summed in another order, and the memory's temperature of 0.01 and Adam's first steps
amplify the difference. One worker therefore also trains with its initial weights moved by one unit
in the last place, up or down at random, several times; the limit of a difference is ten times the
largest that this makes, or ten units in the last place of the value itself if that is more. A
rounding in every product may do more than one at the beginning, and a fault in the exchange between
workers does much more.

That PyTorch's float32 products themselves are of full precision is checked as well: their errors
must be within the bound of a sum of n products, n u / (1 - n u), with u half a unit in the last
place (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Products in bfloat16 or TF32
exceed it by far.

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
from muva.config import AugmentationConfig, ModelConfig, PromptConfig, Stage2Config
from muva.data.draw import Draw
from muva.data.training_images import flip_part_masks
from muva.model.clip import new_clip, token_ids_in
from muva.model.distributed import mean_over_workers
from muva.model.muva_model import MuvaModel, build_model
from muva.model.prompts import prompt_texts
from muva.training.compute import Compute
from muva.training.stage2 import train_image_encoder
from muva.training.visual_memory import VisualMemory

DTYPES = (torch.float64, torch.float32)
TIMES_ROUNDING = 10.0
"""A limit is so many times the difference that rounded initial weights make."""
ROUNDINGS = 8
"""How often the reference is trained with rounded initial weights."""
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
class Variant:
    """A training: its precision, its micro-batches, and the seed of the rounding of its weights."""

    dtype: torch.dtype
    micro_batch: int | None
    rounding: int = 0
    """0: the weights are not rounded."""


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
    limits: dict[str, float]
    """By the names of `steps`, and of `weights`."""
    steps: list[dict[str, float]]
    weights: float
    key_biases: float
    """Not checked."""
    moved: float
    """The largest change of a weight in the reference training."""
    workers_alike: bool
    """Whether all workers had identical values after each step and identical weights."""

    @property
    def of_limit(self) -> float:
        """The largest difference as a fraction of its limit; NaN if a difference is."""
        found = [("weights", self.weights), *(pair for step in self.steps for pair in step.items())]
        limits = np.array([self.limits[name] for name, _ in found])
        differences = np.array([value for _, value in found])
        # Of a limit of zero, any difference is infinitely much.
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(differences == 0, 0.0, differences / limits).max())

    @property
    def passed(self) -> bool:
        """Whether every difference is within its limit; NaN is not."""
        return self.workers_alike and self.of_limit <= 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run all trainings and print the comparisons; with --check, return 1 if one fails."""
    parser = benchmark_parser(
        "scaling_equivalence", __doc__, check="exit 1 where a limit is missed"
    )
    arguments = parser.parse_args(argv)
    comparisons = compare_all()
    for comparison in comparisons:
        print(table(comparison), end="\n\n")
    error = product_error()
    print(f"float32: the error of a product is at most {error:.4f} of its bound")
    data = [{**asdict(found), "of_limit": found.of_limit} for found in comparisons]
    write_results(arguments, data, baseline_tables)
    return exit_code(
        arguments,
        [
            f"{found.dtype}, {found.workers} workers, micro-batches of {found.micro_batch}"
            for found in comparisons
            if not found.passed
        ]
        + ([] if error <= 1.0 else ["the precision of float32 products"]),
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
            "of_limit": found["of_limit"],
            "goal": 1.0,
        }
        rows.append(row | ({"micro_batch": found["micro_batch"]} if found["micro_batch"] else {}))
    return {"differences": Table(rows=rows, statistic="largest absolute difference")}


def compare_all(
    trainings: Mapping[int, Sequence[int | None]] = TRAININGS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    roundings: int = ROUNDINGS,
) -> list[Comparison]:
    """Compare every training with the first one, in each precision."""
    first = next((workers, sizes[0]) for workers, sizes in trainings.items())
    rounded = range(1, roundings + 1)
    variants = {
        workers: [
            Variant(dtype=dtype, micro_batch=size, rounding=rounding)
            for dtype in dtypes
            for size in sizes
            for rounding in (0, *(rounded if (workers, size) == first else ()))
        ]
        for workers, sizes in trainings.items()
    }
    traces = {workers: traces_of(workers, every) for workers, every in variants.items()}
    comparisons = []
    for dtype in dtypes:
        references = [
            traces[first[0]][0][Variant(dtype=dtype, micro_batch=first[1], rounding=rounding)]
            for rounding in (0, *rounded)
        ]
        limits = limits_from(references[1:], references[0])
        comparisons += [
            compare(
                [of_worker[variant] for of_worker in traces[workers]],
                references[0],
                variant=variant,
                limits=limits,
            )
            for workers, every in variants.items()
            for variant in every
            if variant.dtype == dtype
            and not variant.rounding
            and (workers, variant.micro_batch) != first
        ]
    return comparisons


def limits_from(rounded: Sequence[Trace], expected: Trace) -> dict[str, float]:
    """The limits by name, from trainings whose initial weights were rounded.

    A term that these hardly change may differ by the rounding of its own value.
    """
    differences = [steps_and_weights(trace, expected) for trace in rounded]
    unit = max(torch.finfo(weight.dtype).eps for weight in expected.after.values())
    limits = {"weights": TIMES_ROUNDING * max(weights for _, weights in differences)}
    for name in expected.steps[0]:
        changed = max(step[name] for steps, _ in differences for step in steps)
        largest = max(float(step[name].abs().max()) for step in expected.steps)
        limits[name] = TIMES_ROUNDING * max(changed, unit * largest)
    return limits


def steps_and_weights(found: Trace, expected: Trace) -> tuple[list[dict[str, float]], float]:
    """The differences of each step by name, and the largest of the weights but the key biases."""
    steps = [
        {name: apart(ours[name], value) for name, value in theirs.items()}
        for ours, theirs in zip(found.steps, expected.steps, strict=True)
    ]
    weights = [
        apart(found.after[name], value)
        for name, value in expected.after.items()
        if not name.endswith(KEYS)
    ]
    return steps, max(weights)


def compare(
    found: Sequence[Trace], expected: Trace, *, variant: Variant, limits: Mapping[str, float]
) -> Comparison:
    """Compare a training, with a trace per worker, with the reference trace."""
    first = found[0]
    steps, weights = steps_and_weights(first, expected)
    return Comparison(
        dtype=name_of(variant.dtype),
        workers=len(found),
        micro_batch=variant.micro_batch,
        limits=dict(limits),
        steps=steps,
        weights=weights,
        key_biases=max(
            apart(first.after[name], value)
            for name, value in expected.after.items()
            if name.endswith(KEYS)
        ),
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


def name_of(dtype: torch.dtype) -> str:
    """`float32`, not `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def product_error() -> float:
    """The largest error of a float32 matrix product, as a fraction of its bound.

    The matrices are larger than those of the trainings, so that the fastest kernels take part.
    """
    generator, size = torch.Generator().manual_seed(SEED), 512
    left, right = (torch.randn(size, size, generator=generator) for _ in range(2))
    unit = size * torch.finfo(torch.float32).eps / 2
    bound = unit / (1 - unit) * (left.double().abs() @ right.double().abs())
    error = (left @ right).double() - left.double() @ right.double()
    return float(error.abs().div(bound).max())


def traces_of(workers: int, variants: Sequence[Variant]) -> list[dict[Variant, Trace]]:
    """The traces of these trainings for each of so many workers."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_work, (workers, variants, folder), nprocs=workers)
        return [
            # Written by our own processes; a trace contains more than tensors.
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False)
            for rank in range(workers)
        ]


def _work(rank: int, workers: int, variants: Sequence[Variant], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers
    )
    traces = {variant: trace(variant) for variant in variants}
    torch.save(traces, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def trace(variant: Variant) -> Trace:
    """The trace of an epoch of stage 2 on this worker."""
    model = small_model().to(variant.dtype)
    if variant.rounding:
        round_weights(model, seed=variant.rounding)
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
        images=Noise(variant.dtype),
        settings=SETTINGS,
        seed=SEED,
        device=torch.device("cpu"),
        compute=Compute(micro_batch=variant.micro_batch),
        after_step=record,
    ):
        pass
    return Trace(steps=steps, before=before, after=_weights(model))


def round_weights(model: MuvaModel, *, seed: int) -> None:
    """Move every weight by one unit in the last place, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            up = torch.rand(weight.shape, generator=generator) < 0.5
            weight.copy_(torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf).to(weight)))


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

    augmentation = AugmentationConfig()

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

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """See `muva.training.loader.TrainingImages`."""
        images, masks = self._images[draw.indices], self._masks[draw.indices]
        if draw.flips is not None:
            flips = torch.from_numpy(draw.flips)
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
        f"{comparison.dtype}, {what}: differences to one worker, at most "
        f"{comparison.of_limit:.2f} of their limits: {'ok' if comparison.passed else 'FAIL'}",
        "",
        f"| step | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        f"| limit | {' | '.join(f'{comparison.limits[name]:.1e}' for name in names)} |",
        "",
        f"Weights at the end {comparison.weights:.1e}, limit {comparison.limits['weights']:.1e} "
        f"(they moved by up to {comparison.moved:.1e}), key biases {comparison.key_biases:.1e}; "
        f"all workers {'alike, bit for bit' if comparison.workers_alike else 'DIFFER'}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
