"""Errors of Ray's own about lost processes are one line with a remedy; others are left alone."""

from __future__ import annotations

import click
import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from workflows.cli import main
from workflows.runtime.lost_processes import lost_process


def test_a_lost_process_is_explained_directly_and_within_a_task() -> None:
    within = RayTaskError("f", "Traceback …", OutOfMemoryError("Task was killed.\nMore."))
    for error, name in ((ActorDiedError(), "ActorDiedError"), (within, "OutOfMemoryError")):
        said = lost_process(error)
        assert said is not None
        assert len(str(said).splitlines()) == 1
        assert name in str(said)
        assert "run the same command again" in str(said)


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RayTaskError("f", "Traceback …", ValueError("a bug"))]
)
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    assert lost_process(error) is None


def test_a_command_whose_actor_died_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise ActorDiedError

    command = click.Command("recipes", callback=fail)
    monkeypatch.setattr("workflows.cli.LazyGroup.get_command", lambda *_: command)
    with pytest.raises(SystemExit, match="1"):
        main(["recipes"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: Ray lost a process that the work needs")
