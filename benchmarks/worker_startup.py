"""What does a worker compute before its first line of work?: `python -m benchmarks.worker_startup`.

Ray tasks in processes of their own import what each kind of worker runs, and return the CPU time of
their process until then, Ray's own start included. A worker that imports torch alone is the floor.
Medians over a few processes. `--check` exits with 1 if a goal is missed.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping

import ray

from benchmarks.baseline import (
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    write_results,
)
from workflows.runtime.cluster import ray_cluster

MAX_TIMES = 1.5
"""Goal: the CPU time of each worker, relative to one that imports torch alone: 3 s where that one
takes 2 s."""
FLOOR = "torch alone"
WORKERS = {
    FLOOR: "torch",
    "stage 1": "workflows.steps.prompt_tasks",
    "stage 2": "workflows.steps.encoder_tasks",
    "validation": "workflows.steps.validation",
    "features": "workflows.steps.embed_tasks",
    "grounding": "workflows.runtime.expert_pool",
}
"""Worker -> the module that its tasks are in."""
ROUNDS = 5


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("worker_startup", __doc__, check="exit 1 when a goal is missed")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="processes of each kind")
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    print("| worker | CPU time, s | times torch alone |")
    print("|---|---:|---:|")
    with ray_cluster():
        seconds: dict[str, list[float]] = {name: [] for name in WORKERS}
        # The first round compiles to bytecode and reads the files.
        for number in range(arguments.rounds + 1):
            for name, module in WORKERS.items():
                spent = ray.get(_imported.remote(module))
                if number:
                    seconds[name].append(spent)
    for name, spent in seconds.items():
        found[name] = median_of(spent)
        print(f"| {name} | {found[name]:.2f} | {found[name] / found[FLOOR]:.2f} |")
    write_results(arguments, found, baseline_tables)
    return exit_code(arguments, misses(found))


@ray.remote(max_calls=1)
def _imported(module: str) -> float:
    """The CPU time of this process once it has imported a module."""
    importlib.import_module(module)
    return time.process_time()


def misses(found: Mapping[str, float]) -> list[str]:
    """The goals that were missed."""
    return [
        f"{name}: {spent:.2f} s, {spent / found[FLOOR]:.2f} times torch alone, at most {MAX_TIMES} "
        "expected"
        for name, spent in found.items()
        if spent > MAX_TIMES * found[FLOOR]
    ]


def baseline_tables(found: Mapping[str, float]) -> dict[str, Table]:
    """`workers`: a row per kind of worker."""
    rows = [
        {
            "worker": name,
            "cpu_s": measurement(spent),
            "times": spent / found[FLOOR],
            **({} if name == FLOOR else {"goal": MAX_TIMES}),
        }
        for name, spent in found.items()
    ]
    return {"workers": Table(rows=rows, statistic="medians")}


if __name__ == "__main__":
    sys.exit(main())
