"""Room that goes with a node: its loss is told at once, and another node is waited for so long.

Ray itself waits for ever, and says nothing to whoever follows a job.
"""

from __future__ import annotations

import time

from muva.errors import MuvaError
from workflows.progress import say
from workflows.runtime.autoscaling import wait_limit_s
from workflows.runtime.cluster import alive_nodes

LOOKED_EVERY_S = 5.0


class Room:
    """Whether a cluster has room for the processes of a piece of work, however busy it is."""

    def __init__(self, *, processes: int, cpus: int, gpus: int = 0) -> None:
        """`processes` at once, of so many cores and GPUs each."""
        self._wanted = processes
        self._cpus, self._gpus = cpus, gpus
        self._looked_at = time.monotonic()
        self._lacking_since: float | None = None

    def look(self) -> None:
        """Looks, if that is some seconds ago, and tells when room goes or comes back.

        Raises:
            MuvaError: it has been too little for as long as is waited.
        """
        now = time.monotonic()
        if now - self._looked_at < LOOKED_EVERY_S:
            return
        self._looked_at = now
        there = self._there()
        if there >= self._wanted:
            if self._lacking_since is not None:
                say("There is room again: the work goes on from what was saved.")
            self._lacking_since = None
            return
        each = f"{self._cpus} cores" + (f" and {self._gpus} GPUs" if self._gpus else "")
        found = f"the cluster has room for {there} of {self._wanted} processes of {each}"
        if self._lacking_since is None:
            self._lacking_since = now
            say(
                f"A node is gone: {found}. Waiting {wait_limit_s():.0f} s at most for another one …"
            )
        elif now - self._lacking_since > wait_limit_s():
            remedy = f"--workers {there}" if there else "fewer --cpus-per-worker"
            raise MuvaError(
                f"A node is gone, and no other one came within {wait_limit_s():.0f} s: {found}. "
                "Start another and give the same command again, or give it again with "
                f"{remedy}: either goes on from the last saved epoch."
            )

    def _there(self) -> int:
        """Processes that would fit, were nothing else on the cluster."""
        count = 0
        for node in alive_nodes():
            has = node["Resources"]
            fit = int(has.get("CPU", 0) // self._cpus)
            count += min(fit, int(has.get("GPU", 0) // self._gpus)) if self._gpus else fit
        return count
