"""Speed of rendering synthetic people: `python -m benchmarks.render`.

Prints images per second and core (CPU time of one process, without encoding the JPEG), per domain
and size; for the open world, with the places that its cameras see. `--check` exits with 1 if a
size, or the open world, misses its goal.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import cv2

from benchmarks.baseline import Table, benchmark_parser, exit_code, measurement, write_results
from muva.synthetic import DOMAINS, render
from muva.synthetic.domain import find_domain
from muva.synthetic.world import network_name

GOALS = {(256, 128): 20.0, (128, 64): 60.0}
"""Goals: images per second and core for each size, averaged over the domains."""

WORLD_GOAL = 40.0
"""Goal for the open world at 128 x 64, in images per second and core, places included."""
WORLD_NETWORKS, WORLD_PEOPLE, WORLD_VIEWS = 6, 24, 6
"""What is rendered of it: as many people and views of each as pre-training uses."""
INDEX = 0


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("render", __doc__, check="exit 1 below the goal")
    parser.add_argument("--people", type=int, default=12, help="people per domain and size")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)

    start_up_s = _first_image_s()
    print(f"first image after {start_up_s:.1f} s (compiled kernels, bodies, one site)\n")
    print("| size | domain | images/s and core |\n|---|---|---|")
    rates: dict[str, dict[str, float]] = {}
    missed = []
    for (height, width), goal in GOALS.items():
        size = f"{height} x {width}"
        rates[size] = {}
        for domain in DOMAINS:
            rates[size][domain] = images_per_second(domain, height, width, arguments.people)
            print(f"| {size} | {domain} | {rates[size][domain]:.1f} |")
        mean = sum(rates[size].values()) / len(DOMAINS)
        print(f"| {size} | mean (goal {goal:.0f}) | {mean:.1f} |")
        if mean < goal:
            missed.append(f"{size}: {mean:.1f} images/s and core, goal {goal:.0f}")
    world = world_images_per_second()
    print(f"| 128 x 64 | open world (goal {WORLD_GOAL:.0f}) | {world:.1f} |")
    if world < WORLD_GOAL:
        missed.append(f"open world: {world:.1f} images/s and core, goal {WORLD_GOAL:.0f}")
    results = {"start_up_s": start_up_s, "images_per_s_and_core": rates, "world": world}
    write_results(arguments, results, baseline_tables)
    return exit_code(arguments, missed)


def baseline_tables(results: Mapping[str, Any]) -> dict[str, Table]:
    """`rates`: the mean and the slowest domain of each size; `world`: the open world."""
    rows = []
    for size, rates in results["images_per_s_and_core"].items():
        slowest = min(rates, key=rates.get)
        goal = {f"{height} x {width}": goal for (height, width), goal in GOALS.items()}[size]
        rows.append(
            {
                "size": size,
                "rate": measurement(statistics.fmean(rates.values())),
                "slowest": measurement(rates[slowest]),
                "slowest_domain": slowest,
                "goal": goal,
            }
        )
    named = results["images_per_s_and_core"]["128 x 64"]
    world = {
        "size": "128 x 64",
        "rate": measurement(results["world"]),
        "named": measurement(statistics.fmean(named.values())),
        "goal": WORLD_GOAL,
    }
    return {
        "rates": Table(rows=rows, statistic="mean over the domains"),
        "world": Table(rows=[world]),
    }


def images_per_second(domain: str, height: int, width: int, people: int) -> float:
    """Rate in CPU time, after sites and passers-by have been created once."""
    _render_all(domain, range(people + 1, 2 * people + 1), height, width)
    started = time.process_time()
    images = _render_all(domain, range(1, people + 1), height, width)
    return images / (time.process_time() - started)


def world_images_per_second() -> float:
    """Rate in CPU time for networks of which nothing has been made yet."""
    started = time.process_time()
    images = 0
    for number in range(WORLD_NETWORKS):
        name = network_name(90_000 + number)
        cameras = find_domain(name).cameras
        for pid in range(1, WORLD_PEOPLE + 1):
            for view in range(WORLD_VIEWS):
                turn, camera = divmod(view, cameras)
                render(name, pid=pid, camid=camera + 1, index=turn, height=128, width=64)
                images += 1
    return images / (time.process_time() - started)


def _render_all(domain: str, pids: range, height: int, width: int) -> int:
    cameras = DOMAINS[domain].cameras
    for pid in pids:
        for camid in range(1, cameras + 1):
            render(domain, pid=pid, camid=camid, index=INDEX, height=height, width=width)
    return len(pids) * cameras


def _first_image_s() -> float:
    started = time.perf_counter()
    render(next(iter(DOMAINS)), pid=1, camid=1, index=INDEX, height=256, width=128)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
