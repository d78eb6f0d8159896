"""KubeRay's and Kubernetes' fields in clusters/kubernetes, by the types that their readers have."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.clusters.fields import ROOT, documents, misfits
from workflows.serving.application import build
from workflows.serving.settings import ServeSettings
from workflows.serving.token import access_by

LISTING = "kubernetes_fields.json"
FILES = ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml", "mlflow.yaml")


def resource(kind: str) -> dict[str, Any]:
    found = [each for file in FILES for each in documents(f"kubernetes/{file}")]
    (one,) = [each for each in found if each["kind"] == kind]
    return one


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService", "Deployment", "Service"])
def test_every_field_is_one_that_its_reader_knows(kind: str) -> None:
    assert misfits(resource(kind), kind, LISTING) == []


def test_a_wrong_field_would_be_found() -> None:
    job = copy.deepcopy(resource("RayJob"))
    job["spec"]["ttlSecondAfterFinished"] = 600
    job["spec"]["suspend"] = "true"
    del job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "env"
    ] = [{"value": 1}]
    found = misfits(job, "RayJob", LISTING)
    assert len(found) == 5
    assert "RayJob.spec: there is no field ttlSecondAfterFinished" in found
    assert any("suspend: expected boolean" in each for each in found)


def test_ray_is_the_locks_and_asks_for_a_token() -> None:
    (locked,) = [
        line.removeprefix("ray==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line.startswith("ray==")
    ]
    for cluster in (
        resource("RayCluster")["spec"],
        resource("RayJob")["spec"]["rayClusterSpec"],
        resource("RayService")["spec"]["rayClusterConfig"],
    ):
        assert cluster["rayVersion"] == locked
        assert cluster["authOptions"] == {"mode": "token"}


def test_kueue_may_hold_the_job_and_it_leaves_nothing() -> None:
    job = resource("RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    spec = job["spec"]
    assert spec["suspend"] is True
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    # Kueue counts what the job asks for when it admits it.
    assert "enableInTreeAutoscaling" not in spec["rayClusterSpec"]
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


def test_the_cluster_that_stays_starts_from_zero() -> None:
    cluster = resource("RayCluster")["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    (gpus,) = [group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpus"]
    (container,) = gpus["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_secrets_are_named_and_not_written_down() -> None:
    for cluster in (resource("RayCluster")["spec"], resource("RayJob")["spec"]["rayClusterSpec"]):
        for group in groups(cluster):
            (container,) = group["template"]["spec"]["containers"]
            assert {each["name"] for each in container["env"]} == {
                "MUVA_STORE",
                "MLFLOW_TRACKING_URI",
            }
            assert container["envFrom"] == [{"secretRef": {"name": "muva-store"}}]
    (server,) = resource("Deployment")["spec"]["template"]["spec"]["containers"]
    (database,) = server["env"]
    assert database["valueFrom"] == {"secretKeyRef": {"name": "muva-mlflow", "key": "database"}}


def test_the_service_is_one_that_ray_serve_and_the_application_take() -> None:
    spec = resource("RayService")["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (one,) = config.applications
    module, _, name = one.import_path.partition(":")
    assert getattr(importlib.import_module(module), name) is build
    assert one.args is not None
    settings = ServeSettings(**one.args, access=access_by("x" * 16, hosts=None))
    (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert settings.scaling.cpus <= container["resources"]["requests"]["cpu"]
    assert settings.scaling.max_replicas <= workers["maxReplicas"]


def test_the_services_token_is_a_secret_and_no_argument() -> None:
    spec = resource("RayService")["spec"]
    assert "token" not in spec["serveConfigV2"]
    for group in groups(spec["rayClusterConfig"]):
        (container,) = group["template"]["spec"]["containers"]
        (token,) = [each for each in container["env"] if each["name"] == "MUVA_SERVE_TOKEN"]
        assert token["valueFrom"] == {"secretKeyRef": {"name": "muva-serve-token", "key": "token"}}


def test_the_server_knows_the_name_that_the_jobs_call_it_by() -> None:
    (server,) = resource("Deployment")["spec"]["template"]["spec"]["containers"]
    (allowed,) = [each for each in server["args"] if each.startswith("--allowed-hosts=")]
    service = resource("Service")
    assert f"{service['metadata']['name']}:*" in allowed.partition("=")[2].split(",")
    assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    labels = resource("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    (head,) = resource("RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    (uri,) = [each["value"] for each in head["env"] if each["name"] == "MLFLOW_TRACKING_URI"]
    assert uri == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
