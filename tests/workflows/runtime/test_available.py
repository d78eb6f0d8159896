"""Cores and memory that a process may use: affinity, control groups, Slurm."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path

import pytest

from muva.errors import MuvaError
from workflows.runtime.available import (
    machine_memory_bytes,
    usable_cpus,
    usable_memory_bytes,
    usable_processes,
)
from workflows.runtime.local import OBJECT_STORE_BYTES, check_processes, node_resources

MEBIBYTE = 2**20


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if "SIZE" in name else 2**23)  # 32 GiB


V2 = {"proc/self/cgroup": "0::/system.slice/job_7/step_0"}
V1 = {"proc/self/cgroup": "4:memory:/slurm/job_7\n3:cpu,cpuacct:/slurm/job_7\n0::/"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({**V2, "sys/fs/cgroup/system.slice/job_7/step_0/cpu.max": "max 100000"}, 16),
        ({**V2, "sys/fs/cgroup/system.slice/job_7/step_0/cpu.max": "250000 100000"}, 2),
        ({**V2, "sys/fs/cgroup/system.slice/job_7/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/docker/abc", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/slurm/job_7/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/slurm/job_7/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3,
        ),
    ],
)
def test_cores_are_limited_by_all_control_groups(
    files: Mapping[str, str], cores: int, tmp_path: Path
) -> None:
    assert usable_cpus(tree(tmp_path, files), {}) == cores


@pytest.mark.parametrize(
    ("files", "mebibytes"),
    [
        ({}, 32 * 1024),
        ({**V2, "sys/fs/cgroup/system.slice/job_7/step_0/memory.max": "max"}, 32 * 1024),
        ({**V2, "sys/fs/cgroup/system.slice/job_7/memory.max": f"{6 * 2**30}"}, 6 * 1024),
        ({**V1, "sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes": f"{2**30}"}, 1024),
        ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}"}, 32 * 1024),
        ({**V2, "sys/fs/cgroup/memory.max": "0"}, 32 * 1024),
    ],
)
def test_memory_is_limited_by_all_control_groups(
    files: Mapping[str, str], mebibytes: int, tmp_path: Path
) -> None:
    assert usable_memory_bytes(tree(tmp_path, files), {}) == mebibytes * MEBIBYTE


@pytest.mark.parametrize(
    ("variables", "cores", "mebibytes"),
    [
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_NODE": "6000"}, 4, 6000),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_CPU": "1500"}, 4, 6000),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2", "SLURM_STEP_ID": "0"}, 2, 32768),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2"}, 8, 32768),
        ({"SLURM_MEM_PER_NODE": "0"}, 16, 32768),
        ({"SLURM_MEM_PER_GPU": "4000", "SLURM_GPUS_ON_NODE": "2"}, 16, 8000),
    ],
)
def test_slurms_allocation_counts_on_its_nodes(
    variables: dict[str, str], cores: int, mebibytes: int, tmp_path: Path
) -> None:
    on_node = {**variables, "SLURMD_NODENAME": "node1"}
    assert usable_cpus(tmp_path, on_node) == cores
    assert usable_memory_bytes(tmp_path, on_node) == mebibytes * MEBIBYTE
    assert usable_cpus(tmp_path, variables) == 16, "a shell of salloc on the login node"


@pytest.mark.parametrize(
    ("files", "own", "usable"),
    [
        (V2, resource.RLIM_INFINITY, None),
        ({**V2, "sys/fs/cgroup/system.slice/job_7/pids.max": "max"}, 4096, 4096),
        ({**V2, "sys/fs/cgroup/system.slice/pids.max": "100"}, 4096, 100),
        ({"proc/self/cgroup": "5:pids:/a", "sys/fs/cgroup/pids/a/pids.max": "40"}, 4096, 40),
    ],
)
def test_processes_are_limited_by_the_account_and_by_control_groups(
    files: Mapping[str, str],
    own: int,
    usable: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (own, own))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert usable_processes(tree(tmp_path, files)) == usable


def test_ray_is_not_started_where_it_would_be_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.runtime.local.usable_processes", lambda: 40)
    with pytest.raises(MuvaError, match=r"may have 40 processes.*`ulimit -u`"):
        check_processes()


def test_affinity_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    assert usable_cpus(tmp_path, {}) == 1


def test_ray_gets_no_more_than_a_batch_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURMD_NODENAME": "node1",
        "SLURM_CPUS_ON_NODE": "1",
        "SLURM_MEM_PER_NODE": "6144",
    }.items():
        monkeypatch.setenv(name, value)
    resources = node_resources()
    assert resources["num_cpus"] == 1
    assert 4 * 2**30 < resources["memory"] < 6 * 2**30 - OBJECT_STORE_BYTES
    assert os.sched_getaffinity(0) == set(range(16))
    assert machine_memory_bytes() == 32 * 2**30
