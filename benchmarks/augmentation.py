"""Speed of the augmentation of training images: `python -m benchmarks.augmentation`.

Prints images per second and core (CPU time of one thread) for each augmentation on every image, and
for all together at the probabilities of `EVERYTHING`; beside it the same changes by
`torchvision.transforms.v2.functional`, one image at a time. Pad and crop includes the part masks.
`--check` exits with 1 if all together miss the goal at a size.

The probabilities of `EVERYTHING` are those of the example in docs/training-costs.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from benchmarks.baseline import (
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    per_second,
    write_results,
)
from muva.config import AugmentationConfig
from muva.data.augmentation import augmented
from muva.data.augmentation_draws import AugmentationDraws, draw_augmentations
from muva.grounding.part_masks import BoxMasks, patch_centres
from muva.synthetic import render

GOAL = 1000.0
"""Images per second and core with everything on, at each size."""
SIZES = ((128, 64), (256, 128))
BATCH = 64
ROUND_S = 0.25
EVERYTHING: dict[str, Any] = {
    "pad": 10,
    "jitter": 0.5,
    "gamma": 1.25,
    "cast": 0.1,
    "grey": 0.1,
    "blur": 0.2,
    "low_resolution": 0.25,
    "sharpen": 0.2,
    "jpeg": 0.25,
    "erase": 0.5,
}
TITLES = {
    "pad": "pad and crop, 10 pixels",
    "jitter": "brightness, contrast, saturation, hue",
    "gamma": "gamma",
    "cast": "channel casts",
    "grey": "greyscale",
    "blur": "blur",
    "low_resolution": "low resolution",
    "sharpen": "sharpening",
    "jpeg": "JPEG",
    "erase": "random erasing",
}
TOGETHER = "all, at usual probabilities"

Rates = dict[str, dict[str, float]]
"""Augmentation -> `ours` and `torchvision` -> images per second and core."""


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("augmentation", __doc__, check="exit 1 below the goal")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found = {f"{h} x {w}": rates(h, w, rounds=arguments.rounds) for h, w in SIZES}
    print("| size | augmentation | images/s and core | torchvision |\n|---|---|---:|---:|")
    for size, of_size in found.items():
        for title, rate in of_size.items():
            print(f"| {size} | {title} | {rate['ours']:.0f} | {rate['torchvision']:.0f} |")
    write_results(arguments, found, baseline_tables)
    return exit_code(arguments, misses(found))


def misses(found: Mapping[str, Rates]) -> list[str]:
    """Descriptions of the missed goals."""
    return [
        f"{size}: {of_size[TOGETHER]['ours']:.0f} images/s and core, goal {GOAL:.0f}"
        for size, of_size in found.items()
        if of_size[TOGETHER]["ours"] < GOAL
    ]


def baseline_tables(found: Mapping[str, Rates]) -> dict[str, Table]:
    """`rates`: a row for each augmentation, with both sizes."""
    rows = []
    for title in next(iter(found.values())):
        row: dict[str, Any] = {"augmentation": title}
        for size, of_size in found.items():
            height = size.partition(" ")[0]
            row[f"ours_{height}"] = measurement(of_size[title]["ours"])
            row[f"torchvision_{height}"] = measurement(of_size[title]["torchvision"])
        rows.append(row | ({"goal": GOAL} if title == TOGETHER else {}))
    return {"rates": Table(rows=rows, statistic="medians")}


def rates(height: int, width: int, *, rounds: int) -> Rates:
    """The rates at one size."""
    pixels = _people(height, width)
    tensors = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    masks = _box_masks(height, width)
    cases = {title: {name: _always(name)} for name, title in TITLES.items()}
    found = {}
    for title, changes in {**cases, TOGETHER: EVERYTHING}.items():
        settings = AugmentationConfig(**changes)

        def ours(seeds: np.ndarray, settings: AugmentationConfig = settings) -> None:
            _, shift = augmented(pixels, seeds, settings)
            if settings.pad:
                masks(torch.arange(BATCH), torch.from_numpy(shift / (width, height)))

        def theirs(seeds: np.ndarray, settings: AugmentationConfig = settings) -> None:
            draws = draw_augmentations(seeds, settings, height=height, width=width)
            for number, image in enumerate(tensors):
                by_torchvision(image, draws, number)

        found[title] = {
            "ours": _rate(ours, rounds=rounds),
            "torchvision": _rate(theirs, rounds=rounds),
        }
    return found


def by_torchvision(image: Tensor, draws: AugmentationDraws, number: int) -> Tensor:
    """An image (3, H, W) as `augmented` changes it, by torchvision's functions."""
    height, width = image.shape[1:]
    dx, dy = draws.shift[number].tolist()
    if dx or dy:
        most = max(abs(dx), abs(dy))
        image = functional.crop(functional.pad(image, [most]), most - dy, most - dx, height, width)
    if draws.gamma[number] != 1:
        image = functional.adjust_gamma(image, draws.gamma[number])
    if (draws.gain[number] != 1).any():
        gained = image * torch.from_numpy(draws.gain[number]).float()[:, None, None]
        image = gained.round().clamp(0, 255).byte()
    brightness, contrast, saturation, hue = draws.jitter[number].tolist()
    for change, factor, neutral in (
        (functional.adjust_brightness, brightness, 1),
        (functional.adjust_contrast, contrast, 1),
        (functional.adjust_saturation, saturation, 1),
        (functional.adjust_hue, hue, 0),
    ):
        if factor != neutral:
            image = change(image, factor)
    if draws.grey[number]:
        image = functional.rgb_to_grayscale(image, 3)
    if draws.blur_sigma[number]:
        sigma = draws.blur_sigma[number]
        size = 2 * round(3 * sigma) + 1
        image = functional.gaussian_blur(image, [size, size], [sigma, sigma])
    scale = draws.scale[number]
    if scale < 1:
        image = functional.resize(image, [round(scale * height), round(scale * width)])
    if draws.sharpening[number]:
        image = functional.adjust_sharpness(image, 1 + draws.sharpening[number])
    if draws.jpeg_quality[number]:
        image = functional.jpeg(image, int(draws.jpeg_quality[number]))
    if scale < 1:
        image = functional.resize(image, [height, width])
    x0, y0, x1, y1 = draws.erased[number].tolist()
    if x1:
        noise = torch.randint(0, 256, (3, y1 - y0, x1 - x0), dtype=torch.uint8)
        image = functional.erase(image, y0, x0, y1 - y0, x1 - x0, noise)
    return image


