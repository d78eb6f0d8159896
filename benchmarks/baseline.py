"""Measurements as data: what a benchmark measured, and on which machine.

Every benchmark takes `--json FILE` (its raw results), `--baseline [NAME]` (its tables, written to
`benchmarks/baselines/NAME.json`) and, where it has goals, `--check` (exit 1 when one is missed).
`benchmarks.tables` renders the tables of the documentation from these files.

A baseline file holds:

- `schema`: the version of this format; `benchmark`: the module that measures it.
- `tables`: name -> table. A table that is measured again replaces the one of that name and keeps
  its `columns`; the file's other tables stay.

A table holds:

- `run`: where its numbers come from. `recorded` is "measured", or "transcribed from PAGE" where
  only the page's numbers are known; then `commit` and `date` are those at which the table was
  last changed. Also `command`, `conditions` (what else was at work, as far as is known: at least
  the load average over five minutes, the benchmark's own part included),
  `libraries` (versions, or null) and `device`: `cpu`, `cores`, whether it has `amx` and
  `avx512_bf16` (null: unknown), `gpu`.
- `statistic`: what the values of repeated measurements are, such as "median of 3", or null.
- `columns`: `title`, `align` ("left" or "right") and `cell`, a template filled from a row (see
  `benchmarks.tables`).
- `rows`: one dict each. What was measured is `{"value", "spread"}` and, where they are known,
  `repetitions`, `least` and `most`; `spread` is the standard deviation over the repetitions, null
  where it is unknown. Labels are strings; counts and derived numbers are plain. `goal` is the value
  to reach. Accuracies are fractions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TypeVar

from benchmarks.tables import BASELINES, ROOT, table_lines

SCHEMA = 1
LINE = 120
"""Characters of a baseline's lines, where they can be broken."""

LIBRARIES = {
    "torch": "torch",
    "open_clip": "open_clip_torch",
    "transformers": "transformers",
    "numpy": "numpy",
    "numba": "numba",
    "cv2": "opencv-python-headless",
    "pyarrow": "pyarrow",
    "onnxruntime": "onnxruntime",
    "ray": "ray",
    "mlflow": "mlflow",
    "optuna": "optuna",
}
"""Module -> distribution. The versions of those that a benchmark has imported are recorded."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "fp16"}
"""Precision as a setting has it -> as tables have it."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one table of a baseline; see the module's docstring."""

    rows: Sequence[Row]
    statistic: str | None = None


