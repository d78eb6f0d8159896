"""clusters/Dockerfile: what of it can be known without building it."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from tests.clusters.fields import CLUSTERS, ROOT, documents

INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "EXPOSE", "CMD"}


def instructions() -> list[tuple[str, str]]:
    text = (CLUSTERS / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    split = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in split]


def test_every_line_is_an_instruction_and_stages_are_known() -> None:
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    stages: list[str] = []
    for name, rest in found:
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            assert image in stages or image.startswith("python:${PYTHON}")
            stages.append(stage)
    assert stages[-1] == "muva"  # what `docker build` makes unless told
    targets = re.findall(r"--target (\w+)", (CLUSTERS / "Dockerfile").read_text())
    (compose,) = documents("compose.yaml")
    builds = [each["build"] for each in compose["services"].values() if "build" in each]
    assert set(targets) | {build["target"] for build in builds} <= set(stages)
    for build in builds:
        assert (CLUSTERS / build["context"] / build["dockerfile"]).samefile(CLUSTERS / "Dockerfile")


def test_every_copied_source_exists_and_is_let_through() -> None:
    ignored = (CLUSTERS / "Dockerfile.dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    sources = [s for name, rest in instructions() if name == "COPY" for s in rest.split()[:-1]]
    assert "*" in ignored
    assert set(sources) == let_through
    assert all((ROOT / source).exists() for source in sources)


def test_python_is_one_that_the_package_takes_and_the_tests_run_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", (CLUSTERS / "Dockerfile").read_text(), re.M)
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


def test_everything_is_installed_as_the_lock_has_it() -> None:
    installs = [
        command
        for name, rest in instructions()
        if name == "RUN"
        for command in re.findall(r"pip install[^&]*", rest)
    ]
    assert len(installs) == 3
    assert all("--constraint requirements.lock" in command for command in installs)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"\.\[(\w+)\]", " ".join(installs)))
    assert named <= set(extras["optional-dependencies"])
    locked = (ROOT / "requirements.lock").read_text().lower()
    for extra in named:
        for needed in extras["optional-dependencies"][extra]:
            name = re.split(r"[\[<>=]", needed)[0]
            if name == "muva":  # an extra that takes another one along
                continue
            assert f"\n{name}==" in locked


@pytest.mark.parametrize("torch", ["cpu", "cuda"])
def test_the_shell_in_it_runs(torch: str) -> None:
    (choice,) = [rest for name, rest in instructions() if name == "RUN" and "case" in rest]
    script = choice.replace("pip install", "echo pip install")
    done = subprocess.run(
        ["sh", "-euc", script], env={"TORCH": torch, "PATH": "/bin:/usr/bin"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert ("whl/cpu" in done.stdout) == (torch == "cpu")
    wrong = subprocess.run(
        ["sh", "-euc", script], env={"TORCH": "rocm", "PATH": "/bin:/usr/bin"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "expected cpu or cuda" in wrong.stderr


def test_no_container_runs_as_root_or_without_a_token() -> None:
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            stages[rest.partition(" AS ")[2]] = []
        elif stages:
            stages[list(stages)[-1]].append((name, rest))
    for stage in ("muva", "mlflow"):
        assert ("USER", "muva") in stages[stage]
    assert any(name == "ENV" and "RAY_AUTH_MODE=token" in rest for name, rest in stages["base"])
