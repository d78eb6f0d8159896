"""The documentation's measured tables, rendered from baselines: `python -m benchmarks.tables`.

A page says where a table belongs:

    <!-- baseline: NAME/TABLE -->
    ...
    <!-- end -->

What stands between is replaced by the table TABLE of `benchmarks/baselines/NAME.json`, whose format
`benchmarks.baseline` describes. `--check` writes nothing and exits 1 with the differences instead.

A cell's template is filled from its row: `{rate:.1f}` is the value measured as `rate`,
`{rate.spread:.1f}` its spread, `{losses.0}` the first of a list. Of several templates the first is
taken for which the row has all values; "" leaves a cell empty. Beside Python's format
specifications there are `1pct` (per cent, one decimal), `2sig` (two significant digits), `short`
(one decimal below 100, none from 100 on) and `sci` (1.2e-07, and 0).
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import floor, log10
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BASELINES = Path(__file__).parent / "baselines"
PAGES = ("README.md", "benchmarks/README.md", "docs/*.md", "clusters/**/*.md", "muva/**/*.md")
_RULES = {"left": "---", "right": "---:"}
_BLOCK = re.compile(
    r"^<!-- baseline: (?P<name>[\w-]+)/(?P<table>[\w-]+) -->\n(?P<content>.*?)^<!-- end -->$",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r"^<!-- (?:baseline: .*|end) -->", re.MULTILINE)


class BaselineError(ValueError):
    """A page, a baseline file or a template that does not fit; says which and why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Render all pages; with --check 1 where one differs from its baseline."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="exit 1 where a page differs")
    arguments = parser.parse_args(argv)
    try:
        changes = list(changed_pages(ROOT))
    except BaselineError as mistake:
        print(f"Error: {mistake}", file=sys.stderr)
        return 1
    for page, before, after in changes:
        if arguments.check:
            print(_difference(str(page.relative_to(ROOT)), before, after), end="")
        else:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: written")
    if arguments.check and changes:
        print("\nRender them: python -m benchmarks.tables", file=sys.stderr)
        return 1
    return 0


def changed_pages(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Each page that differs from its baselines: path, text, and what it should be."""
    for pattern in PAGES:
        for page in sorted(root.glob(pattern)):
            before = page.read_text(encoding="utf-8")
            after = rendered(before, where=str(page.relative_to(root)))
            if after != before:
                yield page, before, after


def rendered(text: str, *, where: str) -> str:
    """A page's text with every table that has a marker rendered anew.

    Raises `BaselineError` for a marker without its end and for a table that no baseline holds.
    """

    def block(found: re.Match[str]) -> str:
        name, table = found["name"], found["table"]
        lines = table_lines(_table(name, table, where=where), where=f"{name}.json, {table}")
        return "\n".join([f"<!-- baseline: {name}/{table} -->", "", *lines, "", "<!-- end -->"])

    blocks = list(_BLOCK.finditer(text))
    if len(_MARKER.findall(text)) != 2 * len(blocks):
        raise BaselineError(
            f"{where}: expected markers in pairs, `<!-- baseline: NAME/TABLE -->` and "
            f"`<!-- end -->`; found {len(_MARKER.findall(text))} markers and {len(blocks)} pairs"
        )
    return _BLOCK.sub(block, text)


def table_lines(table: Mapping[str, Any], *, where: str) -> list[str]:
    """A table of a baseline in Markdown; `where` names it in errors."""
    columns = table["columns"]
    lines = [_line([column["title"] for column in columns])]
    lines.append("|" + "|".join(_RULES[column["align"]] for column in columns) + "|")
    return lines + [
        _line([cell(column["cell"], row, where=where) for column in columns])
        for row in table["rows"]
    ]


def cell(templates: str | Sequence[str], row: Mapping[str, Any], *, where: str) -> str:
    """A row's cell by the first template for which the row has all values."""
    for template in [templates] if isinstance(templates, str) else templates:
        try:
            return _FORMATTER.vformat(template, (), row)
        except _MissingError:
            continue
    raise BaselineError(f"{where}: no value for {templates!r} in {dict(row)}")


class _MissingError(Exception):
    """A row has no such value."""


class _CellFormatter(string.Formatter):
    """`str.format` on rows: dotted paths, values of measurements, and formats of our own."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        found: Any = kwargs
        for step in field_name.split("."):
            try:
                found = found[int(step)] if isinstance(found, Sequence) else found[step]
            except (KeyError, IndexError, TypeError):
                raise _MissingError(field_name) from None
        if isinstance(found, Mapping):
            found = found.get("value")
        if found is None:
            raise _MissingError(field_name)
        return found, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if special := re.fullmatch(r"(?P<sign>\+?)(?P<digits>\d)(?P<form>pct|sig)", format_spec):
            sign, digits = special["sign"], int(special["digits"])
            if special["form"] == "pct":
                return f"{100 * value:{sign}.{digits}f}"
            rounded = float(f"{value:.{digits - 1}e}")
            decimals = digits - 1 - floor(log10(abs(rounded))) if rounded else digits - 1
            return f"{rounded:{sign}.{max(decimals, 0)}f}"
        if format_spec == "short":
            return f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
        if format_spec == "sci":
            return f"{value:.1e}" if value else "0"
        return super().format_field(value, format_spec)


_FORMATTER = _CellFormatter()


def _baseline(name: str) -> dict[str, Any]:
    return json.loads((BASELINES / f"{name}.json").read_text(encoding="utf-8"))


def _table(name: str, table: str, *, where: str) -> Mapping[str, Any]:
    try:
        return _baseline(name)["tables"][table]
    except (FileNotFoundError, KeyError):
        raise BaselineError(
            f"{where}: {name}/{table}: expected a table {table!r} in {BASELINES / name}.json"
        ) from None


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {text} " if text else " " for text in cells) + "|"


def _difference(page: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        fromfile=page,
        tofile=f"{page} by its baselines",
    )
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
