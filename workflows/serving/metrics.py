"""What the service counts, in Ray's metrics: they are summed over replicas by whoever reads them.

`scraped` returns them for all nodes in Prometheus's format, as each node's agent exports them.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterable
from typing import Protocol

PREFIXES = ("ray_muva_serve_", "ray_serve_")
SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
BATCHES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
_TIMEOUT_S = 5.0


class Meter(Protocol):
    """Where requests are counted."""

    def answered(self, *, endpoint: str, status: int, seconds: float) -> None:
        """Count a response."""

    def rejected(self, *, reason: str) -> None:
        """Count a request that was refused, by the code of its error."""


class RayMeter:
    """Counts in Ray's metrics, from which each replica's node exports them."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        self._requests = Counter(
            "muva_serve_requests", "Responses.", tag_keys=("endpoint", "status")
        )
        self._seconds = Histogram(
            "muva_serve_request_seconds",
            "Time from a request to its response.",
            boundaries=SECONDS,
            tag_keys=("endpoint",),
        )
        self._rejected = Counter("muva_serve_rejected", "Refused requests.", tag_keys=("reason",))

    def answered(self, *, endpoint: str, status: int, seconds: float) -> None:
        """Count a response."""
        self._requests.inc(tags={"endpoint": endpoint, "status": str(status)})
        self._seconds.observe(seconds, tags={"endpoint": endpoint})

    def rejected(self, *, reason: str) -> None:
        """Count a request that was refused."""
        self._rejected.inc(tags={"reason": reason})


async def scraped() -> str:
    """The service's metrics on all nodes of the cluster, as text for Prometheus.

    They are up to ten seconds old: so often do Ray's processes report to their nodes. Ray 2.60.
    """
    import ray

    addresses = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node["MetricsExportPort"]
    ]
    texts = await asyncio.gather(*(asyncio.to_thread(_fetched, one) for one in addresses))
    return ours(texts)


def _fetched(address: str) -> str:
    """The metrics of a node; none where its agent does not answer, as while a node starts."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(address, timeout=_TIMEOUT_S) as response:
            return response.read().decode()
    except OSError:
        return ""


def ours(texts: Iterable[str]) -> str:
    """The lines of the service's metrics in several nodes' texts, each description once."""
    metrics: dict[str, list[str]] = {}
    for text in texts:
        for line in text.splitlines():
            words = line.split(" ", 3)
            described = len(words) > 2 and words[0] == "#"
            name = words[2] if described else words[0].partition("{")[0]
            if not name.startswith(PREFIXES):
                continue
            lines = metrics.setdefault(_family(name), [])
            if not (described and line in lines):
                lines.append(line)
    return "".join(f"{line}\n" for lines in metrics.values() for line in sorted(lines, key=_first))


def _family(name: str) -> str:
    for suffix in ("_bucket", "_sum", "_count"):
        name = name.removesuffix(suffix)
    return name


def _first(line: str) -> int:
    return 0 if line.startswith("# HELP") else 1 if line.startswith("#") else 2
