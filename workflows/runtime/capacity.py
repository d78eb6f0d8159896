"""Lost nodes: reported at once, with a limit on how long a replacement is awaited.

Ray itself would wait for ever, and report nothing to those who follow a job.
"""

from __future__ import annotations

import time

from muva.errors import MuvaError
from workflows.progress import say
from workflows.runtime.autoscaling import wait_limit_s
from workflows.runtime.cluster import alive_nodes

CHECK_EVERY_S = 5.0


class CapacityMonitor:
    """Monitors whether the cluster is large enough for a piece of work, however busy it is."""

    def __init__(self, *, processes: int, cpus: int, gpus: int = 0) -> None:
        """`processes` run at the same time, each with this many CPU cores and GPUs."""
        self._wanted = processes
        self._cpus, self._gpus = cpus, gpus
        self._checked_at = time.monotonic()
        self._insufficient_since: float | None = None

    def check(self) -> None:
        """Count the nodes, at most every few seconds, and report when capacity is lost or restored.

        Raises:
            MuvaError: the capacity has been insufficient for `wait_limit_s`.
        """
        now = time.monotonic()
        if now - self._checked_at < CHECK_EVERY_S:
            return
        self._checked_at = now
        available = self._available()
        if available >= self._wanted:
            if self._insufficient_since is not None:
                say("The cluster is large enough again: resuming from the last checkpoint.")
            self._insufficient_since = None
            return
        each = f"{self._cpus} cores" + (f" and {self._gpus} GPUs" if self._gpus else "")
        found = f"the cluster has room for {available} of {self._wanted} processes of {each}"
        if self._insufficient_since is None:
            self._insufficient_since = now
            say(f"A node was lost: {found}. Waiting up to {wait_limit_s():.0f} s for another one …")
        elif now - self._insufficient_since > wait_limit_s():
            remedy = f"--workers {available}" if available else "fewer --cpus-per-worker"
            raise MuvaError(
                f"A node was lost and not replaced within {wait_limit_s():.0f} s: {found}. Start "
                f"another node and repeat the command, or repeat it with {remedy}: either resumes "
                "from the last saved epoch."
            )

    def _available(self) -> int:
        """The number of processes that would fit if nothing else ran on the cluster."""
        count = 0
        for node in alive_nodes():
            has = node["Resources"]
            fit = int(has.get("CPU", 0) // self._cpus)
            count += min(fit, int(has.get("GPU", 0) // self._gpus)) if self._gpus else fit
        return count
