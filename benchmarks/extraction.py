"""What embedding a data set costs beside the bare model: `python -m benchmarks.extraction`.

Worker processes run the bare model on a batch in memory, embed a data set of JPEGs as `muva
evaluate` does, and run the bare model again: the same processes, one after the other at once.
`--check` exits 1 when a figure misses its goal.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
import torch

from benchmarks.baseline import (
    Table,
    benchmark_parser,
    exit_code,
    mean_of,
    measurement,
    write_results,
)
from benchmarks.grounding_speed import crowd, shots
from benchmarks.memory import again_and_again, memory_mb
from benchmarks.openai_files import VIT_B_16, openai_state_dict, random_clip
from muva.config import ModelConfig
from muva.data.store import open_store
from workflows.runtime.cluster import cpus, ray_cluster
from workflows.session import Session
from workflows.steps.embed import UNTOUCHED, Judged, features_step, open_embedder
from workflows.steps.rank import PART_IMAGES

LEAST_SHARE, MOST_GROWTH = 0.9, 0.05
"""Goals: of the bare model's images per second; of the memory between the first and last third."""
BARE_S, BATCH = 20.0, 64
SHARD_IMAGES = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A model, and how much it embeds."""

    clip: str
    config: ModelConfig
    images: int
    judged: bool
    """Whether the goal of speed is this model's."""


WORKS = {
    "ViT-B-16": Work(clip="ViT-B-16", config=ModelConfig(), images=2048, judged=True),
    "tiny": Work(
        clip="tiny",
        config=ModelConfig(clip="tiny", image_height=128, image_width=64, stride=8),
        images=32_768,
        judged=False,
    ),
}


def main() -> int:
    """Measure, print, and compare with the goals when asked."""
    parser = benchmark_parser("extraction", __doc__, check="exit 1 when a goal is missed")
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--images", type=int, help="instead of each work's own number")
    arguments = parser.parse_args()
    found, missed = {}, []
    print("| model | images | bare, images/s | ours, images/s | share | memory, MB | growth |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in arguments.works:
        work = WORKS[name]
        if arguments.images:
            work = dataclasses.replace(work, images=arguments.images)
        with tempfile.TemporaryDirectory() as folder, ray_cluster():
            figures = found[name] = measured(work, Path(folder))
        print(
            f"| {name} | {work.images} | {figures['bare']:.1f} | {figures['ours']:.1f} | "
            f"{figures['share']:.3f} | {figures['memory_mb']:.0f} | {figures['growth']:+.1%} |",
            flush=True,
        )
        missed += misses(name, work, figures)
    write_results(arguments, found, baseline_tables)
    return exit_code(arguments, missed)


def baseline_tables(found: Mapping[str, Mapping[str, float]]) -> dict[str, Table]:
    """`rates`: a row per work, with the goal of its share and the memory of its processes."""
    rows = []
    for name, of in found.items():
        config = WORKS[name].config
        title = "tiny CLIP" if name == "tiny" else "ViT-B/16"
        row = {
            "model": f"{title}, {config.image_height} x {config.image_width}",
            "images": int(of["images"]),
            "bare": measurement(of["bare"]),
            "embedding": measurement(of["ours"]),
            "share": of["share"],
            "memory_mb": of["memory_mb"],
            "growth": of["growth"],
        }
        rows.append(row | ({"goal": LEAST_SHARE} if WORKS[name].judged else {}))
    return {"rates": Table(rows=rows)}


def measured(work: Work, folder: Path) -> dict[str, float]:
    """Images per second of the bare model and of the step, and the memory of its processes."""
    model = UNTOUCHED + work.clip
    if work.clip != "tiny":  # random weights are as fast as others
        weights = folder / "random.pt"
        torch.save(openai_state_dict(random_clip(VIT_B_16), VIT_B_16), weights)
        model = UNTOUCHED + str(weights)
    session = Session(home=folder, store=open_store(folder / "store"), tracking_uri=None)
    given = {
        "encoded": shots(height=work.config.image_height, width=work.config.image_width),
        "shard_images": SHARD_IMAGES,
        "splits": ("query", "gallery"),
    }
    few, many = (
        Judged(dataset=crowd(folder / "store", name, count, **given).artifact, held_out=False)
        for name, count in (("few", 2 * PART_IMAGES), ("many", work.images))
    )
    # What a process does once is not what is looked for: it starts, imports, loads the model.
    features_step(session, model, few, work.config, name="warm-up")
    before = _bare_rate(model, work.config)
    with _memory_of_workers() as samples:
        started_at = time.perf_counter()
        features_step(session, model, many, work.config, name="many")
        seconds = time.perf_counter() - started_at
    bare = mean_of([before, _bare_rate(model, work.config)])
    third = len(samples) // 3
    first, last = _peaks_mb(samples[:third]), _peaks_mb(samples[-third:])
    ours = work.images / seconds
    return {
        "images": work.images,
        "bare": bare,
        "ours": ours,
        "share": ours / bare,
        "memory_mb": _peaks_mb(samples),
        "growth": last / first - 1,
    }


def misses(name: str, work: Work, figures: dict[str, float]) -> list[str]:
    """The goals that are missed, in words."""
    told = []
    if work.judged and figures["share"] < LEAST_SHARE:
        told.append(f"{name}: {figures['share']:.3f} of the bare model, goal {LEAST_SHARE}")
    if figures["growth"] > MOST_GROWTH:
        told.append(f"{name}: memory grew by {figures['growth']:.1%}, goal {MOST_GROWTH:.0%}")
    return told


def _bare_rate(model: str, config: ModelConfig) -> float:
    """Images per second of all processes together, each with one core."""
    return sum(ray.get([_bare.remote(model, config) for _ in range(cpus())]))


@ray.remote
def _bare(model: str, config: ModelConfig) -> float:
    torch.set_num_threads(1)
    embedder = open_embedder(model, config.image_height, config.image_width, config.stride)
    batch = torch.zeros(BATCH, 3, embedder.image_height, embedder.image_width)
    with torch.inference_mode():
        embedder.encode(batch)
        count, started_at = 0, time.perf_counter()
        while time.perf_counter() - started_at < BARE_S:
            embedder.encode(batch)
            count += BATCH
        return count / (time.perf_counter() - started_at)


@contextmanager
def _memory_of_workers() -> Iterator[list[dict[Path, float]]]:
    """RssAnon + RssShmem of each process that embeds, twice a second, in MB."""
    samples = []

    def look() -> None:
        lines = [line for line in Path("/proc").glob("[0-9]*/cmdline") if _embeds(line)]
        samples.append({line.parent: memory_mb(line.parent) for line in lines})

    with again_and_again(look, every_s=0.5):
        yield samples


def _peaks_mb(samples: Sequence[Mapping[Path, float]]) -> float:
    """The processes' own peaks together: they need not fall together."""
    peaks: dict[Path, float] = {}
    for sample in samples:
        for worker, megabytes in sample.items():
            peaks[worker] = max(megabytes, peaks.get(worker, 0.0))
    return sum(peaks.values())


def _embeds(command_line: Path) -> bool:
    """Whether a process does; Ray names its processes by what they do."""
    try:
        return command_line.read_bytes().startswith(b"ray::_embed")
    except OSError:  # it has ended meanwhile
        return False


if __name__ == "__main__":
    sys.exit(main())
