"""What running tasks tell the driver: a notice board that any of them may write on.

Tasks, actors and Ray Train's controller post small messages; the driver alone reads them, shows
progress and writes MLflow. So workers need no tracking server, and there is one writer.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from muva.errors import MuvaError
from workflows.runtime.capacity import Room
from workflows.runtime.cluster import with_the_driver

POLL_S = 0.5


class Board:
    """A handle to a board of its own, made by the driver; it travels to whoever shall write."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex
        context = ray.get_runtime_context()
        self._messages = _messages_of(context.gcs_address, context.get_job_id())

    def post(self, message: object, *, wait: bool = False) -> None:
        """Pins a message up; `wait`: until it hangs there, whatever becomes of this process."""
        pinned = self._messages.post.remote(self._name, message)
        if wait:
            ray.get(pinned)

    def drain(self) -> list[Any]:
        """Takes all messages down, in the order in which they came."""
        return ray.get(self._messages.drain.remote(self._name))


class _Messages:
    """The actor behind the boards of one process."""

    def __init__(self) -> None:
        self._messages: dict[str, list[Any]] = defaultdict(list)

    def post(self, board: str, message: object) -> None:
        self._messages[board].append(message)

    def drain(self, board: str) -> list[Any]:
        return self._messages.pop(board, [])


@functools.lru_cache(maxsize=1)
def _messages_of(cluster: str, job: str) -> Any:
    """One actor for all boards of a Ray job that this process makes; clusters number jobs alike.

    An actor takes over an idle process of Ray's, which a task would have used: with an actor a
    step, each step's tasks would wait for new processes and what they import.
    """
    del cluster, job
    return ray.remote(num_cpus=0, scheduling_strategy=with_the_driver())(_Messages).remote()


def gather(
    references: Sequence[ray.ObjectRef],
    *,
    board: Board,
    on_message: Callable[[Any], None],
    room: Room | None = None,
) -> list[Any]:
    """The tasks' results in order; messages are handed on while they run.

    The first task that fails ends the waiting: its `MuvaError` is raised as it was in the task. So
    does a cluster that has no `room` for them any more.
    """
    pending = list(references)
    while pending:
        finished, pending = ray.wait(pending, num_returns=1, timeout=POLL_S)
        for message in board.drain():
            on_message(message)
        results(finished)
        if room is not None:
            room.look()
    return results(references)


def results(references: Sequence[ray.ObjectRef]) -> list[Any]:
    """What tasks returned; a person's mistake found in a task is raised without Ray's wrapping."""
    try:
        return ray.get(list(references))
    except RayTaskError as error:
        if isinstance(error.cause, MuvaError):
            raise error.cause from None
        raise


def attend(
    work: Callable[[], Any], *, board: Board, on_message: Callable[[Any], None], room: Room
) -> Any:
    """Runs blocking `work` beside the reading of the board and returns its result.

    A cluster that has no `room` for it any more ends the waiting.

    The work has a thread of its own: Ray Train's `fit` replaces the main thread's handler of
    Ctrl-C by one that ends the process with success, and does not put it back.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="muva-work", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        for message in board.drain():
            on_message(message)
        room.look()
    if failure:
        raise failure[0]
    return outcome[0]
