"""clusters/slurm/muva.sbatch: its options by name, its flow with stand-ins for Slurm's commands.

Slurm itself runs nowhere here, and `ray symmetric-run` would end every Ray of this user.
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

STANDINS = {
    "scontrol": """
        echo "scontrol $*" >> "$CALLS"
        [ "$1" != show ] || printf 'node-a\\nnode-b\\n'
    """,
    "scancel": """
        echo "scancel $*" >> "$CALLS"
        kill -INT "$(cat "$CALLS.step")"
    """,
    "srun": """
        while [ "${1#--}" != "$1" ]; do shift; done
        exec "$@"
    """,
    "ray": """
        echo "ray $*" >> "$CALLS"
        echo $$ > "$CALLS.step"
        while [ "$1" != -- ]; do shift; done
        shift
        exec "$@"
    """,
    "muva": """
        echo "muva $* at $RAY_ADDRESS, $RAY_AUTH_MODE" >> "$CALLS"
        [ "$1" != train ] || exec PYTHON -c 'import signal, time
        signal.signal(signal.SIGINT, lambda *_: exit(130))
        open("CALLS.ready", "w").close()
        time.sleep(60)'
        exit 7
    """,
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    bin_folder = tmp_path / "env" / "bin"
    bin_folder.mkdir(parents=True)
    calls = str(tmp_path / "calls")
    for name, text in STANDINS.items():
        lines = [line.strip() for line in text.strip().splitlines()]
        body = "\n".join(lines).replace("PYTHON", sys.executable).replace("CALLS.ready", "READY")
        body = body.replace('"READY"', f'"{calls}.ready"')
        program = bin_folder / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    return {
        **os.environ,
        "CALLS": calls,
        "MUVA_ENV": str(bin_folder.parent),
        "MUVA_STORE": "s3://people/store",
        "MLFLOW_TRACKING_URI": "http://service-node:5000",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
    }


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
    environment: dict[str, str],
) -> None:
    command = ["bash", str(SCRIPT), "run", "demo"]
    done = subprocess.run(command, env=environment, check=False, timeout=60)
    assert done.returncode == 7
    calls = Path(environment["CALLS"]).read_text()
    assert "ray symmetric-run --address node-a:24711 --min-nodes 2 --num-cpus 8" in calls
    assert "muva run demo at node-a:24711, token" in calls
    assert "requeue" not in calls


def test_a_job_that_is_told_to_end_interrupts_its_verb_and_is_queued_again(
    environment: dict[str, str],
) -> None:
    job = subprocess.Popen(["bash", str(SCRIPT), "train"], env=environment)
    ready = Path(environment["CALLS"] + ".ready")
    ends_at = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < ends_at
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 0
    calls = Path(environment["CALLS"]).read_text().splitlines()
    assert calls[-2:] == ["scancel --signal=INT 4711", "scontrol requeue 4711"]


@pytest.mark.parametrize("missing", ["MUVA_ENV", "MUVA_STORE", "MLFLOW_TRACKING_URI"])
def test_what_must_be_set_is_named(environment: dict[str, str], missing: str) -> None:
    del environment[missing]
    done = subprocess.run(
        ["bash", str(SCRIPT), "run", "demo"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"{missing}: expected" in done.stderr
    assert not Path(environment["CALLS"]).exists()
