"""Cost of an exact evaluation compared with the bare matrix product: `python -m
benchmarks.retrieval`.

Synthetic features of the sizes of real test sets, on disk, in memory maps: the product of queries
and gallery in blocks of the same size, our `evaluate`, and, if memory permits, the dense method
(all distances, full argsort, a loop over the queries). Each runs in a separate process, in turns.
`--check` exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.baseline import (
    Row,
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    write_results,
)
from benchmarks.memory import peak_memory_mb
from muva.retrieval import evaluate, match_ranks
from muva.retrieval.distances import BLOCK_BYTES, even_slices, full_precision

WIDTH, LATENT, NOISE = 2048, 128, 1.6
"""Feature width, latent dimension, and spread of images around their person (whose spread is 1)."""
QUERY, GALLERY, LABELS = "query.npy", "gallery.npy", "labels.npz"
_MADE_AT_ONCE = 16_384

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """The size of a test set, and the goals for evaluating it."""

    queries: int
    gallery: int
    people: int
    cameras: int
    rerank: bool = False
    dense: bool = False
    """Whether the dense method fits into memory."""
    most_times: float | None = None
    """Goal: time as a multiple of the bare product's."""
    most_times_float32: float | None = None
    """The same without bfloat16."""
    most_s: float | None = None
    most_mb: float
    verified: bool = False
    """Whether the comparison of all pairs is measured too."""


MOST_FOR_VERIFICATION = 1.5
"""Goal: time of ranking and verification as a multiple of ranking alone, both in float32."""

WORKS = {
    "market1501": Work(
        queries=3368,
        gallery=15_913,
        people=750,
        cameras=6,
        dense=True,
        most_times=1.0,
        most_times_float32=1.2,
        most_mb=1e3,
        verified=True,
    ),
    "msmt17": Work(
        queries=11_659,
        gallery=82_161,
        people=3060,
        cameras=15,
        most_times=1.0,
        most_times_float32=1.2,
        most_mb=2e3,
        verified=True,
    ),
    "msmt17-reranked": Work(
        queries=11_659,
        gallery=82_161,
        people=3060,
        cameras=15,
        rerank=True,
        most_s=1800,
        most_mb=4e3,
    ),
    "million": Work(
        queries=10_000,
        gallery=1_000_000,
        people=50_000,
        cameras=20,
        most_times=2,
        most_mb=2e3,
    ),
}


