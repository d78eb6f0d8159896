"""The Ray cluster that the verbs run on: an existing one, or one started here for the command."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.progress import say
from workflows.runtime.authentication import ensure_token
from workflows.runtime.autoscaling import WAIT_VARIABLE, resources, wait_for
from workflows.runtime.cluster_address import check_responds
from workflows.runtime.local import (
    OBJECT_STORE_BYTES,
    check_processes,
    default_ray_folder,
    delete_ray_folder,
    new_ray_folder,
    node_resources,
)
from workflows.runtime.on_demand import keep
from workflows.runtime.quirks import (
    LOCAL_INIT,
    job_config,
    quiet_about_tokens,
    running_head,
    sigterm_kept,
    stdout_kept_for_results,
)

_OPEN_FILES = 1024
_NEW = "local"
"""Ray's own word for a cluster that this process starts."""


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Connect to Ray during the block, or during the `cluster_on_demand` around it.

    Uses the cluster that `RAY_ADDRESS` names (Ray sets it inside a submitted job), or the one that
    this process is connected to already; otherwise starts one on this machine, protected by Ray's
    own token, and stops it at the end. That one has the cores and the memory that this process may
    use: see `workflows.runtime.available`.

    Raises:
        MuvaError: no cluster responds at `RAY_ADDRESS`; Ray itself would wait for minutes.
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
    address = os.environ.get("RAY_ADDRESS") or _NEW
    if address != _NEW:
        check_responds(running_head() if address == "auto" else address)
    folder = None
    try:
        if address != _NEW:
            _init()
            if wanted := os.environ.get(WAIT_VARIABLE):
                wait_for(resources(wanted))
        else:
            check_processes()
            ensure_token()
            quiet_about_tokens()
            usable = node_resources()
            folder = None if default_ray_folder() else new_ray_folder()
            _init(
                address=_NEW,
                include_dashboard=False,
                num_cpus=usable["num_cpus"],
                object_store_memory=OBJECT_STORE_BYTES,
                _memory=usable.get("memory"),
                _temp_dir=folder,
                **LOCAL_INIT,
            )
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            delete_ray_folder(folder)


def _init(**options: Any) -> None:
    """Raises MuvaError: those of Ray are of many kinds, and name no remedy."""
    try:
        _init_twice(**options)
    except Exception as error:
        reason = redact(str(error).strip().rstrip(".") or type(error).__name__)
        if options.get("address") != _NEW:
            raise MuvaError(
                f"The Ray cluster at {redact(os.environ['RAY_ADDRESS'])} cannot be joined: "
                f"{reason}. Expected the same versions of Ray and Python there as here, and its "
                "token. Unset RAY_ADDRESS to let the command start Ray itself."
            ) from error
        folder = options["_temp_dir"] or default_ray_folder()
        raise MuvaError(
            f"Ray did not start on this machine: {reason}. Expected space in {folder}, where its "
            f"logs are, and in /dev/shm, at least {_OPEN_FILES} open files, of which this process "
            f"may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} (`ulimit -n`), and a "
            "machine that is not overloaded."
        ) from error


def _init_twice(**options: Any) -> None:
    """`ray.init`, and again if Ray's processes did not start within Ray's half a minute."""
    for last in (False, True):
        try:
            with sigterm_kept():
                ray.init(
                    **options,
                    job_config=job_config(),
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
            return
        except Exception as error:
            starts = options.get("address") == _NEW
            if last or not starts or "timed out" not in str(error).lower():
                raise
            say("Ray did not start in time; this machine may be busy. Trying once more …")
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
