"""What the doctor makes of what it finds; on a cluster of nodes it is in tests/clusters."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from muva.config import load_recipe
from muva.data import plug_ins
from muva.errors import MuvaError, SettingsError
from tests.clusters.fields import ROOT
from workflows.jobs import readiness
from workflows.jobs.checks import driver_checks
from workflows.runtime.autoscaling import resources, wait_for
from workflows.runtime.local import usable_port
from workflows.runtime.node_checks import NEEDED, PLUG_INS, Gpu, NodeReport, node_report, versions
from workflows.session import open_session
from workflows.verbs.doctor import doctor_verb

GB = 10**9


def report(**changes: Any) -> NodeReport:
    usual = NodeReport(
        host="node",
        python="3.11.2",
        packages=versions(),
        memory_bytes=64 * GB,
        temporary_folder="/tmp",
        free_bytes=100 * GB,
        gpus=[],
        torch_finds_gpus=None,
        store_problem="",
        missing_files=[],
    )
    return dataclasses.replace(usual, **changes)


def states(checks: Any) -> list[str]:
    return [check.state for check in checks]


def node(**resources: float) -> dict[str, Any]:
    return {"NodeID": "abc", "Resources": resources}


def test_what_is_needed_is_what_the_project_depends_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(NEEDED) == [re.split(r"[\[<>=]", each)[0] for each in project["dependencies"]]
    assert None not in versions().values()


def test_versions_are_compared_with_the_lock_and_with_each_other() -> None:
    found = versions()
    assert states(readiness.version_checks("node", "3.11.2", found, driver="3.11.9"))[0] == "ok"
    assert states(readiness.version_checks("node", "3.12.0", found, driver="3.11.9"))[0] == "fail"
    assert states(readiness.version_checks("here", "3.10.0", found))[0] == "fail"
    locked = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.M))
    as_locked = {**found, "torch": f"{locked['torch']}+cpu"}
    (_, packages) = readiness.version_checks("node", "3.11.2", as_locked)
    assert packages.state == "ok"
    (_, packages) = readiness.version_checks("node", "3.11.2", {**found, "ray": "2.59.0"})
    assert packages.state == "note"
    assert f"ray 2.59.0 (locked: {locked['ray']})" in packages.said
    (_, packages) = readiness.version_checks("node", "3.11.2", {**found, "optuna": None})
    assert (packages.state, packages.said.split()[0]) == ("fail", "optuna")
    other = report(packages={**found, "numpy": "2.3.0"})
    (differs,) = readiness.version_agreement({"a": report(), "b": other})
    assert "numpy differs: a " in differs.said
    assert not list(readiness.version_agreement({"a": report(), "b": report()}))


def test_plug_ins_are_installed_everywhere_or_nowhere() -> None:
    assert set(PLUG_INS) == set(plug_ins.PLUG_INS.values())
    with_it, without = report(plug_ins={"pillow-heif": "1.1"}), report()
    (differs,) = readiness.version_agreement({"a": with_it, "b": without})
    assert differs.state == "fail"
    assert "pillow-heif is missing on b" in differs.said
    assert not list(readiness.version_agreement({"a": with_it, "b": with_it}))


def test_a_full_disk_and_missing_weights_fail() -> None:
    assert states(readiness.machine_checks("node", report())) == ["ok"]
    poor = report(free_bytes=GB, missing_files=["/models/clip.pt"])
    disk, weights = readiness.machine_checks("node", poor)
    assert "TMPDIR" in disk.said
    assert (disk.state, weights.state) == ("fail", "fail")


def test_gpus_are_counted_by_driver_pytorch_and_ray() -> None:
    card = Gpu(name="L4", memory_bytes=24 * GB)
    good = report(gpus=[card], torch_finds_gpus=1)
    assert states(readiness.gpu_checks([node(GPU=1)], {"a": good})) == ["ok"]
    blind = report(gpus=[card], torch_finds_gpus=0)
    assert states(readiness.gpu_checks([node(GPU=1)], {"a": blind})) == ["fail"]
    assert states(readiness.gpu_checks([node()], {"a": good})) == ["ok", "fail"]
    assert states(readiness.gpu_checks([node()], {"a": report()})) == ["note"]


def test_memory_is_compared_with_the_largest_gpu_or_node(tmp_path: Path) -> None:
    session = open_session(home=tmp_path)

    def judged(recipe: str, *overrides: str, **changes: Any) -> dict[str, str]:
        config = load_recipe(recipe, overrides=overrides)
        found = readiness.recipe_checks(session, config, {"a": report(**changes)}, readable=False)
        return {check.what: check.state for check in found}

    assert judged("demo") == {"expert": "ok", "model": "ok"}
    florence = "grounding.expert=florence-2"
    assert judged("base", florence) == {"expert": "ok", "model": "ok"}
    assert judged("base", florence, memory_bytes=8 * GB) == {"expert": "ok", "model": "note"}
    assert judged("base", florence, memory_bytes=GB) == {"expert": "fail", "model": "fail"}
    assert judged("base", "model.clip=ViT-L-14", "model.stride=14")["model"] == "note"
    card = Gpu(name="L4", memory_bytes=24 * GB)
    large = "grounding.expert=qwen2.5-vl"
    assert judged("base", large, gpus=[card], torch_finds_gpus=1)["expert"] == "ok"
    whole = (large, "grounding.precision=fp32")
    assert judged("base", *whole, gpus=[card], torch_finds_gpus=1)["expert"] == "fail"


def test_data_sets_that_are_not_there_are_named_with_their_import(tmp_path: Path) -> None:
    session = open_session(home=tmp_path)
    config = load_recipe("base", overrides=["sources=[people, syn-mall]"])
    found = readiness.recipe_checks(session, config, {"a": report()}, readable=True)
    (missing, synthetic) = [check for check in found if check.what == "data"]
    assert "`muva data import people --from FOLDER`" in missing.said
    assert (missing.state, synthetic.state) == ("fail", "ok")


def test_sqlite_is_for_one_machine(tmp_path: Path) -> None:
    session = open_session(home=tmp_path)
    assert states(readiness.tracking_checks(session, nodes=1)) == ["ok"]
    (refused,) = readiness.tracking_checks(session, nodes=2)
    assert (refused.state, "mlflow server" in refused.said) == ("fail", True)
    nowhere = open_session(home=tmp_path, tracking_uri="http://127.0.0.1:9")
    assert states(readiness.tracking_checks(nowhere, nodes=1)) == ["fail"]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_folder_that_only_the_driver_can_read_fails(tmp_path: Path) -> None:
    store = open_session(home=tmp_path).store
    seen = node_report(store.uri, "doctor/probe", [])
    assert "doctor/probe" in seen.store_problem
    check = readiness.store_check("node", store.uri, seen)
    assert (check.state, "All nodes must share a folder" in check.said) == ("fail", True)
    store.write("doctor/probe", b"x")
    assert node_report(store.uri, "doctor/probe", []).store_problem == ""
    assert list(store.list("doctor/")) == ["doctor/probe"]


def test_a_store_in_the_jobs_own_copy_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    session = open_session()
    assert states(readiness.store_checks(session, "doctor/probe")) == ["ok"]
    monkeypatch.setenv("MUVA_JOB", "muva-doctor-0-1")
    assert states(readiness.store_checks(session, "doctor/probe")) == ["fail"]
    assert states(readiness.tracking_checks(session, nodes=1)) == ["fail"]


def test_on_this_machine_it_says_what_would_start(ray_session: None, tmp_path: Path) -> None:
    words = ["--home", str(tmp_path / "runs"), "--recipe", "demo"]
    done = CliRunner().invoke(doctor_verb, words)
    assert "each command starts Ray on this machine" in done.stdout
    assert "ok    mlflow" in done.stdout
    assert "ok    store      driver" in done.stdout
    checks = json.loads(CliRunner().invoke(doctor_verb, [*words, "--json"]).stdout)
    assert {check["what"] for check in checks} >= {"cluster", "python", "packages", "store", "disk"}
    expected = 1 if any(check["state"] == "fail" for check in checks) else 0
    assert done.exit_code == expected
    assert not list((tmp_path / "runs" / "store").rglob("doctor/*"))


def test_resources_are_waited_for(ray_session: None) -> None:
    wait_for({"CPU": 1})
    with pytest.raises(MuvaError, match="was asked for 10000 CPU: found"):
        wait_for({"CPU": 10_000}, within_s=0.5)
    assert resources("GPU=4, CPU=16") == {"GPU": 4, "CPU": 16}
    with pytest.raises(SettingsError, match="expected NAME=COUNT"):
        resources("GPU=no")


def test_a_cluster_that_is_gone_is_a_failed_check_among_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("workflows.runtime.cluster_address.WITHIN_S", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{usable_port(0)}")
    session = open_session(home=tmp_path)
    checks = driver_checks(session, None)
    assert [(check.what, check.state) for check in checks] == [
        ("cluster", "fail"),
        ("store", "ok"),
        ("mlflow", "ok"),
    ]
    assert "no Ray cluster responds" in checks[0].said
    assert list(session.store.list()) == []
