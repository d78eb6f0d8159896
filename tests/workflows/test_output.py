"""Results on full disks, in narrow terminals, and from homes that cannot be written to."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
from rich.table import Table

from muva.errors import MuvaError
from tests.workflows.commands import COMMAND
from tracking.connection import reached_client
from tracking.names import ARTIFACT_TAG
from tracking.runs import Tracker
from workflows.cli import main
from workflows.progress import say
from workflows.verb import TABLE_COLUMNS, as_text, print_result

ADDRESS = "models/a-name-that-is-rather-long-0123456789abcdef"


def table() -> Table:
    made = Table("artifact", "size", "runs", title="the title of the table")
    made.add_row(ADDRESS, "1.0 MB", "one run, another run")
    return made


@pytest.mark.parametrize("columns", [40, 80])
def test_a_table_fits_into_the_terminal_and_loses_nothing(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, *lines = as_text(table()).splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in "".join(lines)
    first = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert first == ADDRESS


def test_a_table_in_a_file_has_a_fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", _no_terminal)
    wide = Table("text")
    wide.add_row("word " * 60)
    assert max(map(len, as_text(wide).splitlines())) == TABLE_COLUMNS


def test_names_of_files_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "p1/\x1b]0;title\a\x9b31m\tü.jpg"
    shown = "p1/\\x1b]0;title\\x07\\x9b31m\tü.jpg\n"
    print_result({}, as_json=False, text=name)
    assert capsys.readouterr().out == shown
    print_result(name, as_json=True, text="")
    assert capsys.readouterr().out.isascii()
    say(name)
    assert capsys.readouterr().err.expandtabs() == shown.expandtabs()


def _no_terminal(_: int) -> os.terminal_size:
    raise OSError("not a terminal")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["recipes"], ["recipes", "base", "--json"], ["--help"]])
def test_a_result_that_cannot_be_written_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: The result cannot be written to standard output: No space"
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(closed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "recipes", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("demo" in done.stdout) == (">&-" not in closed.split())


WITHOUT_PRIVILEGES = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)
"""What lets permissions hold for root too."""


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_store_of_a_home_that_cannot_be_written_to_is_listed(
    journal: str, tmp_path: Path
) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root, and setpriv is missing")
    home = tmp_path / "home"
    database = home / "mlflow.db"
    tags = {ARTIFACT_TAG: ADDRESS}
    Tracker(f"sqlite:///{database}", "muva").open(name="train", key=ADDRESS, tags=tags).finish()
    artifact = home / "store" / ADDRESS
    artifact.mkdir(parents=True)
    (artifact / "content").write_bytes(b"x")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
    for path in [home, *home.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        done = subprocess.run(
            [*(WITHOUT_PRIVILEGES if os.geteuid() == 0 else ()), *COMMAND, "store", "list"],
            env={**os.environ, "MUVA_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        for path in [home, *home.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_a_database_that_cannot_be_written_to_is_not_to_be_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MuvaError, match="can write to") as refused:
        reached_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert "upgrade" not in str(refused.value)


def test_without_a_home_folder_the_error_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def homeless() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(SystemExit) as stop:
        main(["data", "list"])
    assert stop.value.code == 1
    assert "has no home folder: set HOME" in capsys.readouterr().err
