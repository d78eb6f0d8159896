"""MLflow's response times for a search of a thousand trials: `python -m benchmarks.browsing
--check`.

Writes the run of a search and its trials as `muva tune` does, into SQLite, and then sends the
requests of MLflow's pages to its server: the first page of the experiment's runs, the trials of the
search, a single run, and a metric's history for the runs of a page.
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

MAX_TRIAL_S = 0.5
"""Goal: seconds to write the run of a trial."""
MAX_GROWTH = 1.5
"""Goal: growth of that time from the first to the last tenth of the trials."""
MAX_PAGE_S = 2.0
"""Goal: seconds for any response of the server."""
PAGE = 100
"""Runs per page in MLflow's table."""
ROUNDS = 5


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
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
    goals = {"a trial, last tenth": MAX_TRIAL_S}
    goals |= {name: MAX_PAGE_S for name in found if name.startswith("page")}
    rows = [
        {"what": name, "seconds": measurement(seconds)}
        | ({"goal": goals[name]} if name in goals else {})
        for name, seconds in found.items()
    ]
    return {"seconds": Table(rows=rows, statistic="medians")}


def misses(found: dict[str, float]) -> list[str]:
    """Descriptions of the missed goals."""
    first, last = found["a trial, first tenth"], found["a trial, last tenth"]
    missed = []
    if last > MAX_TRIAL_S:
        missed.append(f"a trial takes {last:.2f} s to write, goal {MAX_TRIAL_S}")
    if last > MAX_GROWTH * first:
        missed.append(
            f"a trial takes {last / first:.1f} times as long in the end, goal {MAX_GROWTH}"
        )
    missed += [
        f"{name}: {seconds:.2f} s, goal {MAX_PAGE_S}"
        for name, seconds in found.items()
        if name.startswith("page") and seconds > MAX_PAGE_S
    ]
    return missed


def measured(folder: Path, trials: int) -> dict[str, float]:
    """Operation -> seconds, as medians."""
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
            run.log_metrics(metrics | {"held-out/mAP": number / trials, "seconds": 1.0})
            for rung in (1, 2, 3):
                run.log_metrics({"held-out/by-rung": rung / 10}, rung)
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
