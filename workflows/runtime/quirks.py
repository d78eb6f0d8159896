"""Workarounds for Ray, all of them, each with the version and the evidence that justify it.

Longer ones have files of their own: `available` (Ray counts a whole machine), `cluster_address`
(Ray waits for minutes for a head that is gone), `gloo` (the address of a node on Debian) and
`train_storage` (Ray Train does not read `~/.aws/config`).

Every new version of Ray is tested against this file, and what it has fixed is deleted. Nothing
else in the project reaches into `ray._private` or sets `_system_config`. Ray is imported inside the
functions, because it decides at its first import whether it uses tokens.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.errors import MuvaError
from muva.proxies import carries_in_clear

if TYPE_CHECKING:
    from ray.job_config import JobConfig
    from ray.job_submission import JobSubmissionClient
    from ray.util.placement_group import PlacementGroup

OUTSIDE_PLACEMENT_GROUPS = "DEFAULT"
"""Scheduling strategy of every task and of everything that a trial may start.

Ray Tune captures the child tasks of a trial in the trial's placement group, where they wait for
ever for CPUs that the group does not have. Ray 2.60; ray-project/ray issues 24445, 25239, 38706.
"""

_IDLE_SETTING, _IDLE_MS = "idle_worker_killing_time_threshold_ms", 60_000
"""Keeps idle worker processes for a minute.

Ray ends them after a second where there are more processes than CPUs, actors included, so that the
tasks of the next step wait for new processes and their imports: with this setting the tests of
validation take 196 s instead of 238 s. Ray 2.60; ray-project/ray issue 27863.
"""
LOCAL_INIT: dict[str, Any] = {"_system_config": {_IDLE_SETTING: _IDLE_MS}}
"""Arguments of `ray.init` for a cluster that it starts."""
HEAD_ENVIRONMENT = {f"RAY_{_IDLE_SETTING}": f"{_IDLE_MS}"}
"""The same setting for a head that `ray start` starts."""

RAY_SOCKET = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""The longest path that Ray adds to its temporary folder, for a socket.

Below a folder with a longer path than sockets allow, Ray ends with a traceback; it uses TMPDIR,
which is such a folder in many batch systems. Ray 2.60.
"""

HEAD_PORTS = (
    "--dashboard-agent-listen-port=0",
    "--min-worker-port=0",
    "--max-worker-port=0",
)
"""Options of `ray start` that let the system choose ports.

By default worker ports begin at 10002, and a head refuses to start when the free ports that it was
given for its servers lie among them. Ray 2.60, seen in the tests.
"""


def nodes_lost_after(failed_checks: int) -> dict[str, Any]:
    """Arguments of a head that counts a node as lost after so many failed health checks in a row.

    The checks are half a second apart. By default it takes half a minute to lose a node, of which
    drills that kill nodes would mostly consist; there is no public setting. Ray 2.60.
    """
    checks = {
        "health_check_period_ms": 500,
        "health_check_failure_threshold": failed_checks,
        "health_check_initial_delay_ms": 0,
    }
    return {"_system_config": checks}


def quiet_about_tokens() -> None:
    """Silences the warning that token authentication is on by default, which is what we want.

    Ray 2.60 logs it at every `ray.init` with a token (ray/_private/authentication).
    """
    name = "ray._private.authentication.authentication_token_setup"
    logging.getLogger(name).setLevel(logging.ERROR)


