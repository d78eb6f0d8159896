"""Terms that were replaced by those of the field do not come back.

`tests/retired_terms.tsv` has a regular expression and what to write instead on each line. The
changelog is exempt, because its older entries name things as they were called then.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("retired_terms.tsv")
TEXT = (".py", ".md", ".yaml", ".yml", ".toml", ".sbatch", ".html", ".cff", "Makefile")
EXEMPT = ("CHANGELOG.md", "tests/test_terms.py")


def retired_terms() -> list[tuple[re.Pattern[str], str]]:
    rows = [line.split("\t") for line in LIST.read_text(encoding="utf-8").splitlines()]
    return [(re.compile(term), instead) for term, instead in rows]


def found_in(text: str) -> list[str]:
    """Each retired term of the text, with its line and what to write instead."""
    return [
        f"{number}: {match[0]!r}: write {instead!r}"
        for number, line in enumerate(text.splitlines(), start=1)
        for term, instead in retired_terms()
        if (match := term.search(line))
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