def _always(name: str) -> float:
    """The value that switches an augmentation on for every image."""
    return EVERYTHING[name] if name in ("pad", "gamma", "cast") else 1.0


def _rate(work: Callable[[np.ndarray], None], *, rounds: int) -> float:
    """Images per second of CPU time, with other seeds for each batch."""
    rng = np.random.default_rng(0)
    work(rng.integers(2**62, size=BATCH))
    seconds = []
    for _ in range(rounds):
        batches, started_at = 0, time.process_time()
        while (spent := time.process_time() - started_at) < ROUND_S:
            work(rng.integers(2**62, size=BATCH))
            batches += 1
        seconds.append(spent / batches)
    return per_second(BATCH, median_of(seconds))


def _people(height: int, width: int) -> np.ndarray:
    """A batch of rendered people (B, H, W, 3)."""
    people = [
        render("syn-campus", pid=pid, camid=1, index=0, height=height, width=width).image
        for pid in range(1, 17)
    ]
    return np.concatenate([np.stack(people)] * (BATCH // len(people)))


def _box_masks(height: int, width: int) -> BoxMasks:
    """Boxes of three parts for each image, on patches of 16 pixels."""
    bands = [(0.3, 0.0, 0.7, 0.2), (0.1, 0.15, 0.9, 0.55), (0.2, 0.5, 0.8, 1.0)]
    return BoxMasks(
        boxes=torch.tensor(bands).repeat(BATCH, 1, 1),
        found=torch.ones(BATCH, 3, dtype=torch.bool),
        row_centres=patch_centres(height, patch=16, stride=16),
        column_centres=patch_centres(width, patch=16, stride=16),
    )


if __name__ == "__main__":
    sys.exit(main())
