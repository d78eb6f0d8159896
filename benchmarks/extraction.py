"""Overhead of embedding a data set over the bare model: `python -m benchmarks.extraction`.

Worker processes run the bare model on a batch in memory, embed a data set of JPEGs as `muva
evaluate` does, and run the bare model again, all in the same processes. `--check` exits with 1 if a
goal is missed.
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
from workflows.steps.embed import UNTRAINED, EvaluationSet, embed, features_step
from workflows.steps.embed_tasks import open_embedder
from workflows.steps.rank import PART_IMAGES

MIN_SHARE, MAX_GROWTH = 0.9, 0.05
"""Goals: fraction of the bare model's images per second; growth of memory between thirds."""
BARE_S, BATCH = 20.0, 64
SHARD_IMAGES = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A model and the number of images that it embeds."""

    clip: str
    config: ModelConfig
    images: int
    has_goal: bool
    """Whether the speed goal applies to this model."""


WORKS = {
    "ViT-B-16": Work(clip="ViT-B-16", config=ModelConfig(), images=2048, has_goal=True),
    "tiny": Work(
        clip="tiny",
        config=ModelConfig(clip="tiny", image_height=128, image_width=64, stride=8),
        images=32_768,
        has_goal=False,
    ),
}


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
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
        rows.append(row | ({"goal": MIN_SHARE} if WORKS[name].has_goal else {}))
    return {"rates": Table(rows=rows)}


def measured(work: Work, folder: Path) -> dict[str, float]:
    """Images per second of the bare model and of the step, and the memory of its processes."""
    model = UNTRAINED + work.clip
    if work.clip != "tiny":  # random weights run at the same speed
        weights = folder / "random.pt"
        torch.save(openai_state_dict(random_clip(VIT_B_16), VIT_B_16), weights)
        model = UNTRAINED + str(weights)
    session = Session(home=folder, store=open_store(folder / "store"), tracking_uri=None)
    given = {
        "encoded": shots(height=work.config.image_height, width=work.config.image_width),
        "shard_images": SHARD_IMAGES,
        "splits": ("query", "gallery"),
    }
    few, many = (
        EvaluationSet(
            dataset=crowd(folder / "store", name, count, **given).artifact, held_out=False
        )
        for name, count in (("few", 2 * PART_IMAGES), ("many", work.images))
    )
    # Warm up: starting processes, imports and loading the model are not measured.
    _embed(session, model, few, work.config, name="warm-up")
    before = _bare_rate(model, work.config)
    with _memory_of_workers() as samples:
        started_at = time.perf_counter()
        _embed(session, model, many, work.config, name="many")
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


def _embed(
    session: Session, model: str, images: EvaluationSet, config: ModelConfig, *, name: str
) -> None:
    step = features_step(session, model, images, config, name=name)
    embed(session, step, model, images, config)


def misses(name: str, work: Work, figures: dict[str, float]) -> list[str]:
    """Descriptions of the missed goals."""
    missed = []
    if work.has_goal and figures["share"] < MIN_SHARE:
        missed.append(f"{name}: {figures['share']:.3f} of the bare model, goal {MIN_SHARE}")
    if figures["growth"] > MAX_GROWTH:
        missed.append(f"{name}: memory grew by {figures['growth']:.1%}, goal {MAX_GROWTH:.0%}")
    return missed


def _bare_rate(model: str, config: ModelConfig) -> float:
    """Images per second of all processes together, with one core each."""
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
    """RssAnon + RssShmem of each embedding process in MB, sampled twice a second."""
    samples = []

    def check() -> None:
        lines = [line for line in Path("/proc").glob("[0-9]*/cmdline") if _embeds(line)]
        samples.append({line.parent: memory_mb(line.parent) for line in lines})

    with again_and_again(check, every_s=0.5):
        yield samples


def _peaks_mb(samples: Sequence[Mapping[Path, float]]) -> float:
    """The sum of the processes' peaks, which need not coincide."""
    peaks: dict[Path, float] = {}
    for sample in samples:
        for worker, megabytes in sample.items():
            peaks[worker] = max(megabytes, peaks.get(worker, 0.0))
    return sum(peaks.values())


def _embeds(command_line: Path) -> bool:
    """Whether a process embeds images, by the title that Ray gives it."""
    try:
        return command_line.read_bytes().startswith(b"ray::embed_part")
    except OSError:  # it has ended in the meantime
        return False


if __name__ == "__main__":
    sys.exit(main())
