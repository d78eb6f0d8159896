"""Whether a search of a thousand trials stays browsable: `python -m benchmarks.browsing --check`.

Writes a search's run and its trials as `muva tune` does, into SQLite, and then asks MLflow's own
server for what its pages ask: the first page of the experiment's runs, the search's children, one
run, and a chart's history of a metric for the runs of a page.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.baseline import (
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    write_results,
)
from tracking.runs import Tracker
from workflows.verbs.ui import mlflow_server

MOST_A_TRIAL_S = 0.5
"""To write a trial's run."""
MOST_GROWTH = 1.5
"""Of that, from the first to the last tenth of the trials."""
MOST_A_PAGE_S = 2.0
"""For any of the server's answers."""
PAGE = 100
"""Runs that MLflow's table loads at once."""
ROUNDS = 5


def main() -> int:
    """Measure, print, and compare with the goals when asked."""
    parser = benchmark_parser("browsing", __doc__, check="exit 1 when a goal is missed")
    parser.add_argument("--trials", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muva-browsing-") as folder:
        found = measured(Path(folder), arguments.trials)
    print(f"{arguments.trials} trials, SQLite\n\n| what | seconds |\n|---|---:|")
    for name, seconds in found.items():
        print(f"| {name} | {seconds:.3f} |")
    write_results(arguments, found, baseline_tables)
    missed = misses(found)
    return exit_code(arguments, missed)


def baseline_tables(found: dict[str, float]) -> dict[str, Table]:
    """`seconds`: each of them, with the goals of a trial and of a page."""
    goals = {"a trial, last tenth": MOST_A_TRIAL_S}
    goals |= {name: MOST_A_PAGE_S for name in found if name.startswith("page")}
    rows = [
        {"what": name, "seconds": measurement(seconds)}
        | ({"goal": goals[name]} if name in goals else {})
        for name, seconds in found.items()
    ]
    return {"seconds": Table(rows=rows, statistic="medians")}


def misses(found: dict[str, float]) -> list[str]:
    """The goals that are missed, in words."""
    first, last = found["a trial, first tenth"], found["a trial, last tenth"]
    told = []
    if last > MOST_A_TRIAL_S:
        told.append(f"a trial takes {last:.2f} s to write, goal {MOST_A_TRIAL_S}")
    if last > MOST_GROWTH * first:
        told.append(
            f"a trial takes {last / first:.1f} times as long in the end, goal {MOST_GROWTH}"
        )
    told += [
        f"{name}: {seconds:.2f} s, goal {MOST_A_PAGE_S}"
        for name, seconds in found.items()
        if name.startswith("page") and seconds > MOST_A_PAGE_S
    ]
    return told


def measured(folder: Path, trials: int) -> dict[str, float]:
    """What it takes -> seconds; medians."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = Tracker(uri, "muva/demo")
    parent = tracker.open(
        name="tune demo", key="study", tags={"source": "a + b", "target": "c", "recipe": "demo"}
    )
    seconds = []
    for number in range(trials):
        began_at = time.perf_counter()
        params = {f"stage2.setting_{i}": number + i for i in range(8)}
        with tracker.open(
            name=f"trial {number}", key=f"t{number}", parent=parent.ref, params=params
        ) as run:
            metrics = {f"{d}/{m}": number / trials for d in ("a", "b") for m in ("mAP", "rank-1")}
            run.metrics(metrics | {"held-out/mAP": number / trials, "seconds": 1.0})
            for rung in (1, 2, 3):
                run.metrics({"held-out/by-rung": rung / 10}, rung)
        seconds.append(time.perf_counter() - began_at)
    tenth = max(1, trials // 10)
    found: dict[str, float] = {
        "a trial, first tenth": median_of(seconds[:tenth]),
        "a trial, last tenth": median_of(seconds[-tenth:]),
    }
    began_at = time.perf_counter()
    tracker.open(name="tune demo", key="study")
    found["the search's run, found again"] = time.perf_counter() - began_at
    parent.finish()
    with mlflow_server(uri, port=0) as (address, _):
        children = f"tags.`mlflow.parentRunId` = '{parent.ref.run_id}'"
        runs = _search(address, tracker.experiment_id, "", PAGE)
        ids = [run["info"]["run_id"] for run in runs]
        pages = {
            "page: the experiment's runs": lambda: _search(
                address, tracker.experiment_id, "", PAGE
            ),
            "page: the search's trials": lambda: _search(
                address, tracker.experiment_id, children, PAGE
            ),
            "page: a run": lambda: _ask(address, f"runs/get?run_id={parent.ref.run_id}"),
            "page: a chart of a page's runs": lambda: _ask(
                address,
                "metrics/get-history-bulk-interval?metric_key=held-out/by-rung&max_results=320&"
                + "&".join(f"run_ids={one}" for one in ids),
            ),
        }
        for name, ask in pages.items():
            ask()
            taken = []
            for _ in range(ROUNDS):
                began_at = time.perf_counter()
                ask()
                taken.append(time.perf_counter() - began_at)
            found[name] = median_of(taken)
    return found


def _search(address: str, experiment: str, filters: str, most: int) -> list[dict[str, Any]]:
    asked = {
        "experiment_ids": [experiment],
        "filter": filters,
        "max_results": most,
        "order_by": ["attributes.start_time DESC"],
    }
    return _ask(address, "runs/search", asked)["runs"]


def _ask(address: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/ajax-api/2.0/mlflow/{path}",
        data=None if content is None else json.dumps(content).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main())
