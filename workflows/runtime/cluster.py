"""The Ray cluster that the verbs run on: an existing one, or one started here for the command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workflows.runtime.authentication import ensure_token
from workflows.runtime.autoscaling import WAIT_VARIABLE, resources, wait_for
from workflows.runtime.local import OBJECT_STORE_BYTES
from workflows.runtime.on_demand import keep
from workflows.runtime.quirks import (
    LOCAL_INIT,
    quiet_about_tokens,
    stdout_kept_for_results,
)


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Connect to Ray during the block, or during the `cluster_on_demand` around it.

    Uses the cluster that `RAY_ADDRESS` names (Ray sets it inside a submitted job), or the one that
    this process is connected to already; otherwise starts one on this machine, protected by Ray's
    own token, and stops it at the end.
    """
    if ray.is_initialized() or keep(_connected()):
        yield
        return
    with _connected():
        yield


@contextmanager
def _connected() -> Iterator[None]:
    with stdout_kept_for_results(), _initialised():
        yield


@contextmanager
def _initialised() -> Iterator[None]:
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        if wanted := os.environ.get(WAIT_VARIABLE):
            wait_for(resources(wanted))
    else:
        ensure_token()
        quiet_about_tokens()
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **LOCAL_INIT,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()


def on_the_drivers_node() -> Any:
    """Scheduling strategy that places an actor on the driver's node, as other nodes may be lost."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster that are alive, as `ray.nodes` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def cpus() -> int:
    """CPU cores of the whole cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def cpus_of_one_node() -> int:
    """CPU cores of the largest node, which is the most that a process can get."""
    return max(1, *(int(node["Resources"].get("CPU", 0)) for node in alive_nodes()))


def gpus() -> int:
    """GPUs of the whole cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def cores_per_gpu() -> int:
    """CPU cores per GPU on the node with the lowest ratio; 1 without GPUs."""
    nodes = [node["Resources"] for node in alive_nodes()]
    shares = [int(has.get("CPU", 0) // has["GPU"]) for has in nodes if has.get("GPU", 0) >= 1]
    return max(1, min(shares, default=1))
