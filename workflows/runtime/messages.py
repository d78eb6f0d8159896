"""Messages from running tasks to the driver.

Tasks, actors and Ray Train's workers send small messages; only the driver reads them, shows
progress and writes to MLflow. Workers therefore need no tracking server, and MLflow has one writer.
"""

from __future__ import annotations

import functools
import uuid
from collections import defaultdict
from typing import Any

import ray

from workflows.runtime.cluster import on_the_drivers_node

POLL_S = 0.5


class MessageQueue:
    """A handle to a queue of the driver, which is pickled and passed to every sender."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex
        context = ray.get_runtime_context()
        self._actor = _queue_actor(context.gcs_address, context.get_job_id())

    def send(self, message: object, *, block: bool = False) -> None:
        """Send a message; with `block`, return once it survives the death of this process."""
        sent = self._actor.send.remote(self._name, message)
        if block:
            ray.get(sent)

    def drain(self) -> list[Any]:
        """Remove and return all messages, in the order in which they arrived."""
        return ray.get(self._actor.drain.remote(self._name))


class _QueueActor:
    """Holds the messages of all queues of one driver."""

    def __init__(self) -> None:
        self._messages: dict[str, list[Any]] = defaultdict(list)

    def send(self, queue: str, message: object) -> None:
        self._messages[queue].append(message)

    def drain(self, queue: str) -> list[Any]:
        return self._messages.pop(queue, [])


@functools.lru_cache(maxsize=1)
def _queue_actor(cluster: str, job: str) -> Any:
    """One actor for all queues of a driver; job ids are unique within a cluster only.

    An actor occupies a worker process that a task could have reused. With one actor per step, the
    tasks of each step would wait for new processes and their imports.
    """
    del cluster, job
    return ray.remote(num_cpus=0, scheduling_strategy=on_the_drivers_node())(_QueueActor).remote()
