"""clusters/slurm/muva.sbatch: its options by name, its flow with stand-ins for Slurm and for Ray.

tests/clusters/test_slurm.py runs it on real Slurm.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clusters.fields import CLUSTERS

SCRIPT = CLUSTERS / "slurm" / "muva.sbatch"
SBATCH_OPTIONS = {
    *("account", "array", "begin", "chdir", "constraint", "cpus-per-gpu", "cpus-per-task"),
    *("deadline", "dependency", "distribution", "error", "exclude", "exclusive", "export"),
    *("gpus", "gpus-per-node", "gpus-per-task", "gres", "hint", "hold", "input", "job-name"),
    *("licenses", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nice"),
    *("no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output"),
    *("parsable", "partition", "priority", "qos", "requeue", "reservation", "signal", "switches"),
    *("threads-per-core", "time", "time-min", "tmp", "wait", "wckey", "wrap"),
}
"""Of sbatch in Slurm 25.05, those that jobs use."""

BASH = "#!/bin/bash\n"
PYTHON = f"""#!{sys.executable}
import os, signal, socket, sys, time
def record(text):
    with open(os.environ["CALLS"], "a") as file:
        file.write(text + "\\n")
"""
STANDINS = {
    "scontrol": f"""{BASH}
echo "scontrol $*" >> "$CALLS"
case "$1 $2" in
"show hostnames") printf 'node-a\\nnode-b\\n' ;;
"show node") echo "NodeName=$3 Arch=x86_64 NodeAddr=127.0.0.2 NodeHostName=$3" ;;
"show job") echo "JobId=$3 JobState=$STATE Reason=None" ;;
esac
""",
    "srun": f"""{BASH}
while [ "$1" != bash ]; do shift; done
SLURM_NODEID=0 exec "$@"
""",
    "python": f"""{BASH}
[ "$1" != -m ] || exec echo "--num-cpus=2 --memory=1000000000"
exec {sys.executable} "$@"
""",
    "ray": f"""{PYTHON}
record(" ".join(["ray", *sys.argv[1:]]))
if os.environ.get("NO_TOKEN"):
    sys.exit("Token authentication is enabled but no authentication token was found")
options = dict(word.lstrip("-").split("=", 1) for word in sys.argv if "=" in word)
server = socket.create_server((options["node-ip-address"], int(options["port"])))
signal.pause()
""",
    "muva": f"""{PYTHON}
shown = [os.environ[name] for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "MUVA_WAIT_FOR")]
record(" ".join(["muva", *sys.argv[1:], *shown]))
if sys.argv[1] != "train":
    sys.exit(7)
def interrupted(*_):
    host, _, port = os.environ["RAY_ADDRESS"].partition(":")
    socket.create_connection((host, int(port)))  # Ray is still there
    record("interrupted")
    sys.exit(130)
signal.signal(signal.SIGTERM, interrupted)
record("training")
time.sleep(60)
""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    bin_folder = tmp_path / "env" / "bin"
    bin_folder.mkdir(parents=True)
    for name, text in STANDINS.items():
        program = bin_folder / name
        program.write_text(text)
        program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "STATE": "RUNNING",
        "MUVA_ENV": str(bin_folder.parent),
        "MUVA_STORE": "s3://people/store",
        "MLFLOW_TRACKING_URI": "http://service-node:5000",
        # A port and a folder in /tmp follow from the id of the job.
        "SLURM_JOB_ID": str(10_000_000 + os.getpid()),
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "1",
    }


def ray_folder(environment: dict[str, str]) -> Path:
    return Path(f"/tmp/ray-{environment['SLURM_JOB_ID']}")


def test_the_shell_can_read_it() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_every_option_is_one_of_sbatch() -> None:
    text = SCRIPT.read_text()
    lines = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    names = [re.fullmatch(r"--([a-z-]+)(?:=\S+)?", line) for line in lines]
    assert all(names)
    assert {name.group(1) for name in names if name} <= SBATCH_OPTIONS
    # sbatch reads no further than the first command.
    assert text.index("#SBATCH", text.rindex("#SBATCH")) < text.index("set -euo")
    assert {"requeue", "nodes", "signal"} <= {name.group(1) for name in names if name}


def test_the_verb_runs_on_the_first_node_and_its_exit_code_is_the_jobs(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = run(environment, tmp_path, "run", "demo")
    assert done.returncode == 7, done.stderr
    calls = Path(environment["CALLS"]).read_text()
    port = 20000 + int(environment["SLURM_JOB_ID"]) % 20000
    # The address is that of the route to the second node, not what the first node's name is.
    assert f"ray start --block --head --node-ip-address=127.0.0.1 --port={port} " in calls
    assert "--num-cpus=2 --memory=1000000000 --num-gpus 1" in calls
    assert f"muva run demo 127.0.0.1:{port} token slurm_node=2" in calls
    assert "requeue" not in calls
    assert not ray_folder(environment).exists()


def test_without_ray_the_job_fails_and_shows_what_ray_said(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = run({**environment, "NO_TOKEN": "yes"}, tmp_path, "run", "demo")
    assert done.returncode == 1
    assert "no authentication token was found" in done.stderr
    log = f"muva-{environment['SLURM_JOB_ID']}-ray.log"
    assert f"Ray did not start. Above is the end of its output, {log}" in done.stderr
    assert "muva run" not in Path(environment["CALLS"]).read_text()
    assert not ray_folder(environment).exists()


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED"])
def test_a_job_that_is_told_to_end_interrupts_its_verb_and_is_queued_again_unless_cancelled(
    environment: dict[str, str], tmp_path: Path, state: str
) -> None:
    job = subprocess.Popen(
        ["bash", str(SCRIPT), "train"], env={**environment, "STATE": state}, cwd=tmp_path
    )
    calls = Path(environment["CALLS"])
    wait_for(calls, "training")
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == (0 if state == "RUNNING" else 130)
    said = calls.read_text()
    assert "interrupted" in said
    assert (f"scontrol requeue {environment['SLURM_JOB_ID']}" in said) == (state == "RUNNING")


def test_what_an_earlier_run_of_the_job_left_on_the_node_is_removed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    folder = ray_folder(environment)
    folder.mkdir(mode=0o700)
    (folder / "old").touch()
    daemon = subprocess.Popen([sys.executable, "-c", "input()", f"{folder}/ray"], stdin=-1)
    assert run(environment, tmp_path, "run", "demo").returncode == 7
    assert daemon.wait(10) == -signal.SIGKILL
    assert not folder.exists()


@pytest.mark.parametrize("missing", ["MUVA_ENV", "MUVA_STORE", "MLFLOW_TRACKING_URI"])
def test_what_must_be_set_is_named(
    environment: dict[str, str], tmp_path: Path, missing: str
) -> None:
    del environment[missing]
    done = run(environment, tmp_path, "run", "demo")
    assert done.returncode != 0
    assert f"{missing}: expected" in done.stderr
    assert not Path(environment["CALLS"]).exists()


def test_an_environment_without_muva_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    done = run({**environment, "MUVA_ENV": "/nowhere"}, tmp_path, "run", "demo")
    assert done.returncode == 1
    assert "MUVA_ENV=/nowhere: " in done.stderr
    assert "has no /nowhere/bin/muva" in done.stderr
    assert not Path(environment["CALLS"]).exists()


def run(environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def wait_for(calls: Path, text: str) -> None:
    ends_at = time.monotonic() + 60
    while not (calls.exists() and text in calls.read_text()):
        assert time.monotonic() < ends_at
        time.sleep(0.05)
