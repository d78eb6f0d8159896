"""A cluster that is started by the first step that needs it: a finished pipeline starts none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

_stack: ExitStack | None = None
_beside: Callable[[], AbstractContextManager[object]] | None = None


@contextmanager
def cluster_on_demand(
    *, beside: Callable[[], AbstractContextManager[object]] | None = None
) -> Iterator[None]:
    """Keep the cluster that the first `ray_cluster` of the block connects to until its end.

    `beside` makes a context that is entered when the cluster is connected, such as the recording
    of node metrics. Nested blocks have no effect.
    """
    global _stack, _beside
    if _stack is not None:
        yield
        return
    with ExitStack() as _stack:
        _beside = beside
        try:
            yield
        finally:
            _beside = None
            _stack, stack = None, _stack
            stack.close()


def keep(connected: AbstractContextManager[object]) -> bool:
    """Keep a connection until the end of the block around it; False if there is no block."""
    if _stack is None:
        return False
    _stack.enter_context(connected)
    if _beside is not None:
        _stack.enter_context(_beside())
    return True
