"""What this process may use of its machine: CPU cores and memory.

Ray counts all cores and the whole memory of a machine. A process may have fewer: by its CPU
affinity (taskset), by the limits of its control groups (containers, systemd, Slurm), and by what
Slurm has allocated to its job where the site enforces nothing. Only the standard library is
imported, because nodes are checked before anything else is known about them.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

_MEBIBYTE = 2**20
_SMALLEST_LIMIT_BYTES = 64 * _MEBIBYTE
"""A smaller limit of memory is none that this program could run with: it is a misread value."""


def usable_cpus(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> int:
    """The number of CPU cores that this process may use, at least 1.

    Args:
        root: the root of the file system in which the control groups are looked up.
        environment: where Slurm's variables are looked up; None: that of the process.
    """
    variables = os.environ if environment is None else environment
    limits = [_affinity(), *_cpu_quotas(root), *_slurm_cpus(variables)]
    return max(1, int(min(limits)))


def usable_memory_bytes(
    root: Path = Path("/"), environment: Mapping[str, str] | None = None
) -> int:
    """The memory that this process may use, at most that of the machine; arguments as above."""
    variables = os.environ if environment is None else environment
    limits = [*_memory_limits(root), *_slurm_memory(variables)]
    return min([machine_memory_bytes(), *(one for one in limits if one >= _SMALLEST_LIMIT_BYTES)])


def usable_processes(root: Path = Path("/")) -> int | None:
    """How many processes and threads this user, or this container, may have; None: any number."""
    limits = [
        int(limit)
        for controller in ("", "pids")
        for folder in _groups(root, controller)
        if (limit := _read(folder / "pids.max")).isdigit()
    ]
    own, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if own != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is exempt
        limits.append(own)
    return min(limits, default=None)


def machine_memory_bytes() -> int:
    """The memory of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_quotas(root: Path) -> Iterator[float]:
    """The quotas of the process's control groups, in cores."""
    for folder in _groups(root, ""):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        yield from _ratio(quota, period)
    for folder in _groups(root, "cpu"):
        yield from _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> Iterator[float]:
    """The quota of a control group as a number of cores; nothing if there is none (max, or -1)."""
    if quota.isdigit() and period.isdigit() and int(period):
        yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    """The limits of the process's control groups, in bytes."""
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _groups(root, controller):
            if (limit := _read(folder / name)).isdigit():
                yield int(limit)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's control group and of the groups around it.

    The limits of all of them apply. `controller`: that of a hierarchy of version 1; empty for
    version 2. In a container, the path may be that on the host: folders that do not exist have no
    limits to be read, and the root of the mount is the container's own group.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controller
        group = mount / path.strip("/")
        yield group
        yield from (folder for folder in group.parents if folder.is_relative_to(mount))


def _slurm_cpus(variables: Mapping[str, str]) -> Iterator[int]:
    """The cores that Slurm has allocated on this node to the job, and to each of its tasks."""
    if not _within_slurm(variables):
        return
    names = ["SLURM_CPUS_ON_NODE"]
    if "SLURM_STEP_ID" in variables:  # a task of srun, not the batch script
        names.append("SLURM_CPUS_PER_TASK")
    for name in names:
        yield from _count(variables, name)


def _slurm_memory(variables: Mapping[str, str]) -> Iterator[int]:
    """The memory that Slurm has allocated to the job on this node; 0 stands for all of it."""
    if not _within_slurm(variables):
        return
    for name, factor in (
        ("SLURM_MEM_PER_NODE", None),
        ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
        ("SLURM_MEM_PER_GPU", "SLURM_GPUS_ON_NODE"),
    ):
        for mebibytes in _count(variables, name):
            for units in _count(variables, factor) if factor else (1,):
                yield mebibytes * units * _MEBIBYTE


def _within_slurm(variables: Mapping[str, str]) -> bool:
    """Whether the process runs on a node of its job, not in a shell of `salloc` on another one."""
    return bool(variables.get("SLURMD_NODENAME"))


def _count(variables: Mapping[str, str], name: str) -> Iterator[int]:
    value = variables.get(name, "")
    if value.isdigit() and int(value):
        yield int(value)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
