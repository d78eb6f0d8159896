"""Which tests need a cluster, a server or a command of their own: they get the marker `cluster`.

Found by what a test does, so nobody has to remember it: its fixtures, and the functions of the
tests that it and its fixtures call.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

FIXTURES = {"ray_session", "s3_server"}
PROGRAMS = {"workflows.verbs.ui.mlflow_server", "workflows.jobs.head.start_head"}
"""Functions of ours that start a server."""


def needs_cluster(item: pytest.Item) -> bool:
    """Whether the test uses Ray or a server, or starts a process."""
    if not isinstance(item, pytest.Function):
        return False
    if FIXTURES & set(item.fixturenames):
        return True
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(fixture.func for chain in fixtures for fixture in chain)]
    return any(starts_process(function) for function in functions)


def starts_process(function: Any) -> bool:
    """Whether a function of the tests starts a process, or a function of the tests that it uses."""
    return _starts_process(function, set())


def _starts_process(found: Any, seen: set[int]) -> bool:
    function = getattr(found, "__wrapped__", found)
    if function is subprocess or f"{_module(function)}.{_name(function)}" in PROGRAMS:
        return True
    if _module(function) == "subprocess":
        return True
    if id(function) in seen or not _module(function).startswith("tests."):
        return False
    seen.add(id(function))
    if isinstance(function, type):
        return any(_starts_process(one, seen) for one in vars(function).values())
    if not isinstance(function, FunctionType):
        return False
    return any(_starts_process(one, seen) for one in _used(function))


def _used(function: FunctionType) -> Iterator[Any]:
    """The globals that a function names, and what it may take of modules of ours among them."""
    names = set(_names(function.__code__))
    for found in [function.__globals__[name] for name in names & function.__globals__.keys()]:
        yield found
        if isinstance(found, ModuleType) and found.__name__.startswith(("tests.", "workflows.")):
            yield from (vars(found)[name] for name in names & vars(found).keys())


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _module(found: Any) -> str:
    return "" if isinstance(found, ModuleType) else str(getattr(found, "__module__", ""))


def _name(found: Any) -> str:
    return str(getattr(found, "__qualname__", ""))
