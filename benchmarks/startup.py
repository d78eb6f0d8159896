"""How soon the command line answers: `python -m benchmarks.startup --check`.

Runs `--help` of every verb and subcommand, and the verbs that only list, on a store of a hundred
artifacts of which some have runs in MLflow. Each is a process of its own, a few times over; medians
of its CPU time and of the time until it ends. The goals are for CPU time, which does not depend on
what else the machine is doing.
"""

from __future__ import annotations

import dataclasses
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

from benchmarks.baseline import (
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    write_results,
)
from muva.data import formats
from muva.data.artifacts import Artifact, fingerprint
from muva.data.records import SPLITS, Record
from muva.data.shards import write_shards
from muva.data.store import open_store
from tracking.names import ARTIFACT_TAG
from tracking.runs import Tracker
from workflows.cli import muva

MAX_HELP_S = 0.5
MAX_LIST_S = 1.0
"""CPU time."""
LISTS = (("data", "list"), ("store", "list"), ("recipes",), ("experts",))
ROUNDS = 5
DATASETS, LABELS, MODELS = 40, 30, 30
"""Artifacts of each kind."""
TRACKED_EVERY = 3
"""One artifact of so many has a run."""


@dataclass(frozen=True, kw_only=True)
class Startup:
    """What a command costs, as the median of its runs."""

    command: str
    cpu_s: float
    """User and system time."""
    wall_s: float
    goal_s: float
    """For the CPU time."""


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("startup", __doc__, check="exit 1 when a goal is missed")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="processes for each command")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muva-startup-") as folder:
        home = Path(folder)
        fill(home)
        print("| command | CPU time, s | until it ends, s | goal, s of CPU time |")
        print("|---|---:|---:|---:|")
        found = []
        for words, goal_s in commands():
            one = measured(words, home=home, rounds=arguments.rounds, goal_s=goal_s)
            print(f"| {one.command} | {one.cpu_s:.2f} | {one.wall_s:.2f} | {goal_s} |", flush=True)
            found.append(one)
    write_results(arguments, [dataclasses.asdict(one) for one in found], baseline_tables)
    return exit_code(arguments, misses(found))


def baseline_tables(results: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
    """`commands`: a row per command."""
    rows = [
        {
            "command": f"`{one['command']}`",
            "cpu_s": measurement(one["cpu_s"]),
            "wall_s": measurement(one["wall_s"]),
            "goal": one["goal_s"],
        }
        for one in results
    ]
    return {"commands": Table(rows=rows, statistic="medians")}


def commands() -> Iterator[tuple[tuple[str, ...], float]]:
    """The words of each command, and its goal."""
    yield ("--help",), MAX_HELP_S
    for words in verbs():
        yield (*words, "--help"), MAX_HELP_S
    for words in LISTS:
        yield words, MAX_LIST_S


def verbs() -> Iterator[tuple[str, ...]]:
    """Every verb, and every subcommand below it: `("data",)`, `("data", "import")`."""
    context = click.Context(muva)
    for name in muva.list_commands(context):
        yield (name,)
        verb = muva.get_command(context, name)
        if isinstance(verb, click.Group):
            yield from ((name, below) for below in verb.list_commands(context))


def measured(words: Sequence[str], *, home: Path, rounds: int, goal_s: float) -> Startup:
    """The medians of a command that is run so many times, after once for the caches."""
    argv = [sys.executable, "-m", "workflows.cli", *words]
    if words[-1] != "--help" and words[0] in ("data", "store"):
        argv += ["--home", str(home)]
    cpu_s, wall_s = [], []
    for _ in range(rounds + 1):
        before, began_at = _cpu_of_children_s(), time.perf_counter()
        subprocess.run(argv, check=True, capture_output=True)
        wall_s.append(time.perf_counter() - began_at)
        cpu_s.append(_cpu_of_children_s() - before)
    return Startup(
        command=f"muva {' '.join(words)}",
        cpu_s=median_of(cpu_s[1:]),
        wall_s=median_of(wall_s[1:]),
        goal_s=goal_s,
    )


def misses(found: Sequence[Startup]) -> list[str]:
    """The goals that are missed, in words."""
    return [
        f"{one.command}: {one.cpu_s:.2f} s of CPU time, goal {one.goal_s}"
        for one in found
        if one.cpu_s > one.goal_s
    ]


def fill(home: Path) -> None:
    """A store and a tracking database as work leaves them, with small images."""
    store = open_store(home / "store")
    artifacts = []
    for number in range(DATASETS):
        name = f"people-{number}"
        artifact = Artifact(store, "datasets", name, fingerprint([name]))
        summary = write_shards(_records(name, seed=number), artifact=artifact)
        _commit(artifact, dataclasses.asdict(summary), format_version=formats.SHARDS)
        artifacts.append(artifact)
    for kind, count in (("labels", LABELS), ("models", MODELS)):
        for number in range(count):
            artifact = Artifact(store, kind, f"{kind}-{number}", fingerprint([kind, number]))
            store.write(artifact.key("content"), bytes(1000))
            _commit(artifact, {}, format_version=1)
            artifacts.append(artifact)
    tracker = Tracker(f"sqlite:///{home / 'mlflow.db'}", "muva/startup")
    for artifact in artifacts[::TRACKED_EVERY]:
        tags = {ARTIFACT_TAG: artifact.address}
        with tracker.open(name=artifact.name, key=artifact.address, tags=tags) as run:
            run.log_metrics({"images": 3})


def _records(domain: str, *, seed: int) -> list[Record]:
    records = []
    for place, split in enumerate(SPLITS):
        encoded = io.BytesIO()
        Image.new("RGB", (8, 16), (seed, place, 0)).save(encoded, "PNG")
        records.append(
            Record(
                domain=domain,
                image_id=f"{split}.png",
                split=split,
                pid=1 if split == "train" else 2,
                camid=place,
                source=encoded.getvalue(),
            )
        )
    return records


def _commit(artifact: Artifact, summary: dict[str, object], *, format_version: int) -> None:
    artifact.commit(format_version=format_version, config={}, inputs={}, summary=summary)


def _cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
