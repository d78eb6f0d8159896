"""Fault injection for a submitted pipeline: `python -m benchmarks.pipeline_faults --check`.

On a cluster of two nodes with authentication, with an MLflow server and S3, a small pipeline is
submitted without faults, and then once per kind of outage, each time with a new store and new
MLflow runs. Its final report must equal that of the run without faults, and its MLflow runs must be
closed and have every epoch. If a submission ends without a result, it must say what to do, and the
same command must then finish without repeating a finished step.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.baseline import Row, Table, benchmark_parser, exit_code, measurement, write_results
from benchmarks.disturbed_server import Disturber, disturbed_server
from benchmarks.fault_injection import s3_environment, s3_server
from benchmarks.small_clip import write_small_clip
from muva.data.artifacts import list_artifacts
from muva.data.store import Store, open_store
from tracking.connection import reached_client
from workflows.jobs.head import http_status
from workflows.runtime.authentication import RAY, authorisation, ensure_token
from workflows.runtime.autoscaling import WAIT_LIMIT_VARIABLE
from workflows.runtime.local import HOST, usable_port

ROOT = Path(__file__).resolve().parents[1]
START_S, PATIENCE_S = 180.0, 900.0
AWAY_S = 60.0
"""How long the MLflow server is down."""
REPLACED_AFTER_S, WAIT_FOR_NODES_S = 10.0, 60.0
S3_SHARE = 0.15
"""Fraction of S3 requests that get a fault in its outage."""
CLOSE = 1e-4
"""Tolerance of reported metrics, which two workers sum up in another order."""
REMEDIES = ("the same command again", "repeat the command")
"""What the error of a submission without a result must say, one of them."""
NOTICES = ("A node was lost", "MLflow is unavailable")
"""The first words of the messages about an outage during which the pipeline continues."""
RECIPE = """
name: outages
seed: 0
sources: [syn-harbour, syn-airport]
targets: [syn-station]
variants: [muva]
synthetic: {{train_people: 8, test_people: 5, height: 64, width: 32}}
model: {{clip: {clip}, image_height: 64, image_width: 32, stride: 8}}
stage1: {{epochs: 20, batch_size: 32, lr: 1.0e-3, precision: fp32}}
stage2: {{epochs: {epochs}, batch_size: 16, lr: 1.0e-4, warmup_epochs: 0, precision: fp32}}
"""
EPOCHS = {"stage1": 20, "stage2": 12}
COMMAND = ("run", "outages.yaml", "--json")
BUCKET = "people"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a pipeline."""

    outage: str
    seconds: float
    exit_codes: list[int]
    """Exit codes of the submissions, in order."""
    said: str
    """What the first submission said of the outage: see `said_of_outage`."""
    apart: float | None
    """Largest difference of a reported metric from the run without faults; None: no report."""
    reused: int
    """Steps that the last submission skipped as finished."""
    computed: int
    """Steps that the last submission computed."""
    faults: list[str]
    """Violated requirements."""


