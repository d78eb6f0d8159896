"""What do the parts cost a small model?: `python -m benchmarks.parts_cost`.

Epochs of stage 2 with the demo's recipe and tiny CLIP: MUVA, and the same without parts, in turns
in one process. The images are noise in memory, so that only the model is timed. Of 132 tokens, 3
are parts, which by arithmetic alone would cost a few per cent. `--check` exits with 1 if a goal is
missed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.baseline import (
    DTYPES,
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    write_results,
)
from muva.config import AugmentationConfig, ExperimentConfig, load_recipe, with_settings
from muva.data.draw import Draw
from muva.model.clip import load_clip
from muva.model.muva_model import build_model
from muva.model.precision import resolve_precision
from muva.training.report import EpochReport
from muva.training.stage2 import train_image_encoder

MAX_RATIO = 1.2
"""Goal: the time of an epoch with parts, relative to one without."""
VARIANTS: Mapping[str, dict[str, Any]] = {"global-only": {"model.parts": []}, "MUVA": {}}
PHASES = ("memory_pass_s", "steps_s")
IDENTITIES, EACH, ROUNDS = 48, 8, 5


class StoredNoise:
    """Training images that are noise in memory, with random part masks."""

    augmentation = AugmentationConfig()

    def __init__(self, config: ExperimentConfig, *, grid: tuple[int, int]):
        drawn = torch.Generator().manual_seed(0)
        self.labels = np.repeat(np.arange(IDENTITIES), EACH)
        self.image_ids = [f"noise/{row}" for row in range(len(self.labels))]
        size = (config.model.image_height, config.model.image_width)
        self._pixels = torch.randn(len(self.labels), 3, *size, generator=drawn)
        shape = (len(self.labels), len(config.model.parts), grid[0] * grid[1])
        self._masks = torch.rand(shape, generator=drawn) < 0.3 if config.model.parts else None

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """See `muva.training.loader.TrainingImages`."""
        rows = torch.from_numpy(draw.indices)
        return self._pixels[rows], None if self._masks is None else self._masks[rows]


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("parts_cost", __doc__, check="exit 1 when a goal is missed")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="epochs of each variant")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", choices=list(DTYPES), help="[the fastest one here]")
    arguments = parser.parse_args()
    precision = arguments.precision or resolve_precision("auto", torch.device("cpu"))
    print("| threads | precision | variant | features, s | steps, s | epoch, s | ratio |")
    print("|---:|---|---|---:|---:|---:|---:|")
    found = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        of = {"threads": threads, "precision": precision, **measured(precision, arguments.rounds)}
        print_rows(of)
        found.append(of)
    write_results(arguments, found, baseline_tables)
    return exit_code(arguments, misses(found))


def measured(precision: str, rounds: int) -> dict[str, Any]:
    """Variant -> phase -> seconds per epoch, and the ratio of the epochs' times."""
    running = {name: epochs(settings, precision, rounds) for name, settings in VARIANTS.items()}
    seconds: dict[str, list[Mapping[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(rounds + 1):
        for name, reports in running.items():
            report = next(reports)
            if number:  # the first epoch allocates, and measures kernels of attention
                seconds[name].append(report.seconds)
    whole = {name: [sum(of[p] for p in PHASES) for of in each] for name, each in seconds.items()}
    return {
        "epochs": {
            name: {phase: median_of([of[phase] for of in each]) for phase in PHASES}
            | {"epoch_s": median_of(whole[name])}
            for name, each in seconds.items()
        },
        "ratio": median_of(
            [ours / bare for ours, bare in zip(whole["MUVA"], whole["global-only"], strict=True)]
        ),
    }


def epochs(settings: dict[str, Any], precision: str, rounds: int) -> Iterator[EpochReport]:
    """The epochs of a training with the demo's recipe and these settings."""
    changed = {"stage2.precision": precision, "stage2.epochs": rounds + 1, **settings}
    config = with_settings(load_recipe("demo"), {**changed, "tune": None}, where="demo")
    model = config.model
    size = (model.image_height, model.image_width)
    clip = load_clip(model.clip, image_size=size, stride=model.stride)
    built = build_model(
        clip, model=model, prompts=config.prompts, identities=IDENTITIES, seed=config.seed
    )
    return train_image_encoder(
        model=built,
        images=StoredNoise(config, grid=built.grid),
        settings=config.stage2,
        seed=config.seed,
        device=torch.device("cpu"),
    )


def print_rows(of: Mapping[str, Any]) -> None:
    """Two rows of the table."""
    for name, spent in of["epochs"].items():
        ratio = f"{of['ratio']:.2f}" if name == "MUVA" else ""
        print(
            f"| {of['threads']} | {DTYPES[of['precision']]} | {name} | "
            f"{spent['memory_pass_s']:.2f} | {spent['steps_s']:.2f} | {spent['epoch_s']:.2f} | "
            f"{ratio} |",
            flush=True,
        )


def misses(found: list[dict[str, Any]]) -> list[str]:
    """The goals that were missed."""
    return [
        f"{of['threads']} threads: an epoch takes {of['ratio']:.2f} times as long, at most "
        f"{MAX_RATIO} expected"
        for of in found
        if of["ratio"] > MAX_RATIO
    ]


def baseline_tables(found: list[dict[str, Any]]) -> dict[str, Table]:
    """`epochs`: a row per number of threads."""
    rows = [
        {
            "threads": of["threads"],
            "precision": DTYPES[of["precision"]],
            "without_s": measurement(of["epochs"]["global-only"]["epoch_s"]),
            "with_s": measurement(of["epochs"]["MUVA"]["epoch_s"]),
            "ratio": measurement(of["ratio"]),
            "goal": MAX_RATIO,
        }
        for of in found
    ]
    return {"epochs": Table(rows=rows, statistic="medians")}


if __name__ == "__main__":
    sys.exit(main())
