"""clusters/slurm/muva.sbatch on real Slurm, one node and two, in namespaces of this machine.

`make test-slurm` runs these tests. They need root, and Debian's slurm-wlm and munge.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.fields import CLUSTERS

NODES = Path(__file__).parent / "slurm_nodes.sh"
SCRIPT = CLUSTERS / "slurm" / "muva.sbatch"
ENVIRONMENT = Path(sys.executable).parent.parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
MISSING = [each for each in PROGRAMS if shutil.which(each, path="/usr/sbin:/usr/bin") is None]
HIDDEN = any(path.is_relative_to("/tmp") for path in (CLUSTERS, ENVIRONMENT))

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(MISSING), reason=f"needs slurm-wlm and munge: no {MISSING}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces"),
    pytest.mark.skipif(HIDDEN, reason="the nodes have a /tmp of their own, which hides this tree"),
]

SMALL = "--set synthetic.train_people=4 --set synthetic.test_people=4"
TRAINING = (
    "train --recipe demo --sources syn-station --workers 2"
    f" {SMALL} --set stage1.batch_size=8 --set stage2.batch_size=8"
    " --set stage1.epochs=1 --set stage2.epochs=2"
)


class Slurm:
    """Commands on the first node of a Slurm of their own; `folder` is shared by all nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "HOME": str(folder / "home"),
            "PATH": f"{ENVIRONMENT}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "MUVA_ENV": str(ENVIRONMENT),
            "MUVA_STORE": str(folder / "store"),
            "MUVA_HOME": str(folder / "muva-home"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "OMP_NUM_THREADS": "1",
        }
        token = folder / "home" / ".ray" / "auth_token"
        token.parent.mkdir(parents=True)
        token.write_text("0123456789abcdef" * 2)
        token.chmod(0o600)
        (folder / "jobs").mkdir()

    def run(self, nodes: int, commands: str, *, within_s: float = 1000) -> str:
        """Output of the commands, which bash runs on the first node once Slurm is up."""
        done = subprocess.run(
            [NODES, self.folder / "slurm", str(nodes), "bash", "-ec", commands],
            env={**self.environment, "SCRIPT": str(SCRIPT), "FOLDER": str(self.folder)},
            cwd=self.folder / "jobs",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        """What the jobs, Ray and Slurm have written."""
        files = [
            *sorted((self.folder / "jobs").glob("muva-*.log")),
            *sorted((self.folder / "slurm" / "log").glob("slurm*")),
        ]
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files)

    def log(self, job: int = 1) -> str:
        """What one job has written, without the output of Ray."""
        return (self.folder / "jobs" / f"muva-{job}.log").read_text()


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/var/tmp"))
    yield Slurm(folder)
    shutil.rmtree(folder, ignore_errors=True)


def submit(nodes: int, *words: str) -> str:
    """A command that submits the script, waits for the job's end, and prints its exit code."""
    command = f'sbatch --wait {sized(nodes)} "$SCRIPT" {" ".join(words)}'
    return f'code=0; {command} || code=$?; echo "exit code $code"'


def sized(nodes: int) -> str:
    """Options of sbatch for nodes of these tests."""
    return f"--nodes={nodes} --cpus-per-task=2 --mem=5G"


def until(command: str) -> str:
    """Commands that wait until a command succeeds, as long as the job is there."""
    return f"while squeue -h -j 1 | grep -q . && ! {command} > /dev/null 2>&1; do sleep 0.3; done"


def left_behind(out: str) -> dict[str, str]:
    """What `EACH_NODE_AFTERWARDS` has found, by node."""
    return dict(re.findall(r"^left on (\w+): *(.*)$", out, re.MULTILINE))


RUN_STATES = """
python -c 'import sqlite3
rows = sqlite3.connect("../mlflow.db").execute("select distinct status from runs")
print("runs:", *(status for (status,) in rows))'
"""
EACH_NODE_AFTERWARDS = """
srun --nodes="$(sinfo -h -o %D)" --mem=100M bash -c '
    echo "left on $(hostname): $(ls /tmp | grep ray-) $(pgrep -r D,R,S -f "[g]cs_server|[r]aylet")"'
"""
IMPORT = f"muva data import syn-station {SMALL} > /dev/null"


def test_a_verb_runs_on_two_nodes_and_its_log_ends_with_the_result(slurm: Slurm) -> None:
    out = slurm.run(2, f"{IMPORT}\n{submit(2, TRAINING)}\n{EACH_NODE_AFTERWARDS}")
    assert "exit code 0" in out, slurm.logs()
    log = slurm.log()
    assert "Starting Ray on 2 node(s); its output is in muva-1-ray.log" in log
    assert "Waiting until the cluster has 2 slurm_node" in log
    # Ray's own output is elsewhere, and nothing follows the result.
    assert log.splitlines()[-1].startswith("Compute features with muva.load"), log
    assert not re.search("raylet|Ray runtime started|srun", log), log
    of_ray = (slurm.folder / "jobs" / "muva-1-ray.log").read_text()
    assert re.search("^0: .*Ray runtime started", of_ray, re.MULTILINE), of_ray
    assert re.search("^1: .*Ray runtime started", of_ray, re.MULTILINE), of_ray
    assert left_behind(out) == {"node1": "", "node2": ""}