WAY_TITLES = {
    "product": "bare product, in blocks",
    "dense": "all distances, full argsort, a loop over queries",
    "ours": "ours",
    "float32": "ours, in float32",
    "verified": "ours, with verification",
}


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("retrieval", __doc__, check="exit 1 when a goal is missed")
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--repeats", type=int, default=1, help="of each timing; the median counts")
    parser.add_argument("--folder", type=Path, help="for the features [a temporary one]")
    parser.add_argument("--one", nargs=2, metavar=("WORK", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, way = arguments.one
        print(json.dumps(timed(name, way, arguments.folder)))
        return 0
    found: dict[str, Figures] = {}
    missed: list[str] = []
    print("| work | way | seconds | times the product | peak memory, MB | mAP |")
    print("|---|---|---:|---:|---:|---:|")
    for name in arguments.works:
        folder = Path(tempfile.mkdtemp(prefix=f"retrieval-{name}-", dir=arguments.folder))
        try:
            make_features(WORKS[name], folder)
            found[name] = measured(name, folder, arguments.repeats)
        finally:
            shutil.rmtree(folder)
        for way, figures in found[name].items():
            print(_row(name, way, figures), flush=True)
        missed += misses(name, found[name])
    write_results(arguments, found, baseline_tables)
    return exit_code(arguments, missed)


def make_features(work: Work, folder: Path) -> None:
    """Query and gallery features: images near the direction of their person, in a subspace."""
    rng = np.random.default_rng(0)
    people = rng.standard_normal((work.people, LATENT), np.float32)
    widen = rng.standard_normal((LATENT, WIDTH), np.float32) / np.float32(np.sqrt(LATENT))
    labels: dict[str, Any] = {}
    for side, file, count in (("query", QUERY, work.queries), ("gallery", GALLERY, work.gallery)):
        pids = rng.integers(0, work.people, count)
        labels |= {f"{side}_pids": pids, f"{side}_camids": rng.integers(0, work.cameras, count)}
        features = np.lib.format.open_memmap(
            folder / file, mode="w+", dtype=np.float32, shape=(count, WIDTH)
        )
        for rows in even_slices(count, _MADE_AT_ONCE):
            near = people[pids[rows]]
            near = near + np.float32(NOISE) * rng.standard_normal(near.shape, np.float32)
            features[rows] = near @ widen
        features.flush()
    np.savez(folder / LABELS, **labels)


def measured(name: str, folder: Path, repeats: int) -> Figures:
    """Method -> seconds, peak memory and mAP, as medians over the repeats."""
    work = WORKS[name]
    ways = ["product", *(["dense"] if work.dense else []), "ours"]
    ways += ["float32", "verified"] if work.verified else []
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(repeats):  # in turns, so that other load affects all methods equally
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.retrieval", "--one", name, way]
            done = subprocess.run(
                [*command, "--folder", str(folder)], check=True, capture_output=True, text=True
            )
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    found: Figures = {
        way: {key: median_of([one[key] for one in made]) for key in made[0]}
        for way, made in runs.items()
    }
    for way, made in runs.items():
        pairs = zip(made, runs["product"], strict=True)
        found[way]["times"] = median_of([a["seconds"] / b["seconds"] for a, b in pairs])
    return found


def timed(name: str, way: str, folder: Path) -> dict[str, float]:
    """Seconds, peak memory of this process in MB, and mAP of a method."""
    work = WORKS[name]
    ways: Mapping[str, Callable[[Work, Path], float]] = {
        "product": _product,
        "dense": _dense,
        "ours": _ours,
        "float32": _ours_in_float32,
        "verified": partial(_ours, verify=True),
    }
    # Warm up: compilation and thread start-up are not measured.
    few = np.eye(4, WIDTH, dtype=np.float32)
    evaluate(
        query_features=few,
        query_pids=range(4),
        query_camids=None,
        gallery_features=few,
        gallery_pids=range(4),
        gallery_camids=None,
        rerank=work.rerank,
        verify=way == "verified",
    )
    with peak_memory_mb() as peak:
        started_at = time.perf_counter()
        mean_ap = ways[way](work, folder)
        seconds = time.perf_counter() - started_at
    return {"seconds": seconds, "peak_mb": peak[0], "mean_ap": mean_ap}


def _product(work: Work, folder: Path) -> float:
    query = torch.from_numpy(np.load(folder / QUERY))
    gallery = torch.from_numpy(np.load(folder / GALLERY, mmap_mode="c"))
    blocks = even_slices(len(gallery), BLOCK_BYTES // (4 * max(WIDTH, len(query))))
    buffer = torch.empty(len(query) * max(block.stop - block.start for block in blocks))
    with full_precision():
        for block in blocks:
            part = gallery[block]
            torch.mm(query, part.T, out=buffer[: len(query) * len(part)].view(len(query), -1))
    return float("nan")


def _dense(work: Work, folder: Path) -> float:
    """The mean average precision, computed as most re-identification programs do."""
    query, gallery = (np.load(folder / file) for file in (QUERY, GALLERY))
    labels = np.load(folder / LABELS)
    query, gallery = (
        side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery)
    )
    order = np.argsort(2 - 2 * query @ gallery.T, axis=1)
    precisions = []
    for index, row in enumerate(order):
        same = labels["gallery_pids"][row] == labels["query_pids"][index]
        here = labels["gallery_camids"][row] == labels["query_camids"][index]
        hits = np.flatnonzero(same[~(same & here)]) + 1
        if len(hits):
            precisions.append(np.mean(np.arange(1, len(hits) + 1) / hits))
    return float(np.mean(precisions))


def _ours(work: Work, folder: Path, *, verify: bool = False) -> float:
    query, gallery = (np.load(folder / file, mmap_mode="r") for file in (QUERY, GALLERY))
    return evaluate(
        query_features=query,
        gallery_features=gallery,
        **np.load(folder / LABELS),
        rerank=work.rerank,
        verify=verify,
    ).mean_ap


def _ours_in_float32(work: Work, folder: Path) -> float:
    match_ranks.bfloat16_is_fast = lambda: False
    return _ours(work, folder)


def baseline_tables(found: Mapping[str, Figures]) -> dict[str, Table]:
    """`ways`: seconds and memory of each way of each work; the size stands on its first row."""
    rows: list[Row] = []
    sizes = set()
    for name, ways in found.items():
        work = WORKS[name]
        size = f"{work.queries:,} x {work.gallery:,}"
        for way, of in ways.items():
            if work.rerank and way == "product":  # as that of the work without re-ranking
                continue
            row: Row = {
                "size": "" if size in sizes else size,
                "way": WAY_TITLES[way] + (", re-ranked" if work.rerank else ""),
                "seconds": measurement(of["seconds"]),
                "memory_mb": of["peak_mb"],
            }
            sizes.add(size)
            if way != "product" and not work.rerank:
                row["times"] = of["times"]
            if way == "ours":
                goals = {
                    "times": work.most_times,
                    "seconds": work.most_s,
                    "memory_mb": work.most_mb,
                }
                row["goal"] = {key: goal for key, goal in goals.items() if goal is not None}
            elif way == "float32":
                row["goal"] = {"times": work.most_times_float32}
            elif way == "verified":
                row["goal"] = {
                    "seconds": MOST_FOR_VERIFICATION * ways["float32"]["seconds"],
                    "memory_mb": work.most_mb,
                }
            rows.append(row)
    return {"ways": Table(rows=rows, statistic="medians")}


def misses(name: str, found: Figures) -> list[str]:
    """Descriptions of the missed goals."""
    work, ours = WORKS[name], found["ours"]
    goals = {"ours": work.most_times, "float32": work.most_times_float32}
    missed = [
        f"{name}, {WAY_TITLES[way]}: {found[way]['times']:.2f} times the product, goal {goal}"
        for way, goal in goals.items()
        if goal is not None and way in found and found[way]["times"] > goal
    ]
    if work.most_s is not None and ours["seconds"] > work.most_s:
        missed.append(f"{name}: {ours['seconds']:.0f} s, goal {work.most_s:.0f}")
    if ours["peak_mb"] > work.most_mb:
        missed.append(f"{name}: {ours['peak_mb']:.0f} MB, goal {work.most_mb:.0f}")
    if (verified := found.get("verified")) is not None:
        ratio = verified["seconds"] / found["float32"]["seconds"]
        if ratio > MOST_FOR_VERIFICATION:
            missed.append(
                f"{name}: verification takes {ratio:.2f} times as long as ranking alone, goal "
                f"{MOST_FOR_VERIFICATION}"
            )
        if verified["peak_mb"] > work.most_mb:
            missed.append(
                f"{name}: {verified['peak_mb']:.0f} MB with verification, goal {work.most_mb:.0f}"
            )
    dense = found.get("dense")
    if dense is not None and abs(dense["mean_ap"] - ours["mean_ap"]) > 1e-6:
        missed.append(f"{name}: mAP {ours['mean_ap']:.7f}, the dense way {dense['mean_ap']:.7f}")
    return missed


def _row(name: str, way: str, figures: Mapping[str, float]) -> str:
    mean_ap = "" if np.isnan(figures["mean_ap"]) else f"{figures['mean_ap']:.4f}"
    return (
        f"| {name} | {way} | {figures['seconds']:.2f} | {figures['times']:.2f} "
        f"| {figures['peak_mb']:.0f} | {mean_ap} |"
    )


if __name__ == "__main__":
    sys.exit(main())