def main() -> int:
    """Submit the pipelines and print the outcomes; with --check, exit with 1 after a wrong one."""
    parser = benchmark_parser(
        "pipeline_faults", __doc__, check="exit 1 where one does not end well"
    )
    parser.add_argument("--only", nargs="+", choices=OUTAGES, help="these outages alone")
    parser.add_argument("--keep", action="store_true", help="leave logs and stores where they are")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also ends all started processes
    folder = Path(tempfile.mkdtemp(prefix="mv", dir="/tmp"))  # short, for Ray's sockets
    try:
        outcomes = drills(folder, arguments.only or list(OUTAGES))
    finally:
        if arguments.keep:
            print(f"Kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    write_results(arguments, [dataclasses.asdict(one) for one in outcomes], baseline_tables)
    bad = [one for one in outcomes if one.faults]
    print(f"\n{len(outcomes) - len(bad)} of {len(outcomes)} pipelines ended as they must")
    for one in bad:
        print(f"{one.outage}: {'; '.join(one.faults)}")
    return exit_code(arguments, [one.outage for one in bad])


def baseline_tables(outcomes: list[dict[str, Any]]) -> dict[str, Table]:
    """`outages`: how each pipeline ended."""
    rows = []
    for one in outcomes:
        what = OUTAGES.get(one["outage"], undisturbed_run).__doc__ or one["outage"]
        row: Row = {
            "outage": what.split("\n")[0].rstrip("."),
            "seconds": measurement(one["seconds"]),
            "exit_codes": ", ".join(map(str, one["exit_codes"])),
            "reused": one["reused"],
            "computed": one["computed"],
            "said": f"*{one['said']}*".replace("|", "\\|") if one["said"] else "",
            "goal": f"numbers at most {CLOSE:g} apart",
        }
        if one["apart"] is not None:
            row["difference"] = one["apart"]
        rows.append(row)
    return {"outages": Table(rows=rows)}


def drills(folder: Path, names: list[str]) -> list[Outcome]:
    """Run the pipeline without faults, then once for each of these outages."""
    outcomes = []
    print("| outage | seconds | exit codes | apart | steps reused, computed | said |")
    print("|---|---:|---|---:|---:|---|", flush=True)
    with place(folder) as where:
        undisturbed: dict[str, float] = {}
        for name in ("none", *names):
            began_at = time.monotonic()
            where.disturber.share = 0.0
            for service in (where.tracking, where.head, where.second):
                service.start()
            pipeline = Pipeline(where, name)
            try:
                OUTAGES.get(name, undisturbed_run)(where, pipeline)
            except NotDisturbedError:
                pipeline.stop()
                for service in (where.second, where.head):  # also ends the job
                    service.kill()
            undisturbed = undisturbed or pipeline.numbers()
            one = pipeline.outcome(undisturbed, seconds=time.monotonic() - began_at)
            outcomes.append(one)
            apart = "" if one.apart is None else f"{one.apart:.1e}"
            print(
                f"| {name} | {one.seconds:.0f} | {', '.join(map(str, one.exit_codes))} | {apart} | "
                f"{one.reused}, {one.computed} | {one.said} |",
                flush=True,
            )
    return outcomes


def undisturbed_run(where: Place, pipeline: Pipeline) -> None:
    """No outage."""
    pipeline.submit().finish()


def _in_stage_2(pipeline: Pipeline) -> Submission:
    """Submit the pipeline and wait for the second epoch of stage 2."""
    submission = pipeline.submit()
    submission.wait_for(lambda: pipeline.epochs("models") >= 2)
    return submission


def node_replaced(where: Place, pipeline: Pipeline) -> None:
    """The second node is lost in stage 2 and replaced."""
    submission = _in_stage_2(pipeline)
    where.second.kill()
    time.sleep(REPLACED_AFTER_S)
    where.second.start()
    submission.finish()


def node_gone(where: Place, pipeline: Pipeline) -> None:
    """The second node is lost in stage 2 and not replaced: one worker finishes."""
    submission = _in_stage_2(pipeline)
    where.second.kill()
    submission.finish()
    pipeline.submit(workers=1).finish()


def mlflow_away(where: Place, pipeline: Pipeline) -> None:
    """The MLflow server is down for a minute in the middle of stage 2."""
    submission = _in_stage_2(pipeline)
    where.tracking.kill()
    time.sleep(AWAY_S)
    where.tracking.start()
    submission.finish()


def s3_disturbed(where: Place, pipeline: Pipeline) -> None:
    """S3 delays, rejects and drops requests throughout."""
    where.disturber.share = S3_SHARE
    pipeline.submit().finish()


def head_restarted(where: Place, pipeline: Pipeline) -> None:
    """The head node is lost in stage 2, and restarted at the same address with the second node."""
    submission = _in_stage_2(pipeline)
    where.head.kill()
    where.second.kill()
    where.head.start()
    where.second.start()
    submission.finish()
    pipeline.submit().finish()


OUTAGES: dict[str, Callable[[Place, Pipeline], None]] = {
    "node": node_replaced,
    "node-gone": node_gone,
    "mlflow": mlflow_away,
    "s3": s3_disturbed,
    "head": head_restarted,
}


class NotDisturbedError(Exception):
    """A submission ended or made no progress before its outage."""


class Service:
    """A server command in its own process group, which can be killed and restarted."""

    def __init__(
        self,
        command: list[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        ready: Callable[[], bool],
    ) -> None:
        self._command, self._environment, self._log = command, dict(environment), log
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the service and wait until it is ready, unless it is running."""
        if self._process is not None:
            return
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ends_at = time.monotonic() + START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > ends_at:
                raise RuntimeError(f"it does not start: {self._log.read_text()[-3000:]}")
            time.sleep(0.3)

    def kill(self) -> None:
        """Send SIGKILL to it and all its descendants, as if the machine were lost."""
        if self._process is None or self._process.poll() is not None:
            self._process = None
            return
        main = psutil.Process(self._process.pid)
        main.suspend()  # it must not start processes in the meantime
        for one in (main, *main.children(recursive=True)):
            try:
                one.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        self._process = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The cluster and its services."""

    folder: Path
    address: str
    tracking_uri: str
    head: Service
    second: Service
    tracking: Service
    disturber: Disturber


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Start everything, and set the home folder and environment variables, inside the block."""
    from boto3.session import Session

    for name in [name for name in os.environ if name.startswith(("RAY_", "MUVA_", "MLFLOW_"))]:
        del os.environ[name]
    disturber = Disturber(seed=0, share=0.0)
    with ExitStack() as stack:
        direct = stack.enter_context(s3_server())
        disturbed = stack.enter_context(disturbed_server(direct, disturber))
        os.environ |= {
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": str(folder),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            **s3_environment(direct),
            "XDG_CACHE_HOME": str(folder / "cache"),
            WAIT_LIMIT_VARIABLE: f"{WAIT_FOR_NODES_S:.0f}",
        }
        ensure_token()
        Session().client("s3").create_bucket(Bucket=BUCKET)
        environment = {**os.environ, "AWS_ENDPOINT_URL": disturbed}
        environment.pop("PYTHONPATH", None)  # a job uses the submitted code
        head_port, dashboard, mlflow = (usable_port(0) for _ in range(3))
        address, tracking_uri = f"http://{HOST}:{dashboard}", f"http://{HOST}:{mlflow}"
        common = (
            *("--block", "--num-cpus=1", "--object-store-memory=100000000"),
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        )
        head = (
            *("--head", f"--port={head_port}", f"--dashboard-host={HOST}"),
            *(f"--dashboard-port={dashboard}", f"--ray-client-server-port={usable_port(0)}"),
            "--disable-usage-stats",
        )
        where = Place(
            folder=folder,
            address=address,
            tracking_uri=tracking_uri,
            disturber=disturber,
            head=Service(
                [*RAY, "start", *head, *common],
                environment=environment,
                log=folder / "head.log",
                ready=lambda: (
                    http_status(address, authorisation()) == 200 and alive_nodes(address) >= 1
                ),
            ),
            second=Service(
                [
                    *(*RAY, "start", f"--address={HOST}:{head_port}", *common),
                    # A separate folder: otherwise nodes would overwrite the code of running jobs.
                    f"--temp-dir={folder}/2",
                ],
                environment=environment,
                log=folder / "second.log",
                ready=lambda: alive_nodes(address) == 2,
            ),
            tracking=Service(
                [
                    *(sys.executable, "-m", "mlflow", "server", f"--host={HOST}"),
                    *(f"--port={mlflow}", "--workers=1"),
                    f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
                    f"--artifacts-destination={folder}/mlartifacts",
                ],
                environment={**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                log=folder / "mlflow.log",
                ready=lambda: _answers(f"{tracking_uri}/health"),
            ),
        )
        _write_recipe(folder)
        for service in (where.tracking, where.head, where.second):
            stack.callback(service.kill)
            service.start()
        yield where


class Pipeline:
    """A submitted pipeline with its own store and experiment."""

    def __init__(self, where: Place, name: str) -> None:
        self._where, self._name = where, name
        self._store_uri = f"s3://{BUCKET}/{name}"
        self.store: Store = open_store(self._store_uri)
        self._submissions: list[Submission] = []
        self._there: set[str] = set()
        self._disturbed = True
        recipe = (where.folder / "outages.yaml").read_text()
        self._folder = where.folder / name
        self._folder.mkdir()
        renamed = recipe.replace("name: outages", f"name: outages-{name}")
        (self._folder / "outages.yaml").write_text(renamed)
        (self._folder / "cluster.yaml").write_text(
            f"address: {where.address}\nstore: {self._store_uri}\n"
            f"tracking_uri: {where.tracking_uri}\n"
        )

    def submit(self, *, workers: int = 2) -> Submission:
        """Run `muva submit`, which follows the job."""
        self._there = {one.address for one in self._finished()}
        verb = (*COMMAND, "--workers", str(workers))
        words = ("submit", "--cluster", "cluster.yaml", "--", *verb)
        log = self._folder / f"submission-{len(self._submissions) + 1}.log"
        submission = Submission(words, folder=self._folder, log=log)
        self._submissions.append(submission)
        return submission

    def stop(self) -> None:
        """End a submission that finished before its fault was injected."""
        self._disturbed = False
        self._submissions[-1].finish(within_s=0)

    def epochs(self, kind: str) -> int:
        """The epoch of a stage's latest checkpoint; 0 if there is none."""
        states = [
            int(key.split("/")[-2])
            for key in self.store.list(f"{kind}/")
            if "/states/" in key and key.endswith("state.json")
        ]
        return max(states, default=0)

    def numbers(self) -> dict[str, float]:
        """The report of the last submission: `target/variant/metric` -> value."""
        report = self._submissions[-1].report()
        return {
            f"{target}/{variant}/{metric}": value
            for target, variants in report.get("targets", {}).items()
            for variant, metrics in variants.items()
            for metric, value in metrics.items()
        }

    def outcome(self, undisturbed: Mapping[str, float], *, seconds: float) -> Outcome:
        """The outcome, once all submissions have ended."""
        last, found = self._submissions[-1], self.numbers()
        apart = None
        if found.keys() == undisturbed.keys() and found:
            apart = max(abs(found[name] - undisturbed[name]) for name in found)
        reused = self._there & set(re.findall(r": exists, (\S+)", last.output()))
        return Outcome(
            outage=self._name,
            seconds=round(seconds, 1),
            exit_codes=[one.code for one in self._submissions],
            said=said_of_outage(self._submissions[0].output()),
            apart=apart,
            reused=len(reused),
            computed=len(self._finished()) - len(self._there),
            faults=list(self._faults(apart)),
        )

    def _finished(self) -> list[Any]:
        kinds = {key.split("/")[0] for key in self.store.list()}
        return [
            one
            for kind in sorted(kinds)
            for one in list_artifacts(self.store, kind)
            if one.manifest() is not None
        ]

    def _faults(self, apart: float | None) -> Iterator[str]:
        *earlier, last = self._submissions
        if not self._disturbed:
            yield "it was not disturbed"
        if last.code != 0:
            yield f"the last submission ended with {last.code}"
        if apart is None or apart > CLOSE:
            yield f"its numbers are apart by {apart}"
        for one in self._submissions:
            if "Traceback (most recent call last)" in one.output():
                yield "a traceback was shown"
        for one in earlier:
            if one.code == 0:
                yield "a submission without a result ended with 0"
            if not any(remedy in one.last_line() for remedy in REMEDIES):
                yield "the error does not say what to do"
        yield from self._faults_of_runs()

    def _faults_of_runs(self) -> Iterator[str]:
        """Problems with MLflow runs: left open, or epochs missing or repeated."""
        client = reached_client(self._where.tracking_uri)
        experiment = client.get_experiment_by_name(f"muva/outages-{self._name}")
        if experiment is None:
            yield "there are no runs"
            return
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        for run in runs:
            if run.info.status != "FINISHED":
                yield f"run {run.info.run_name} is {run.info.status}"
        for stage, epochs in EPOCHS.items():
            name = f"{stage[:5]} {stage[5:]} of outages-{self._name}-muva"
            ids = [run.info.run_id for run in runs if run.info.run_name == name]
            if len(ids) != 1:
                yield f"there are {len(ids)} runs {name}"
            for run_id in ids:
                points = client.get_metric_history(run_id, f"{stage}/loss")
                steps = sorted(point.step for point in points)
                if steps != list(range(1, epochs + 1)):
                    yield f"run {name} has the epochs {steps}"


class Submission:
    """A `muva submit` that follows its job, and its output."""

    def __init__(self, words: tuple[str, ...], *, folder: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workflows.cli", *words],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def code(self) -> int:
        """Its exit code after it has ended."""
        return self._process.returncode

    def output(self) -> str:
        """Its output so far."""
        return self._log.read_text(errors="replace")

    def last_line(self) -> str:
        """Its error message, or the last line of its output."""
        lines = [line for line in self.output().splitlines() if line.strip()]
        return _error(lines) or (lines or [""])[-1]

    def report(self) -> dict[str, Any]:
        """The JSON that the command printed; empty if there is none."""
        found = re.search(r"^\{$.*?^\}$", self.output(), re.DOTALL | re.MULTILINE)
        return json.loads(found.group()) if found else {}

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; raises NotDisturbedError if it never does."""
        ends_at = time.monotonic() + PATIENCE_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > ends_at:
                raise NotDisturbedError
            time.sleep(0.1)

    def finish(self, within_s: float = PATIENCE_S) -> None:
        """Wait until it has ended; kill it after a timeout."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _write_recipe(folder: Path) -> None:
    """Write the recipe and its CLIP to a disk that all nodes share."""
    write_small_clip(folder / "clip")
    recipe = RECIPE.format(clip=folder / "clip", epochs=EPOCHS["stage2"])
    (folder / "outages.yaml").write_text(recipe)


def said_of_outage(output: str) -> str:
    """The error in the output of a submission, or else its first notice of an outage, or nothing.

    Addresses, and the reasons that other programs gave, are left out: they differ between runs.
    """
    if error := _error(output.splitlines()):
        return re.sub(r"https?://[^\s,;]+", "…", error.removeprefix("Error: "))
    notice = re.search(f"({'|'.join(NOTICES)})[^:\\n]*(: the cluster has [^\\n]*)?", output)
    return notice.group().strip() if notice else ""


def _error(lines: Sequence[str]) -> str:
    return ([line for line in lines if line.startswith("Error: ")] or [""])[-1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def alive_nodes(address: str) -> int:
    """The number of alive nodes according to the head."""
    request = urllib.request.Request(f"{address}/nodes?view=summary", headers=authorisation())
    try:
        with urllib.request.urlopen(request, timeout=10) as answered:
            nodes = json.load(answered)["data"]["summary"]
    except OSError:
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


if __name__ == "__main__":
    sys.exit(main())