def test_without_a_token_the_job_fails_and_says_why(slurm: Slurm) -> None:
    (slurm.folder / "home" / ".ray" / "auth_token").unlink()
    out = slurm.run(1, submit(1, "run demo"))
    assert "exit code 1" in out, slurm.logs()
    assert "no authentication token" in slurm.log().lower()
    assert "Ray did not start" in slurm.log()


def test_a_wrong_environment_is_named(slurm: Slurm) -> None:
    slurm.environment["MUVA_ENV"] = str(slurm.folder / "nothing")
    out = slurm.run(1, submit(1, "run demo"))
    assert "exit code 1" in out
    assert f"MUVA_ENV={slurm.folder}/nothing: node1 has no" in slurm.log()


def test_the_exit_code_of_the_verb_is_that_of_the_job(slurm: Slurm) -> None:
    out = slurm.run(1, submit(1, "train --sources nowhere --recipe demo"))
    code = re.search(r"exit code (\d+)", out)
    assert code and code.group(1) not in {"0", "130"}, out
    assert "nowhere" in slurm.log()


def test_a_training_that_is_told_to_end_is_queued_again_and_resumes(slurm: Slurm) -> None:
    # Slurm itself waits for two minutes before it starts a job again. In the second in which the
    # job was revoked, slurmd refuses to ("already killed, do not launch"): times are whole seconds.
    out = slurm.run(
        1,
        f"""
        {IMPORT}
        sbatch {sized(1)} "$SCRIPT" {TRAINING} --set stage2.epochs=8
        {until('ls "$FOLDER"/store/models/*/states/*/state.json')}
        scancel --batch --signal=TERM 1
        {until('grep "queued again" muva-1.log')}
        {RUN_STATES}
        sleep 2
        {until("scontrol update jobid=1 starttime=now")}
        while squeue -h -j 1 | grep -q .; do sleep 0.5; done
        scontrol show job 1 | grep -oP '(JobState|Restarts|ExitCode)=\\S+'
        {RUN_STATES}
        {EACH_NODE_AFTERWARDS}
        """,
    )
    log = slurm.log()
    assert "Interrupted. Finished work is kept" in log
    # MLflow was told of the interruption, and nothing is running at the end either.
    states = re.findall(r"^runs: (.*)$", out, re.MULTILINE)
    assert len(states) == 2, out
    assert "KILLED" in states[0] and "RUNNING" not in states[0], states
    assert "FINISHED" in states[1] and "RUNNING" not in states[1], states
    assert {"JobState=COMPLETED", "Restarts=1", "ExitCode=0:0"} <= set(out.splitlines()), (
        f"{out}\n{slurm.logs()}"
    )
    # Prompts, and what there was of stage 2, were not computed again.
    assert "exists, prompts/" in log, log
    assert left_behind(out) == {"node1": ""}


def test_a_job_that_is_told_to_end_when_its_verb_has_ended_is_not_queued_again(
    slurm: Slurm,
) -> None:
    out = slurm.run(
        1,
        f"""
        sbatch {sized(1)} "$SCRIPT" data list
        {until('grep "Rendered when needed" muva-1.log')}
        while squeue -h -j 1 -t R | grep -q .; do scancel --batch --signal=TERM 1; sleep 0.1; done
        while squeue -h -j 1 | grep -q .; do sleep 0.5; done
        scontrol show job 1 | grep -oP '(JobState|Restarts|ExitCode)=\\S+'
        """,
    )
    assert {"JobState=COMPLETED", "Restarts=0", "ExitCode=0:0"} <= set(out.splitlines()), out
    assert "queued again" not in slurm.log()


def test_a_cancelled_job_is_not_queued_again(slurm: Slurm) -> None:
    out = slurm.run(
        1,
        f"""
        {IMPORT}
        sbatch {sized(1)} "$SCRIPT" {TRAINING} --set stage2.epochs=8
        {until('ls "$FOLDER"/store/prompts')}
        scancel 1
        while squeue -h -j 1 | grep -q .; do sleep 0.5; done
        scontrol show job 1 | grep -oP '(JobState|Restarts)=\\S+'
        {EACH_NODE_AFTERWARDS}
        """,
    )
    assert {"JobState=CANCELLED", "Restarts=0"} <= set(out.splitlines()), out
    assert left_behind(out) == {"node1": ""}
