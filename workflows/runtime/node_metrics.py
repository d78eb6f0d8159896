"""System metrics of every node while a pipeline runs: CPU, memory, disk and GPUs.

The driver measures its own machine, and one actor on each other node, which requests no CPU,
measures that node. The driver logs them regularly, under MLflow's names for system metrics.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pynvml
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from muva.errors import MuvaError
from workflows.runtime.cluster import alive_nodes

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

EVERY_S = 15.0
ANSWER_WITHIN_S = 10.0


@contextlib.contextmanager
def node_metrics_recorded(run: Run | None, *, every_s: float = EVERY_S) -> Iterator[None]:
    """Log the metrics of every node to a run during the block. Needs a Ray cluster."""
    if run is None:
        yield
        return
    over = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(run, over, every_s), name="muva-node-metrics", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class NodeMetrics:
    """The metrics of the machine that it runs on."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # CPU use is measured from this call on
        self._before = self._counters()

    def now(self) -> dict[str, float]:
        """Name -> value, in MLflow's own names; rates are since the last call."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.environ.get("TMPDIR", "/tmp"))
        figures = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / 1e6,
        }
        before, self._before = self._before, self._counters()
        seconds = max(self._before["at"] - before["at"], 1e-3)
        for name in ("network_receive_megabytes", "network_transmit_megabytes"):
            figures[f"{name}_per_second"] = (self._before[name] - before[name]) / seconds
        return figures | _gpu_figures()

    def _counters(self) -> dict[str, float]:
        network = psutil.net_io_counters()
        return {
            "at": time.monotonic(),
            "network_receive_megabytes": network.bytes_recv / 1e6,
            "network_transmit_megabytes": network.bytes_sent / 1e6,
        }


def _gpu_figures() -> dict[str, float]:
    """NVIDIA's GPUs, from the driver, as PyTorch sees only those that this process may use."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # there is no driver
        return {}
    figures = {}
    for number in range(pynvml.nvmlDeviceGetCount()):
        for name, figure in _GPU_FIGURES.items():
            with contextlib.suppress(pynvml.NVMLError):  # not every card reports all metrics
                device = pynvml.nvmlDeviceGetHandleByIndex(number)
                figures[f"gpu_{number}_{name}_percentage"] = figure(device)
    return figures


def _memory_used(device: Any) -> float:
    memory: Any = pynvml.nvmlDeviceGetMemoryInfo(device)
    return 100 * memory.used / memory.total


def _utilization(device: Any) -> float:
    return float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)


_GPU_FIGURES = {"memory_usage": _memory_used, "utilization": _utilization}


def _watch(run: Run, over: threading.Event, every_s: float) -> None:
    watchers: dict[str, Any] = {}
    here, own = ray.get_runtime_context().get_node_id(), NodeMetrics()
    began_at = time.monotonic()
    while not over.wait(every_s):
        step = int(time.monotonic() - began_at)
        try:
            run.log_system_metrics(_figures(watchers, here=here, own=own), step)
        except (RayError, MuvaError, OSError):  # the work is more important than its metrics
            watchers.clear()


def _figures(watchers: dict[str, Any], *, here: str, own: NodeMetrics) -> dict[str, float]:
    """The metrics of all nodes that are alive; with several, prefixed with Ray's node names."""
    nodes = alive_nodes()
    answers = {}
    for node in nodes:
        name = node["NodeID"]
        if name != here and name not in watchers:
            place: Any = NodeAffinitySchedulingStrategy(name, soft=False)
            kind = ray.remote(num_cpus=0, scheduling_strategy=place)(NodeMetrics)
            watchers[name] = kind.remote()
        answers[name] = None if name == here else watchers[name].now.remote()
    figures: dict[str, float] = {}
    for number, node in enumerate(nodes):
        answer = answers[node["NodeID"]]
        prefix = f"node-{number}-{node['NodeName']}/" if len(nodes) > 1 else ""
        try:
            found: Any = own.now() if answer is None else ray.get(answer, timeout=ANSWER_WITHIN_S)
        except RayError:
            del watchers[node["NodeID"]]
            continue
        figures |= {f"{prefix}{key}": value for key, value in found.items()}
    return figures