def quiet_about_requests() -> None:
    """Silences the log lines with which the Jobs client reports every request and upload.

    Ray 2.60 logs them at level INFO to standard error.
    """
    for name in (
        "ray.dashboard.modules.job.sdk",
        "ray.dashboard.modules.dashboard_sdk",
        "ray._private.runtime_env.packaging",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def stdout_kept_for_results() -> Iterator[None]:
    """Redirect standard output to standard error during the block.

    Ray 2.60 prints warnings of its processes to standard output, which is where `--json` goes.
    """
    results, sys.stdout = sys.stdout, sys.stderr
    redirected = sys.stdout
    try:
        yield
    finally:
        if sys.stdout is redirected:
            sys.stdout = results


class _OwnCode(list):
    """The folders that a job's workers search first for modules: that of this code alone.

    Ray adds the driver's current folder, in which a `random.py` or a folder `muva` of the user's
    would be imported instead of the real ones. Ray 2.60 (ray/_private/worker.py, `connect`).
    """

    def extend(self, folders: Iterable[str]) -> None:
        super().extend([str(Path(__file__).parents[2])] if folders else [])


def job_config() -> JobConfig:
    """The `job_config` of `ray.init` for workers that import nothing from the current folder."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _OwnCode()
    return config


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block, in which `ray.init` is called.

    It replaces the handler by one that ends the process; on an existing cluster, it was aborted
    with status 134 and a trace of C++, before any run in MLflow could be closed. Ray 2.60.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as ended:  # by Ray's handler
        raise KeyboardInterrupt from ended
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, Callable[[], Any]]:
    """Run `work` in a thread; the returned function waits for it and gives or raises the outcome.

    Ray Train's `fit` replaces the main thread's handler of Ctrl-C by one that aborts the training
    and exits with status 0, and does not restore ours; it leaves it alone in other threads.
    Ray 2.60; ray-project/ray pull requests 53600, 54188.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    def result() -> Any:
        if failure:
            raise failure[0]
        return outcome[0]

    thread = threading.Thread(target=run, name="muva-work", daemon=True)
    thread.start()
    return thread, result


class LeakedPlacementGroups:
    """Removes placement groups once the actor that they were made for is dead.

    A trial that Ray Tune stops is killed together with Ray Train's controller, which would have
    removed its workers' placement group. Ray Train's own cleaner (ray-project/ray pull request
    58515) asks the dashboard's state API which actors live: it gives up where the dashboard does
    not run or where several clusters run on a machine, and all later trainings wait for ever.
    Ray 2.60.
    """

    def __init__(self, *, every_s: float = 1.0) -> None:
        self._groups: list[tuple[str, PlacementGroup]] = []
        self._lock = threading.Lock()
        self._every_s = every_s
        name = "muva-placement-groups"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def watch(self, actor_id: str, group: PlacementGroup) -> None:
        """Removes the group when the actor with this id (hex) is dead."""
        with self._lock:
            self._groups.append((actor_id, group))

    def _run(self) -> None:
        from ray.util.placement_group import remove_placement_group

        while True:
            time.sleep(self._every_s)
            with self._lock:
                watched, self._groups = self._groups, []
            alive = []
            for actor_id, group in watched:
                if actor_is_dead(actor_id):
                    remove_placement_group(group)  # does nothing if the group is gone already
                else:
                    alive.append((actor_id, group))
            with self._lock:
                self._groups += alive


def actor_is_dead(actor_id: str) -> bool:
    """Whether the actor with this id (hex) is dead, without the help of the dashboard.

    The public state API (`ray.util.state`) asks the dashboard, which local clusters run without.
    Ray 2.60.
    """
    from ray._private.state import actors

    return actors(actor_id)["State"] == "DEAD"


TUNE_ENVIRONMENT = {"RAY_AIR_NEW_OUTPUT": "0"}
"""Ray Tune's newer output prints tables at any verbosity. Ray 2.60."""

TRIAL_RESOURCES = {"memory": 1.0}
"""The resources that a trial itself holds.

It only waits for the tasks and workers that it starts. If it held a CPU, its workers could wait for
that CPU for ever (ray-project/ray issue 54305), and Ray Tune refuses a trial that holds nothing.
Ray 2.60.
"""

_EXIT_AFTER_S = 3.0


def exit_soon() -> None:
    """End the process of a stopped trial, a few seconds later, so that Ray Tune notices first.

    Ray would otherwise let the process wait for the training that it has started, whose workers end
    only with it: a trial that ASHA stopped would keep its CPUs until then. Ray 2.60.
    """
    timer = threading.Timer(_EXIT_AFTER_S, os._exit, [0])
    timer.daemon = True
    timer.start()


def hide_gpus() -> None:
    """Hide all GPUs from this process.

    Ray hides no GPU from a task or actor that requests none. Ray 2.60.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_AUTH_MODE = "RAY_AUTH_MODE"


@contextmanager
def client_environment(*, token: bool) -> Iterator[None]:
    """Set the environment in which a Jobs client can be created, and restore it afterwards.

    Ray's address variables take precedence over the address that is passed to the client. Ray
    decides whether it uses tokens when it is first imported or starts a cluster: if the
    variable stayed, a cluster that is started later could disagree with its process. Ray 2.60.
    """
    names = (*_ADDRESS_VARIABLES, _AUTH_MODE)
    before = {name: os.environ.get(name) for name in names}
    for name in _ADDRESS_VARIABLES:
        os.environ.pop(name, None)
    if token:
        os.environ.setdefault(_AUTH_MODE, "token")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def running_head() -> str:
    """The address HOST:PORT that Ray would find for `RAY_ADDRESS=auto`, dead or alive.

    `ray.init` itself does not end for minutes if that head is gone, and there is no public function
    that finds it. Ray 2.60.

    Raises:
        MuvaError: Ray knows no head on this machine.
    """
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address("auto") or ""
    except ConnectionError as error:
        raise MuvaError(
            "RAY_ADDRESS=auto: no Ray cluster was found on this machine. Start one with `ray start "
            "--head`, or unset RAY_ADDRESS to let each command start its own"
        ) from error


def client_with_timeouts(
    url: str, *, headers: dict[str, str], timeout_s: tuple[float, float]
) -> JobSubmissionClient:
    """A Jobs client with timeouts, in seconds: to connect, and to wait for a response.

    Ray's own passes no timeout to `requests`, so that it waits without limit for a head that is
    lost without refusing connections. Ray 2.60; ray-project/ray issue 43068 is about the same.

    It also sends the token, unencrypted if the address is, to any proxy that the environment names;
    this one uses a proxy only for https. Ray 2.60, seen with `http_proxy`.
    """
    from ray.job_submission import JobSubmissionClient

    settings: dict[str, Any] = {"timeout": timeout_s}
    if carries_in_clear(url):
        settings["proxies"] = {"http": None, "all": None}

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **arguments: Any) -> Any:
            return super()._do_request(method, endpoint, **{**settings, **arguments})

    return Client(url, headers=headers)
