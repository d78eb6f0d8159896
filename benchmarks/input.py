"""Overhead of the input pipeline over bare decoding: `python -m benchmarks.input`.

JPEGs of people in shards become normalised batches at 256 x 128. Compares, in turns and as medians,
decoding and resizing alone, from memory, with the batches of a `Loader`, by its thread on one core
and by one process per core: in shard order and in P x K batches, decoded for the first time and
from the node's cache of decoded images. Also measures the memory of this process and its loaders
over several epochs, and the fraction of a step spent waiting for its batch: measured when training
the tiny CLIP, and computed for ViT-B/16 from the rate of `benchmarks.training`. `--check` exits
with 1 if a goal is missed.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.baseline import (
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    per_second,
    write_results,
)
from benchmarks.grounding_speed import crowd, shots
from benchmarks.memory import again_and_again, memory_mb
from muva.config import ModelConfig, PromptConfig, Stage2Config
from muva.data.draw import Draw
from muva.data.images import decode_rgb, resized
from muva.data.protocols import Pool, pool
from muva.data.training_images import TrainingImages
from muva.model.clip import load_clip
from muva.model.muva_model import build_model
from muva.training.compute import Compute
from muva.training.loader import Loader
from muva.training.sampler import flip_draws, pk_batches
from muva.training.stage2 import train_image_encoder

MIN_SHARE, MAX_GROWTH = 0.9, 0.05
"""Goals: fraction of the rate of bare decoding; growth of memory between thirds."""
SIZE = {"height": 256, "width": 128}
BATCH, EACH = 64, 4
IMAGES = 4096
SHARD_IMAGES = 1024
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TINY = ModelConfig(clip="tiny", image_height=128, image_width=64, stride=8, parts=())


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("input", __doc__, check="exit 1 when a goal is missed")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=9, help="over which memory is watched")
    parser.add_argument("--vit-rate", type=float, help="images/s of a step of ViT-B/16's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muva-input-") as folder:
        # A typical size: the crops of public data sets are 128 x 64 to 350 x 150.
        encoded = shots(height=300, width=140)
        dataset = crowd(
            Path(folder) / "store",
            "crowd",
            arguments.images,
            encoded=encoded,
            shard_images=SHARD_IMAGES,
        )
        pooled = pool([dataset])
        found = {
            "bytes": statistics.fmean(map(len, encoded)),
            "memory": memory(pooled, arguments.epochs, Path(folder)),
            "rates": rates(pooled, encoded, arguments.rounds, Path(folder)),
            "waiting": waiting(pooled, Path(folder)),
        }
    rates_, watched, tiny = found["rates"], found["memory"], found["waiting"]
    print(f"{arguments.images} JPEGs of {found['bytes'] / 1000:.1f} kB on average\n")
    print("| by | bare, images/s | in order | P x K | decoded before | in order by bare |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, of in rates_.items():
        print(
            f"| {name} | {of['bare']:.0f} | {of['in order']:.0f} | {of['P x K']:.0f} | "
            f"{of['decoded before']:.0f} | {of['in order'] / of['bare']:.2f} |"
        )
    print(
        f"\n{watched['processes']:.0f} processes hold {watched['memory_mb']:.0f} MB of their own, "
        f"{watched['growth']:+.1%} from the first to the last third of {arguments.epochs} epochs"
    )
    print(f"Loaders start in {watched['start_s']:.1f} s")
    print(
        f"Tiny CLIP: {100 * tiny['share']:.1f} % of an epoch's {tiny['epoch_s']:.1f} s waits for "
        f"batches, decoded for the first time; {100 * tiny['later']:.1f} % later"
    )
    if arguments.vit_rate:
        slowest = rates_["thread"]["P x K"]
        print(
            f"ViT-B/16 at {arguments.vit_rate:.1f} images/s takes "
            f"{100 * arguments.vit_rate / slowest:.1f} % of what a thread decodes: it waits for "
            f"an epoch's first batch, {1000 * BATCH / slowest:.0f} ms"
        )
    write_results(arguments, found, baseline_tables)
    missed = misses(found)
    return exit_code(arguments, missed)


def baseline_tables(found: dict) -> dict[str, Table]:
    """`rates`: a row for the thread and one for the processes."""
    rows = []
    for name, of in found["rates"].items():
        keys = {"bare": "bare", "in_order": "in order", "pk": "P x K"}
        keys["decoded_before"] = "decoded before"
        rows.append(
            {"by": "thread, one core" if name == "thread" else name}
            | {key: measurement(of[way]) for key, way in keys.items()}
            | {"share": of["in order"] / of["bare"], "goal": MIN_SHARE}
        )
    return {"rates": Table(rows=rows, statistic="medians")}


def misses(found: dict) -> list[str]:
    """Descriptions of the missed goals."""
    missed = [
        f"{name}: {of['in order'] / of['bare']:.2f} of bare decoding, goal {MIN_SHARE}"
        for name, of in found["rates"].items()
        if of["in order"] < MIN_SHARE * of["bare"]
    ]
    if found["memory"]["growth"] > MAX_GROWTH:
        missed.append(f"memory grew by {found['memory']['growth']:.1%}, goal {MAX_GROWTH:.0%}")
    return missed


def rates(
    pooled: Pool, encoded: Sequence[bytes], rounds: int, folder: Path
) -> dict[str, dict[str, float]]:
    """Loader -> order of the batches -> images per second."""
    cores = os.cpu_count() or 1
    found = {}
    for name, processes in (("thread", 0), (f"{cores} processes", cores)):
        seconds: dict[str, list[float]] = {}
        used = cores if processes else 1
        cold = _opened(pooled, folder, kept=False)
        warm = _opened(pooled, folder, kept=True)
        with _on_cores(used), multiprocessing.get_context("spawn").Pool(used) as bare:
            torch.set_num_threads(1)
            loaders = {kept: Loader(images, processes=processes)
                       for kept, images in ((False, cold), (True, warm))}  # fmt: skip
            orders = {
                "in order": (loaders[False], _in_order(cold)),
                "P x K": (loaders[False], _sampled(cold)),
                "decoded before": (loaders[True], _sampled(warm)),
            }
            for (
                loader
            ) in loaders.values():  # starts the loader and fills the cache of decoded images
                _drain(loader, _in_order(cold))
            for _ in range(rounds):
                chunks = np.array_split(np.arange(len(cold)), used)
                began_at = time.perf_counter()
                list(bare.imap_unordered(_decode, [(encoded, chunk) for chunk in chunks]))
                spent = {"bare": time.perf_counter() - began_at}
                for way, (loader, draws) in orders.items():
                    began_at = time.perf_counter()
                    count = _drain(loader, draws)
                    spent[way] = (time.perf_counter() - began_at) * len(cold) / count
                for way, value in spent.items():
                    seconds.setdefault(way, []).append(value)
        found[name] = {way: per_second(len(cold), median_of(s)) for way, s in seconds.items()}
    return found


def memory(pooled: Pool, epochs: int, folder: Path) -> dict[str, float]:
    """Anonymous and shared memory of this process and its loaders over several epochs."""
    images = _opened(pooled, folder, kept=True)
    loader = Loader(images, processes=2)
    began_at = time.perf_counter()
    _drain(loader, _in_order(images)[:1])
    start_s = time.perf_counter() - began_at
    _drain(loader, _in_order(images))
    samples: list[float] = []

    def check() -> None:
        samples.append(sum(memory_mb(Path(f"/proc/{pid}")) for pid in _family()))

    processes = len(_family())
    with again_and_again(check, every_s=0.1):
        for epoch in range(epochs):
            _drain(loader, _in_order(images))
            _drain(loader, _sampled(images, epoch=epoch))
    third = len(samples) // 3
    # Not the peaks, because the number of batches in flight is random.
    first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
    return {
        "start_s": start_s,
        "processes": processes,
        "memory_mb": max(samples),
        "growth": last / first - 1,
    }


def waiting(pooled: Pool, folder: Path) -> dict[str, float]:
    """Fraction of a small training spent waiting for batches, in the first epoch and later."""
    clip = load_clip("tiny", image_size=(128, 64), stride=8)
    model = build_model(
        clip, model=TINY, prompts=PromptConfig(), identities=len(pooled.identities), seed=0
    )
    images = TrainingImages(
        pooled,
        height=128,
        width=64,
        mean=MEAN,
        std=STD,
        part_masks=None,
        grid=(16, 8),
        cache_folder=folder,
    )
    settings = Stage2Config(batch_size=BATCH, images_per_identity=EACH, epochs=2, milestones=())
    reports = train_image_encoder(
        model=model,
        images=images,
        settings=settings,
        seed=0,
        device=torch.device("cpu"),
        compute=Compute(),
    )
    first, later = (report.seconds for report in reports)
    spent = first["memory_pass_s"] + first["steps_s"]
    return {
        "epoch_s": spent,
        "share": first["waiting_s"] / spent,
        "later": later["waiting_s"] / (later["memory_pass_s"] + later["steps_s"]),
    }


def _opened(pooled: Pool, folder: Path, *, kept: bool) -> TrainingImages:
    limit: dict[str, Any] = {} if kept else {"cache_bytes": 0}
    return TrainingImages(
        pooled,
        **SIZE,
        mean=MEAN,
        std=STD,
        part_masks=None,
        grid=(16, 8),
        cache_folder=folder,
        **limit,
    )


def _in_order(images: TrainingImages) -> list[Draw]:
    return [
        Draw(np.arange(at, min(at + BATCH, len(images)))) for at in range(0, len(images), BATCH)
    ]


def _sampled(images: TrainingImages, *, epoch: int = 1) -> list[Draw]:
    batches = pk_batches(
        images.labels, batch_size=BATCH, images_per_identity=EACH, seed=0, epoch=epoch
    )
    flips = flip_draws(len(batches), BATCH, probability=0.5, seed=0, epoch=epoch)
    return [Draw(batch, flip) for batch, flip in zip(batches, flips, strict=True)]


def _drain(loader: Loader, draws: Sequence[Draw]) -> int:
    return sum(len(pixels) for pixels, _ in loader.batches(draws))


def _decode(work: tuple[Sequence[bytes], np.ndarray]) -> None:
    encoded, numbers = work
    for number in numbers:
        resized(decode_rgb(encoded[number % len(encoded)]), **SIZE, interpolation="bicubic")


@contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """Restrict this process and its children to so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _family() -> list[int]:
    """This process and all its descendants."""
    family, found = [], [os.getpid()]
    while found:
        process = found.pop()
        family.append(process)
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has ended in the meantime
                continue
    return family


if __name__ == "__main__":
    sys.exit(main())
