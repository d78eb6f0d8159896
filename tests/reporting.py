"""A pytest plugin: warnings of other packages by module, and what follows from recorded durations.

`--record-durations`, given for the whole suite, writes durations.json: what each file took, and
which tests are slow. With two workers the longest files must start first for both to end together;
the slow tests get the marker `slow`, which `make test-fast` leaves out.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DURATIONS = Path(__file__).with_name("durations.json")
UNKNOWN_S = 5.0
"""Of a file that is not in the list yet."""
SLOW_S = 1.0
"""A test that takes longer, its fixtures included, is slow."""
MOST_WARNINGS = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-durations",
        action="store_true",
        help="write what each file took and which tests are slow; for runs of the whole suite",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Summary(config), "muva-summary")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first."""
    seconds: dict[str, float] = recorded().get("files", {})
    items.sort(key=lambda item: -seconds.get(_file(item.path), UNKNOWN_S))


def recorded() -> dict[str, Any]:
    """`files`: file -> seconds; `slow_tests`: the slow ones among those without a cluster."""
    return json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}


class Summary:
    """Sums up after the tests, in the process that the workers report to."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._warnings: Counter[tuple[str, str, str]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._without_cluster: set[str] = set()

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        message = str(warning_message.message).strip().splitlines() or [""]
        where = _module(Path(warning_message.filename))
        self._warnings[where, warning_message.category.__name__, message[0][:90]] += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        if "cluster" not in report.keywords:
            self._without_cluster.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._warnings:
            terminalreporter.section("warnings of other packages, by module")
            for (where, kind, message), count in self._warnings.most_common(MOST_WARNINGS):
                terminalreporter.line(f"{count:5d} {where}: {kind}: {message}")
            if len(self._warnings) > MOST_WARNINGS:
                terminalreporter.line(f"      … and {len(self._warnings) - MOST_WARNINGS} more")
        if self._config.getoption("--record-durations"):
            record = durations(self._seconds, self._without_cluster)
            DURATIONS.write_text(json.dumps(record, indent=2) + "\n")


def durations(seconds: Mapping[str, float], without_cluster: Collection[str]) -> dict[str, Any]:
    """What `recorded` reads, of the seconds of each test."""
    files: defaultdict[str, float] = defaultdict(float)
    for test, taken in seconds.items():
        files[test.partition("::")[0]] += taken
    return {
        "files": {file: round(s, 1) for file, s in sorted(files.items()) if s >= 1},
        "slow_tests": sorted(test for test in without_cluster if seconds[test] >= SLOW_S),
    }


def _file(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _module(file: Path) -> str:
    """As it is imported: of an installed package its name and those below."""
    parts = file.with_suffix("").parts
    for folder in ("site-packages", f"{ROOT}", "lib"):
        if folder in parts:
            parts = parts[len(parts) - parts[::-1].index(folder) :]
            break
    return ".".join(parts[-4:])
