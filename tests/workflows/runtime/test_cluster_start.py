"""Where Ray starts, and what happens where it cannot: long folders, clusters that are gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from muva.errors import MuvaError, SettingsError
from workflows.jobs.client import jobs_client
from workflows.jobs.cluster_settings import ClusterSettings
from workflows.runtime import cluster_address
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.cluster_address import check_responds
from workflows.runtime.local import (
    default_ray_folder,
    delete_ray_folder,
    new_ray_folder,
    usable_port,
)

START = """
import json, os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from workflows.runtime.cluster import cpus, ray_cluster
from workflows.runtime.tasks import run_tasks
if __name__ == "__main__":
    with ray_cluster():
        found = [cpus(), run_tasks(abs, [(-1,), (-2,)])]
    print(json.dumps(found))
"""


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a_folder_with_a_very_long_name" / "of_a_batch_system" / "tmp.t0016"
    folder.mkdir(parents=True)
    assert len(str(folder)) > 70
    return folder


def test_ray_starts_where_tmpdir_is_long_and_modules_are_in_the_way_and_counts_own_cores(
    long_folder: Path, tmp_path: Path
) -> None:
    program = tmp_path / "start.py"
    program.write_text(START)
    modules = tmp_path / "modules"
    for name in ("muva.py", "random.py", "workflows/__init__.py"):
        (modules / name).parent.mkdir(parents=True, exist_ok=True)
        (modules / name).write_text("raise SystemExit('imported from the current folder')")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"}
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=modules,
        env={**environment, "TMPDIR": str(long_folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, [1, 2]]


def test_a_short_private_folder_is_found(
    long_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long_folder))
    assert not default_ray_folder()
    folder = Path(new_ray_folder())
    try:
        assert folder.parent.parent == Path("/tmp")
        folder.mkdir(mode=0o777)  # as Ray does
        assert folder.parent.stat().st_mode & 0o077 == 0
    finally:
        delete_ray_folder(f"{folder}")
    assert not folder.parent.exists()
    delete_ray_folder(f"{long_folder}")
    assert long_folder.exists(), "a folder of somebody else"
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert default_ray_folder()


def test_a_long_folder_that_was_chosen_for_ray_is_named(
    long_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(long_folder))
    with pytest.raises(MuvaError, match=r"RAY_TMPDIR=.*whose path has at most"):
        new_ray_folder()


def test_a_folder_of_another_account_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert default_ray_folder() == "/tmp/ray"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert default_ray_folder() is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", r"Ray did not start on this machine: no space\. Expected .*/ray,.*`ulimit -n`"),
        ("h:1", r"The Ray cluster at h:1 cannot be joined: no space\..*RAY_ADDRESS"),
    ],
)
def test_what_ray_itself_fails_at_comes_with_a_remedy(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("no space.\n")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("workflows.runtime.cluster.check_responds", lambda address: None)
    with pytest.raises(MuvaError, match=message), ray_cluster():
        pass


def test_a_start_that_timed_out_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[object] = []

    def init(**_: object) -> None:
        attempts.append(None)
        if len(attempts) == 1:
            raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with ray_cluster():
        assert len(attempts) == 2


@contextmanager
def listener(answer: bytes) -> Iterator[str]:
    """A server that answers every connection with these bytes; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(64)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def test_a_cluster_that_is_gone_is_one_line_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_address, "WITHIN_S", 1.0)
    address = f"127.0.0.1:{usable_port(0)}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    begun_at = time.monotonic()
    with pytest.raises(MuvaError, match=f"RAY_ADDRESS={address}: no Ray cluster responds"):
        cluster_address.check_responds(address)
    with pytest.raises(MuvaError, match="no Ray cluster responds"):
        jobs_client(ClusterSettings())
    assert time.monotonic() - begun_at < 30


def test_a_command_does_not_wait_for_a_cluster_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_address, "WITHIN_S", 0.0)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{usable_port(0)}")
    with pytest.raises(MuvaError, match="no Ray cluster responds"), ray_cluster():
        pass


def test_another_program_at_the_port_is_no_cluster() -> None:
    with (
        listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address,
        pytest.raises(MuvaError, match="another program listens"),
    ):
        check_responds(address)
    with listener(SETTINGS_FRAME) as address:
        check_responds(address)


@pytest.mark.parametrize("address", ["http://head:8265", "head", "head:port", ":6379"])
def test_an_address_of_another_form_says_which_is_expected(address: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        check_responds(address)


def test_a_head_that_runs_passes(ray_session: None) -> None:
    import ray

    check_responds(ray.get_runtime_context().gcs_address)
