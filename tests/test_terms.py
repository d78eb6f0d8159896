"""Terms that were replaced by those of the field do not come back.

`tests/retired_terms.tsv` has a regular expression and what to write instead on each line. The
changelog is exempt, because its older entries name things as they were called then.
"""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("retired_terms.tsv")
TEXT = (".py", ".md", ".yaml", ".yml", ".toml", ".sbatch", ".html", ".cff", "Makefile")
EXEMPT = ("CHANGELOG.md", "tests/test_terms.py")


class Retired(NamedTuple):
    """A line of the list."""

    term: re.Pattern[str]
    instead: str
    literal: str
    """Text without which the expression cannot match; looking for it is much faster."""


@functools.cache
def retired_terms() -> list[Retired]:
    rows = [line.split("\t") for line in LIST.read_text(encoding="utf-8").splitlines()]
    return [Retired(re.compile(term), instead, _literal(term)) for term, instead in rows]


def _literal(term: str) -> str:
    if set(term) & set("|?*[{"):
        return ""
    return max(re.findall(r"[\w -]+", re.sub(r"\\[a-zA-Z]", "\n", term)), key=len)


def found_in(text: str) -> list[str]:
    """Each retired term of the text, with its line and what to write instead."""
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}: write {retired.instead!r}"
        for retired in retired_terms()
        if retired.literal in text
        for match in retired.term.finditer(text)
    ]


def test_no_file_has_a_retired_term() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    files = [
        name
        for name in listed.stdout.splitlines()
        if name.endswith(TEXT) and name not in EXEMPT and (ROOT / name).is_file()
    ]
    assert len(files) > 400, "git lists too few files"
    hits = [f"{name}:{hit}" for name in files for hit in found_in((ROOT / name).read_text("utf-8"))]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    "line",
    ["    log_epochs(report)  # behind an epoch", "state = newest_state(artifact)", "class Board:"],
)
def test_a_retired_term_is_found(line: str) -> None:
    assert found_in(f"\n{line}\n")[0].startswith("2: ")
