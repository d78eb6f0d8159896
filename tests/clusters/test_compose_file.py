"""clusters/compose.yaml by Compose's own fields, and what it opens to whom."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.fields import CLUSTERS, ROOT, documents, misfits
from workflows.verbs.serve import serve_verb

LISTING = "compose_fields.json"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    (file,) = documents("compose.yaml")
    return file


def test_every_field_is_one_that_compose_knows(compose: dict[str, Any]) -> None:
    assert misfits(compose, "Compose", LISTING) == []
    wrong = copy.deepcopy(compose)
    wrong["services"]["head"]["port"] = ["8265"]
    wrong["services"]["head"]["depends_on"]["mlflow"] = {}
    assert len(misfits(wrong, "Compose", LISTING)) == 2


def test_it_is_a_head_two_workers_and_what_they_need(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {
        "head",
        "worker",
        "serve",
        "mlflow",
        "postgres",
        "s3",
        "bucket",
        "prometheus",
    }
    assert services["worker"]["deploy"]["replicas"] == 2
    for name, service in services.items():
        wanted = service.get("depends_on", {})
        assert set(wanted) <= set(services), name
        if isinstance(wanted, dict):
            healthy = {n for n, how in wanted.items() if how["condition"] == "service_healthy"}
            assert all("healthcheck" in services[each] for each in healthy), name
        volumes = [volume.split(":")[0] for volume in service.get("volumes", [])]
        for volume in volumes:
            known = (
                (CLUSTERS / volume).is_file() if volume[0] == "." else volume in compose["volumes"]
            )
            assert known, volume


def test_only_loopback_is_published(compose: dict[str, Any]) -> None:
    published = [port for each in compose["services"].values() for port in each.get("ports", [])]
    assert len(published) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)


def test_ray_asks_for_the_token_which_is_a_file_and_no_variable(compose: dict[str, Any]) -> None:
    for name in ("head", "worker"):
        environment = compose["services"][name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert "RAY_AUTH_TOKEN" not in environment
        assert compose["services"][name]["secrets"] == ["ray_token"]
    passwords = re.findall(
        r"^.*(?:PASSWORD|SECRET).*$", (CLUSTERS / "compose.yaml").read_text(), re.M
    )
    assert passwords
    assert all(re.search(r"\$\{\w+_PASSWORD:\?", line) for line in passwords)


def test_the_service_starts_when_it_is_asked_for_with_options_that_it_has(
    compose: dict[str, Any],
) -> None:
    service = compose["services"]["serve"]
    assert service["profiles"] == ["serve"]
    _, verb, model, *options = service["command"].split()
    assert (verb, model) == ("serve", "${MODEL:-synthetic}")
    known = {name for parameter in serve_verb.params for name in parameter.opts}
    assert {option.partition("=")[0] for option in options} <= known


def test_the_rules_read_counters_that_the_code_has() -> None:
    code = (ROOT / "workflows" / "runtime" / "expert_pool.py").read_text()
    counters = set(re.findall(r'Metric\(\s*"(\w+)"', code))
    gauges = set(re.findall(r'Gauge\(\s*"(\w+)"', code))
    assert counters
    assert gauges
    exported = {f"ray_{name}_total" for name in counters} | {f"ray_{name}" for name in gauges}
    (rules,) = documents("prometheus-rules.yaml")
    read = set()
    for group in rules["groups"]:
        for rule in group["rules"]:
            read |= set(re.findall(r"\bray_muva\w+", rule["expr"]))
    assert read == exported


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Prometheus")
def test_prometheus_reads_its_settings_and_computes_what_the_rules_say(tmp_path: Path) -> None:
    for source, name in (
        (CLUSTERS / "prometheus-rules.yaml", "prometheus-rules.yaml"),
        (CLUSTERS / "prometheus-rules.yaml", "rules.yaml"),  # as compose.yaml mounts it
        (CLUSTERS / "prometheus.yaml", "prometheus.yaml"),
        (Path(__file__).with_name("prometheus_rules_test.yaml"), "prometheus_rules_test.yaml"),
    ):
        shutil.copy(source, tmp_path / name)
    for words in ("check config prometheus.yaml", "test rules prometheus_rules_test.yaml"):
        done = subprocess.run(
            ["promtool", *words.split()], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_looks_where_ray_tells_its_figures(compose: dict[str, Any]) -> None:
    (prometheus,) = documents("prometheus.yaml")
    (job,) = prometheus["scrape_configs"]
    (looked_up,) = job["dns_sd_configs"]
    assert set(looked_up["names"]) == {"head", "worker"}
    for name in looked_up["names"]:
        command = compose["services"][name]["command"]
        assert f"--metrics-export-port={looked_up['port']}" in command
