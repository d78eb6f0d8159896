"""What `make test-fast` leaves out is found by what a test does and by how long it took."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.reporting import durations
from tests.selection import starts_process
from tests.workflows import commands
from workflows.verbs import ui


class Place:
    def run(self) -> None:
        subprocess.run(["true"], check=True)


def uses_a_command() -> object:
    return commands.start


@contextmanager
def uses_a_server() -> Iterator[None]:
    with ui.mlflow_server("sqlite:///mlflow.db", port=0):
        yield


def uses_both_in_a_function_of_its_own() -> None:
    def inner() -> None:
        with uses_a_server():
            uses_itself_and_nothing_else()

    inner()


def uses_itself_and_nothing_else() -> None:
    uses_itself_and_nothing_else()


@pytest.mark.parametrize(
    "function",
    [commands.start, Place, uses_a_command, uses_a_server, uses_both_in_a_function_of_its_own],
)
def test_what_starts_a_process_is_found_however_deep(function: object) -> None:
    assert starts_process(function)


@pytest.mark.parametrize("function", [commands.wait_for, uses_itself_and_nothing_else, dict, None])
def test_what_starts_none_is_left_alone(function: object) -> None:
    assert not starts_process(function)


def test_this_test_is_marked_by_the_fixture_that_it_uses(
    request: pytest.FixtureRequest, s3_server: str
) -> None:
    assert request.node.get_closest_marker("cluster") is not None


def test_slow_tests_are_those_that_took_over_a_second_without_a_cluster() -> None:
    seconds = {"tests/a.py::one": 0.9, "tests/a.py::two[x]": 1.2, "tests/b.py::three": 30.0}
    assert durations(seconds, {"tests/a.py::one", "tests/a.py::two[x]"}) == {
        "files": {"tests/a.py": 2.1, "tests/b.py": 30.0},
        "slow_tests": ["tests/a.py::two[x]"],
    }
