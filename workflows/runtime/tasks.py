"""The one way to start Ray tasks.

Whatever a task computes, it gets its CPU threads and GPUs, retries after lost nodes, placement,
cancellation, unwrapped errors and messages to the driver from here. Steps therefore import no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from muva.errors import MuvaError
from muva.memory import freed_memory_kept
from workflows.runtime.capacity import CapacityMonitor
from workflows.runtime.messages import POLL_S, MessageQueue
from workflows.runtime.quirks import OUTSIDE_PLACEMENT_GROUPS

MAX_RETRIES = 3
"""How often a task is retried after a lost process or node; its own errors are never retried."""

Result = TypeVar("Result")


def run_tasks(
    function: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    *,
    cpus: int = 1,
    gpus: int = 0,
    threads: int | None = 1,
    runtime_env: dict[str, Any] | None = None,
    queue: MessageQueue | None = None,
    on_message: Callable[[Any], None] = lambda message: None,
    capacity: CapacityMonitor | None = None,
) -> list[Result]:
    """Run `function(*arguments)` as one task per call; the results in the order of the calls.

    `function` is defined at the top level of a module, which the task's process imports. `cpus` and
    `gpus` are what each task holds; `threads` is the number of threads that PyTorch uses in it, on
    which the last digits of sums depend (None: as Ray starts the process). While the tasks run,
    `on_message` is called with the messages of `queue`.

    Raises:
        MuvaError: a task raised it, or the cluster lost too much `capacity`. The tasks that are
            still running are cancelled.
    """
    references = _started(
        function, calls, cpus=cpus, gpus=gpus, threads=threads, runtime_env=runtime_env
    )
    pending = references
    with _cancelled_on_error(references):
        while pending:
            finished, pending = ray.wait(pending, num_returns=1, timeout=POLL_S)
            if queue is not None:
                for message in queue.drain():
                    on_message(message)
            get_results(finished)
            if capacity is not None:
                capacity.check()
    return get_results(references)


def completed_tasks(
    function: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    *,
    cpus: int = 1,
    gpus: int = 0,
    threads: int | None = 1,
) -> Iterator[tuple[int, Result]]:
    """Like `run_tasks`, but yields the index and the result of each call as soon as it is done.

    Results are released one by one, so not all of them have to fit in memory.
    """
    references = _started(function, calls, cpus=cpus, gpus=gpus, threads=threads)
    number_of = {reference: number for number, reference in enumerate(references)}
    del references
    with _cancelled_on_error(number_of):
        while number_of:
            [reference], _ = ray.wait([*number_of], num_returns=1)
            [result] = get_results([reference])
            yield number_of.pop(reference), result


def assigned_cpus() -> int:
    """The number of CPU cores that the task in this process holds."""
    return int(ray.get_runtime_context().get_assigned_resources()["CPU"])


def shared(value: object) -> Any:
    """A value that is an argument of many calls, and is sent to each node only once."""
    return ray.put(value)


def get_results(references: Sequence[ray.ObjectRef]) -> list[Any]:
    """The results of tasks; a `MuvaError` of a task is raised without Ray's wrapper."""
    try:
        return ray.get(list(references))
    except RayTaskError as error:
        if isinstance(error.cause, MuvaError):
            raise error.cause from None
        raise


def _started(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    cpus: int,
    gpus: int,
    threads: int | None,
    runtime_env: dict[str, Any] | None = None,
) -> list[ray.ObjectRef]:
    name = function.__name__.strip("_")
    task = _run.options(num_cpus=cpus, num_gpus=gpus, name=name, runtime_env=runtime_env)
    return [task.remote(function, threads, *arguments) for arguments in calls]


@ray.remote(max_retries=MAX_RETRIES, scheduling_strategy=OUTSIDE_PLACEMENT_GROUPS)
def _run(function: Callable[..., Any], threads: int | None, *arguments: Any) -> Any:
    if threads is not None:
        import torch

        # Set in every task, because Ray may reuse a process of another task.
        torch.set_num_threads(threads)
    with freed_memory_kept():
        return function(*arguments)


@contextmanager
def _cancelled_on_error(references: Any) -> Iterator[None]:
    """Cancel the tasks if an error or Ctrl-C ends the block."""
    try:
        yield
    except BaseException:
        for reference in list(references):
            ray.cancel(reference, force=True)
        raise
