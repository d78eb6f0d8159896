"""What running tasks tell the driver: a notice board that any of them may write on.

Tasks, actors and Ray Train's controller post small messages; the driver alone reads them, shows
progress and writes MLflow. So workers need no tracking server, and there is one writer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

POLL_S = 0.5


@ray.remote(num_cpus=0)
class Board:
    """Messages in the order in which they came, each read once."""

    def __init__(self) -> None:
        self._messages: list[Any] = []

    def post(self, message: object) -> None:
        """Pins a message up."""
        self._messages.append(message)

    def drain(self) -> list[Any]:
        """Takes all messages down."""
        messages, self._messages = self._messages, []
        return messages


def gather(
    references: Sequence[ray.ObjectRef], *, board: ActorHandle, on_message: Callable[[Any], None]
) -> list[Any]:
    """The tasks' results in order; messages are handed on while they run."""
    pending = list(references)
    while pending:
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_S)
        for message in ray.get(board.drain.remote()):
            on_message(message)
    return ray.get(list(references))


def attend(
    work: Callable[[], Any], *, board: ActorHandle, on_message: Callable[[Any], None]
) -> Any:
    """Runs blocking `work` beside the reading of the board and returns its result.

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
        for message in ray.get(board.drain.remote()):
            on_message(message)
    if failure:
        raise failure[0]
    return outcome[0]
