"""What to say when Ray itself has lost the processes that the work needs."""

from __future__ import annotations

import sys
from typing import Any

from muva.errors import MuvaError
from tracking.redaction import first_line


def lost_process(error: BaseException) -> MuvaError | None:
    """An error of Ray's about a lost process or node as a MuvaError; None for any other error.

    Ray is not imported here: without it, there is no such error.
    """
    exceptions: Any = sys.modules.get("ray.exceptions")
    if exceptions is None:
        return None
    cause = getattr(error, "cause", error) if isinstance(error, exceptions.RayTaskError) else error
    if not isinstance(cause, exceptions.RayError):
        return None
    reason = first_line(cause).rstrip(".")
    return MuvaError(
        f"Ray lost a process that the work needs: {reason} ({type(cause).__name__}). Expected its "
        "processes to keep running: the system may have ended one for lack of memory, which its "
        "log says (`dmesg`). Finished work is kept; run the same command again to resume."
    )
