"""Calls from the API to the replicas of the model, repeated where a replica is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from workflows.serving.errors import RequestError

TRIES = 5
_FIRST_WAIT_S = 0.2
BUSY = RequestError(503, "busy", "too many requests are waiting; try again in a moment")
LOST = RequestError(503, "unavailable", "no replica of the model answers; try again in a moment")


class Replicas(Protocol):
    """The replicas of a model."""

    async def call(self, operation: str, *given: Any) -> Any:
        """What one of them returns; RequestError if none does."""
        ...


class ServeReplicas:
    """The replicas behind a handle of Ray Serve."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def call(self, operation: str, *given: Any) -> Any:
        """What a replica returns.

        Ray Serve itself sends a request to another replica only if it did not reach the first: one
        that was under way in a replica that dies is an error of the caller. Ray Serve 2.60. All
        operations may be repeated: adding replaces, and what is forgotten stays so.

        Raises:
            RequestError: no replica answers, or too many requests are waiting.
        """
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        wait_s = _FIRST_WAIT_S
        for _ in range(TRIES):
            try:
                return await getattr(self._handle, operation).remote(*given)
            except BackPressureError as error:
                raise BUSY from error
            except RayTaskError:  # also where it is one of the others: the replica raised it
                raise
            except (RayActorError, DeploymentUnavailableError):
                await asyncio.sleep(wait_s)
                wait_s *= 2
        raise LOST


async def asked(replicas: Replicas, operation: str, *given: Any) -> Mapping[str, Any]:
    """The answer of a replica; RequestError if it is that the request is wrong."""
    answer = await replicas.call(operation, *given)
    if "error" in answer:
        raise RequestError(answer["status"], answer["error"]["code"], answer["error"]["message"])
    return answer["answer"]
