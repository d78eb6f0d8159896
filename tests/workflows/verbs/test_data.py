"""What `muva data` prints about a folder that is imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.benchmarks.trees import tree
from workflows.cli import main

Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb; what it printed as its result and as status messages."""

    def run_verb(*words: str, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stop:
            main([*words, "--home", f"{tmp_path / 'runs'}"])
        printed = capsys.readouterr()
        assert stop.value.code == code, printed.err
        return printed.out, " ".join(printed.err.split())

    return run_verb


def test_files_that_were_not_taken_are_printed_and_kept(run: Run, tmp_path: Path) -> None:
    root = tree(tmp_path / "people", {"1": ["a.jpg"], "2": ["a.jpg"]})
    for number in range(7):
        (root / "1" / f"{number}.mp4").write_bytes(b"")
    (root / "Thumbs.db").write_bytes(b"")
    (root / "3").symlink_to(tmp_path / "not_mounted")
    words = ("data", "import", "mine", "--from", f"{root}", "--layout", "folder")
    result, said = run(*words, "--split", "train")
    assert "8 files skipped (ending .mp4 7, system file 1)" in result
    assert "for example 1/0.mp4 (ending .mp4)" in said
    assert "cannot be opened: 3 (the link leads to" in said
    assert "1 unreadable files or folders were quarantined" in said

    again = json.loads(run(*words, "--split", "train", "--json")[0])
    assert again["skipped"] == {"ending .mp4": 7, "system file": 1}
    shown, _ = run("data", "show", "mine")
    assert "1 quarantined" in shown
    assert "8 files skipped (ending .mp4 7, system file 1)" in shown
    report: dict[str, Any] = json.loads(run("data", "check", "mine", "--json")[0])
    assert report["skipped"] == {"ending .mp4": 7, "system file": 1}
    assert report["warnings"][2].startswith("8 files skipped")
    assert report["quarantined"][0]["image_id"] == "3"


def test_a_test_set_with_one_image_per_camera_is_imported(run: Run, tmp_path: Path) -> None:
    names = [f"{pid:04}_c{camid}.png" for pid in range(1, 5) for camid in (1, 2)]
    root = tree(tmp_path / "sparse", {".": names})
    words = ("--from", f"{root}", "--layout", "folder", "--pid-regex", r"^(\d+)_")
    result, said = run("data", "import", "sparse", *words, "--camid-regex", r"_c(\d)")
    assert "query: 4 images, 4 identities" in result
    assert "gallery: 4 images, 4 identities" in result
    assert "no match" not in said
    tree(root, {".": ["0001_c1_b.png", "0009_c1.png"]})
    _, said = run("data", "import", "sparse", *words, "--camid-regex", r"_c(\d)")
    assert "2 of 6 queries have no match in another camera" in said
