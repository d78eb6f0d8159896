"""A pytest plugin: warnings of other packages by module, and files in the order of their durations.

`--record-durations` writes what each file took to durations.json, which orders the next run: with
two workers the longest files must start first for both to end together.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DURATIONS = Path(__file__).with_name("durations.json")
UNKNOWN_S = 5.0
"""Of a file that is not in the list yet."""
MOST_WARNINGS = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-durations", action="store_true", help="write what each file took, which orders it"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Summary(config), "muva-summary")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first."""
    seconds: dict[str, float] = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    items.sort(key=lambda item: -seconds.get(_file(item.path), UNKNOWN_S))


class Summary:
    """Sums up after the tests, in the process that the workers report to."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._warnings: Counter[tuple[str, str, str]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        message = str(warning_message.message).strip().splitlines() or [""]
        where = _module(Path(warning_message.filename))
        self._warnings[where, warning_message.category.__name__, message[0][:90]] += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._warnings:
            terminalreporter.section("warnings of other packages, by module")
            for (where, kind, message), count in self._warnings.most_common(MOST_WARNINGS):
                terminalreporter.line(f"{count:5d} {where}: {kind}: {message}")
            if len(self._warnings) > MOST_WARNINGS:
                terminalreporter.line(f"      … and {len(self._warnings) - MOST_WARNINGS} more")
        if self._config.getoption("--record-durations"):
            taken = {file: round(s, 1) for file, s in sorted(self._seconds.items()) if s >= 1}
            DURATIONS.write_text(json.dumps(taken, indent=2) + "\n")


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
