"""Requests that cannot be answered: each has a status, a code for programs, and a reason."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """The caller's mistake, or a service that is not available at the moment."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message

    def as_json(self) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"code": self.code, "message": self.message}}


def invalid(message: str, *, code: str = "invalid_request") -> RequestError:
    """A request that is well-formed, but cannot be meant."""
    return RequestError(422, code, message)


def too_large(message: str) -> RequestError:
    """A request, or one of its images, beyond a limit."""
    return RequestError(413, "too_large", message)