def benchmark_parser(
    name: str, description: str | None, *, check: str | None = None
) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share.

    `check`: what `--check` does; None for a benchmark without goals.
    """
    first_paragraph = (description or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=" ".join(first_paragraph.split())
    )
    parser.set_defaults(benchmark=name)
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, help="also write the results to this file")
    output.add_argument(
        "--baseline",
        nargs="?",
        const=name,
        metavar="NAME",
        help=f"also record the results as benchmarks/baselines/NAME.json [{name}]",
    )
    if check is not None:
        output.add_argument("--check", action="store_true", help=check)
    return parser


Results = TypeVar("Results")


def write_results(
    arguments: argparse.Namespace,
    results: Results,
    tables_of: Callable[[Results], Mapping[str, Table]],
) -> None:
    """Write what `--json` and `--baseline` ask for.

    `results`: the raw results, for JSON; `tables_of` makes the tables of a baseline of them.
    """
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.baseline:
        file = BASELINES / f"{arguments.baseline}.json"
        save_baseline(file, tables_of(results), benchmark=arguments.benchmark)
        print(f"\nrecorded in {file}", file=sys.stderr)


def exit_code(arguments: argparse.Namespace, missed: Sequence[str]) -> int:
    """1 where `--check` was given and a goal is missed, which is then named; else 0."""
    if arguments.check and missed:
        print("\nmissed: " + "; ".join(missed), file=sys.stderr)
        return 1
    return 0


class Repeated(float):
    """A number that stands for repeated measurements, such as their median, and remembers them."""

    def __new__(cls, value: float, samples: Sequence[float]) -> Self:  # noqa: D102
        number = super().__new__(cls, value)
        number.samples = tuple(samples)
        return number

    samples: tuple[float, ...]

    def __reduce__(self) -> tuple[type[Self], tuple[float, tuple[float, ...]]]:
        """Copies, such as those of `dataclasses.asdict`, keep the samples."""
        return type(self), (float(self), self.samples)


def median_of(samples: Sequence[float]) -> Repeated:
    """The median, with the samples."""
    return Repeated(statistics.median(samples), samples)


def mean_of(samples: Sequence[float]) -> Repeated:
    """The mean, with the samples."""
    return Repeated(statistics.fmean(samples), samples)


def per_second(count: float, seconds: float) -> float:
    """A rate, which keeps the samples of a repeated measurement of the seconds."""
    if isinstance(seconds, Repeated):
        return Repeated(count / seconds, [count / one for one in seconds.samples])
    return count / seconds


def measurement(value: float, *, standard_error: bool = False) -> dict[str, float | int | None]:
    """A measured value as a baseline holds it: with its spread where it was measured repeatedly.

    The spread is the samples' standard deviation, or their mean's standard error.
    """
    measured: dict[str, float | int | None] = {"value": float(value), "spread": None}
    if isinstance(value, Repeated):
        count = len(value.samples)
        measured |= {"repetitions": count}
        if count > 1:
            spread = statistics.stdev(value.samples)
            measured |= {
                "spread": spread / math.sqrt(count) if standard_error else spread,
                "least": min(value.samples),
                "most": max(value.samples),
            }
    return measured


def save_baseline(file: Path, tables: Mapping[str, Table], *, benchmark: str) -> None:
    """Write tables into a baseline file, in place of those of the same names."""
    saved: dict[str, Any] = {"schema": SCHEMA, "benchmark": f"benchmarks.{benchmark}", "tables": {}}
    if file.exists():
        saved = json.loads(file.read_text(encoding="utf-8"))
    run = this_run(benchmark)
    for name, table in tables.items():
        if not table.rows:
            continue
        before = saved["tables"].get(name, {})
        content = {
            "run": run,
            "statistic": table.statistic,
            "columns": before.get("columns") or _columns(table.rows),
            "rows": list(table.rows),
        }
        table_lines(content, where=f"{file.name}, {name}")  # its columns must fit these rows
        saved["tables"][name] = content
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_json(saved) + "\n", encoding="utf-8")


def as_json(content: Any, *, indent: int = 0) -> str:
    """JSON in which what fits on a line stands on one, so that a changed row is a changed line."""
    line = json.dumps(content, ensure_ascii=False)
    if indent + len(line) <= LINE or not isinstance(content, dict | list) or not content:
        return line
    within = indent + 2
    items = (
        [as_json(item, indent=within) for item in content]
        if isinstance(content, list)
        else [f"{json.dumps(k)}: {as_json(v, indent=within)}" for k, v in content.items()]
    )
    opened, closed = "[]" if isinstance(content, list) else "{}"
    lines = f",\n{' ' * within}".join(items)
    return f"{opened}\n{' ' * within}{lines}\n{' ' * indent}{closed}"


def this_run(benchmark: str) -> dict[str, Any]:
    """The `run` of what this process measures; see the module's docstring."""
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *_given_options()]),
        "recorded": "measured",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "device": this_device(),
        "libraries": {"python": platform.python_version()}
        | {name: version(name) for module, name in LIBRARIES.items() if module in sys.modules},
        "conditions": f"load average {os.getloadavg()[1]:.1f}",
    }


def this_device() -> dict[str, Any]:
    """The processor, its instructions for bfloat16, the cores of this process, and the GPU."""
    flags = _cpu_info("flags").split()
    torch = sys.modules.get("torch")
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "amx": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
    }


def cpu_model() -> str:
    """The processor's name."""
    return _cpu_info("model name") or platform.processor()


def _cpu_info(key: str) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _given_options() -> list[str]:
    """The command line without `--json` and `--baseline`, which change no result."""
    hidden = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    hidden.add_argument("--json")
    hidden.add_argument("--baseline", nargs="?")
    return hidden.parse_known_args(sys.argv[1:])[1]


def _commit() -> str | None:
    """The commit that is checked out, with `+changes` where files differ from it."""
    commit, changes = (
        subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
        for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    )
    if commit.returncode != 0:
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _columns(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A column for each key, as a beginning: titles and formats are edited in the file."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = []
    for key in keys:
        number = not any(isinstance(row.get(key), str) for row in rows)
        cell = [f"{{{key}:3sig}}", ""] if number else [f"{{{key}}}", ""]
        columns.append({"title": key, "align": "right" if number else "left", "cell": cell})
    return columns
