"""Work that is killed or interrupted: what is finished stays, the same command goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from muva.data.artifacts import list_artifacts
from muva.data.store import open_store
from tests.workflows.commands import PATIENCE_S, start
from workflows.cli import main
from workflows.exit_codes import INTERRUPTED


def test_ctrl_c_in_an_import_leaves_nothing_that_counts_as_done(
    ray_session: None, smoke_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data", "import", "syn-harbour", "--recipe", f"{smoke_recipe}")
    many = ("--set", "synthetic.train_people=500")
    interrupted = start(tmp_path, *words, *many)
    lines: list[str] = []
    assert interrupted.stdout is not None
    for line in interrupted.stdout:
        lines.append(line)
        if "render syn-harbour" in line:
            break
    os.kill(interrupted.pid, signal.SIGINT)
    output = "".join(lines) + interrupted.communicate(timeout=PATIENCE_S)[0]
    assert interrupted.returncode == INTERRUPTED, output
    assert "run the same command again to resume" in output
    assert "Traceback" not in output
    assert not list_artifacts(open_store(tmp_path / "store"))
    with pytest.raises(SystemExit) as stop:
        main([*words, "--home", f"{tmp_path}"])
    assert stop.value.code == 0
    assert "syn-harbour" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "explanation"),
    [
        (["data", "import", "mine", "--from", "nowhere", "--layout", "market1501"], 1, "nowhere"),
        (["data", "show", "mine"], 1, "there are no datasets yet"),
        (["ground", "syn-station", "--set", "grounding.expret=x"], 2, "grounding.expert"),
        (["train"], 2, "--sources is missing"),
        (["evaluate", "nobody", "--targets", "syn-station"], 1, "no models 'nobody'"),
        (["run", "demmo"], 2, "did you mean demo"),
        (["run", "base"], 2, "expected sources to train on"),
        (["evaluate", "muva", "--targets", ","], 2, "expected names separated by commas"),
        (["demo", "--set", "variants=[clip]"], 2, "the demo needs the variant muva"),
        (["train", "--sources", "a", "--workers", "0"], 2, "--workers"),
        (["train", "--sources", "a", "--micro-batch", "0"], 2, "--micro-batch"),
        (["fly"], 2, "No such command"),
    ],
)
def test_a_persons_mistake_is_explained_without_a_traceback(
    words: list[str],
    code: int,
    explanation: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, *(["--home", f"{tmp_path}"] if words != ["fly"] else [])])
    output = "".join(capsys.readouterr())
    assert stop.value.code == code, output
    assert explanation in output
    assert "Traceback" not in output


def test_a_store_in_an_impossible_place_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    person = tmp_path / "people" / "anna"
    person.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (32, 64), (90 * number, 40, 40)).save(person / f"{number}.png")
    words = ["data", "import", "mine", "--from", f"{tmp_path / 'people'}", "--layout", "folder"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--store", "/dev/null/store", "--home", f"{tmp_path / 'home'}"])
    assert stop.value.code == 1
    output = capsys.readouterr().err
    assert "store /dev/null/store: cannot" in output
    assert "Traceback" not in output
