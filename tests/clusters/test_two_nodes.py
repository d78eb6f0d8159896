"""The whole chain on two real nodes with tokens on: submit, S3, MLflow's server, doctor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.clusters.two_nodes import TwoNodes, two_nodes
from workflows.verbs.jobs import jobs_verb

CLI = (sys.executable, "-m", "workflows.cli")
IMPORT = (
    *("data", "import", "syn-mall"),
    *("--set", "synthetic.train_people=2", "--set", "synthetic.test_people=2"),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A person's folder, with settings for the cluster in it."""

    nodes: TwoNodes
    folder: Path
    bucket: str

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*CLI, *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=200)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def place(s3_server: str) -> Iterator[Place]:
    from boto3.session import Session

    home = Path(tempfile.mkdtemp(prefix="mv", dir="/tmp"))  # short, for Ray's sockets
    aws = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    root = str(Path(__file__).parents[2])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ADDRESS", "API_SERVER_ADDRESS", "AUTH_MODE", "AUTH_TOKEN", "AUTH_TOKEN_PATH"):
            patch.delenv(f"RAY_{name}", raising=False)
        for name in ("MUVA_STORE", "MUVA_HOME", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_TMPDIR", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        bucket = f"people-{uuid.uuid4().hex[:8]}"
        session = Session(aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"])
        client = session.client("s3", endpoint_url=s3_server, region_name="us-east-1")
        client.create_bucket(Bucket=bucket)
        with two_nodes(home, aws) as nodes:
            patch.setenv("PYTHONPATH", root, prepend=":")
            settings = f"address: {nodes.address}\nstore: s3://{bucket}/store\n"
            (home / "mine.yaml").write_text(f"{settings}tracking_uri: {nodes.tracking_uri}\n")
            yield Place(nodes=nodes, folder=home, bucket=bucket)
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.timeout(600)
def test_a_verb_goes_from_here_to_s3_and_mlflow(place: Place, s3_server: str) -> None:
    from boto3.session import Session
    from mlflow import MlflowClient

    code, stdout, stderr = place.run("submit", "--cluster", "mine.yaml", "--", *IMPORT, "--json")
    assert code == 0, stderr
    artifact = json.loads(stdout[stdout.index("{") : stdout.rindex("}") + 1])["artifact"]
    assert artifact.startswith(f"s3://{place.bucket}/store/datasets/syn-mall-")

    s3 = Session("test", "test").client("s3", endpoint_url=s3_server, region_name="us-east-1")
    key = artifact.removeprefix(f"s3://{place.bucket}/")
    manifest = json.load(s3.get_object(Bucket=place.bucket, Key=f"{key}/manifest.json")["Body"])
    assert manifest["summary"]["images"] > 0

    settings = ("--cluster", str(place.folder / "mine.yaml"), "--json")
    (job,) = json.loads(CliRunner().invoke(jobs_verb, ["list", *settings]).stdout)
    assert job["status"] == "succeeded"
    assert job["command"].startswith("muva data import syn-mall")

    shown = json.loads(CliRunner().invoke(jobs_verb, ["show", *settings, job["job"]]).stdout)
    (run,) = shown["runs"]
    client = MlflowClient(place.nodes.tracking_uri)
    tags = client.get_run(run["run_id"]).data.tags
    assert tags["muva.ray_job"] == job["job"]
    assert tags["muva.ray_job_link"] == f"{place.nodes.address}/#/jobs/{job['job']}"
    assert tags["muva.artifact"] in artifact
    assert run["link"].startswith(place.nodes.tracking_uri)


def checks(said: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for check in json.loads(said):
        found.setdefault((check["what"], check["state"]), []).append(check)
    return found


@pytest.mark.timeout(600)
def test_doctor_checks_every_node_and_says_what_to_fix(place: Place) -> None:
    here = ("doctor", "--cluster", "mine.yaml", "--json")
    sqlite = f"sqlite:///{place.folder}/mlflow.db"
    good = place.start(*here, "--recipe", "demo")
    bad = place.start(*here, "--store", "s3://no-such-bucket/store", "--tracking-uri", sqlite)

    stdout, stderr = good.communicate(timeout=200)
    found = checks(stdout)
    assert not [key for key in found if key[1] == "fail"], stdout
    assert good.returncode == 0, stderr
    stores = {check["where"] for check in found["store", "ok"]}
    assert len(stores) == 3  # the driver, and each node
    assert len({check["where"] for check in found["disk", "ok"]}) == 2
    assert found["token", "ok"]
    assert found["mlflow", "ok"]
    assert {check["where"] for check in found["data", "ok"]} >= {"syn-boulevard", "syn-station"}

    stdout, _ = bad.communicate(timeout=200)
    found = checks(stdout)
    assert bad.returncode == 1
    assert "Create the bucket first" in found["store", "fail"][0]["said"]
    assert "the cluster has 2: start `mlflow server`" in found["mlflow", "fail"][0]["said"]
