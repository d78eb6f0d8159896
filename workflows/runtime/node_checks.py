"""Checks of the nodes of a cluster before work is sent to them: one Ray task per node.

Only the standard library is imported at first, so that a node can report which packages it lacks.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflows.runtime.available import usable_memory_bytes

NEEDED = (
    "aiohttp",
    "boto3",
    "click",
    "h5py",
    "huggingface_hub",
    "jaxtyping",
    "matplotlib",
    "mlflow",
    "numba",
    "numpy",
    "nvidia-ml-py",
    "open_clip_torch",
    "opencv-python-headless",
    "optuna",
    "pandas",
    "pillow",
    "psutil",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "ray",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "torch",
    "torchvision",
    "transformers",
)
"""The dependencies in `pyproject.toml`."""
PLUG_INS = ("pillow-heif", "pillow-jxl-plugin")
"""Optional packages with which Pillow opens further formats; see `muva.data.plug_ins`."""

_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_SMI_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its driver reports it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """The resources and versions of a node, and the checks that failed there."""

    host: str
    python: str
    packages: Mapping[str, str | None]
    """Name -> version, None if it is not installed."""
    plug_ins: Mapping[str, str | None] = field(default_factory=dict)
    """The same for `PLUG_INS`."""
    memory_bytes: int
    """Memory that the node's processes may use."""
    temporary_folder: str
    free_bytes: int
    """Free space on its disk."""
    gpus: Sequence[Gpu]
    torch_finds_gpus: int | None
    """None if none can be found."""
    store_problem: str
    """Empty if the node could write a key, read it and that of another node, and delete it."""
    attention: str = ""
    """Which kernels it computes attention with; empty if its code cannot be imported."""
    missing_files: Sequence[str]
    """Those of the expected files that it cannot see."""


def node_report(store: str | None, probe: str, files: Sequence[str]) -> NodeReport:
    """Check the node of this process.

    Args:
        store: where to write; None skips this check.
        probe: a key in the store that another node has written.
        files: paths that the node should see.
    """
    gpus = _gpus()
    folder = tempfile.gettempdir()
    return NodeReport(
        host=socket.gethostname(),
        python=platform.python_version(),
        packages=versions(),
        plug_ins={name: _version(name) for name in PLUG_INS},
        memory_bytes=usable_memory_bytes(),
        temporary_folder=folder,
        free_bytes=shutil.disk_usage(folder).free,
        gpus=gpus,
        torch_finds_gpus=_torch_gpus() if gpus else None,
        store_problem=_store_problem(store, probe) if store else "",
        attention=_attention(),
        missing_files=[file for file in files if not Path(file).exists()],
    )


def versions() -> dict[str, str | None]:
    """The installed versions of the packages that are needed."""
    return {name: _version(name) for name in NEEDED}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _store_problem(uri: str, probe: str) -> str:
    try:
        from muva.data.store import open_store
        from muva.errors import MuvaError
    except ImportError as error:
        return f"its code cannot be imported: {error}"
    key = f"{probe}-{os.getpid()}-{socket.gethostname()}"
    try:
        store = open_store(uri)
        content = store.read(probe)
        store.write(key, content)
        returned = store.read(key)
        store.delete(key)
    except MuvaError as error:
        return str(error)
    return (
        ""
        if returned == content
        else f"{key}: the content that was read differs from what was written"
    )


def _attention() -> str:
    try:
        from muva.model.attention_kernels import measurements_summary
    except ImportError:
        return ""
    return measurements_summary()


def _gpus() -> list[Gpu]:
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, check=True, timeout=_SMI_S)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in done.stdout.strip().splitlines()]
    return [
        Gpu(name=name, memory_bytes=int(mebibytes) * 2**20)
        for name, _, mebibytes in rows
        if mebibytes.strip().isdigit()
    ]


def _torch_gpus() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


NODE_S = 120.0
"""How long a node may take to respond: its first process has many packages to import."""


def node_reports(
    nodes: Sequence[dict[str, Any]], *, store: str | None, probe: str, files: Sequence[str]
) -> tuple[dict[str, NodeReport], dict[str, str]]:
    """The reports of the nodes by name, and for each of the others the reason why it has none.

    `nodes`: from `workflows.runtime.cluster.alive_nodes`. Needs a Ray cluster.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(node_report)
    references: dict[str, ray.ObjectRef] = {}
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"
        references[name] = task.options(scheduling_strategy=on_node).remote(store, probe, files)
    reports, silent = {}, {}
    for name, reference in references.items():
        try:
            reports[name] = ray.get(reference, timeout=NODE_S)
        except GetTimeoutError:
            silent[name] = f"did not respond within {NODE_S:.0f} s"
        except RayError as error:
            silent[name] = f"cannot run a task of muva's: {str(error).strip().splitlines()[-1]}"
    return reports, silent
