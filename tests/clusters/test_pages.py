"""The commands in clusters/*.md: options and files exist, settings can be read."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from muva.config import load_recipe
from tests.clusters.fields import CLUSTERS, ROOT, documents
from workflows.cli import muva as muva_command
from workflows.jobs.cluster_settings import load_cluster

PAGES = sorted(path.relative_to(CLUSTERS).as_posix() for path in CLUSTERS.rglob("*.md"))
OUTSIDE = {
    *("aws", "docker", "kubectl", "sbatch", "scancel", "sacct", "tail", "make", "source", "pip"),
    *("initdb", "pg_ctl", "createdb", "sed", "mkdir", "rm", "kill", "cat", "curl", "chmod", "for"),
    *("do", "done", "true", "export", "python", "openssl"),
}
"""Programs whose options are not looked at."""


def commands(page: str) -> Iterator[list[str]]:
    """The words of each command of a page's shell blocks; comments and here-documents left out."""
    text = (CLUSTERS / page).read_text()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        block = re.sub(r"\$\([^()]*\)", "SUBSTITUTED", block)
        block = re.sub(r"<<'?SETTINGS'?\n.*?\nSETTINGS\n", "\n", block, flags=re.DOTALL)
        for line in block.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
            lexer.whitespace_split = True
            lexer.commenters = "#" if "://" not in line.partition("#")[0] or " #" in line else ""
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set(";&|"):
                    if words:
                        yield words
                    words = []
                else:
                    words.append(word)


def of_program(program: str) -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for words in commands(page):
            bare = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)] or words
            if bare[0] == program:
                found.append((page, bare[1:]))
    return found


def checked(command: click.Command, words: list[str], name: str) -> None:
    """Fails unless the words are options and arguments that the command takes."""
    context = click.Context(command, info_name=name)
    if isinstance(command, click.Group):
        inner = command.get_command(context, words[0])
        assert inner is not None, f"{name} {words[0]}"
        checked(inner, words[1:], f"{name} {words[0]}")
        return
    cut = words.index("--") if "--" in words else len(words)
    own, verb = words[:cut], words[cut + 1 :]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    options = {word.partition("=")[0] for word in own if word.startswith("-")}
    assert options <= known | {"--help"}, name
    if verb and name.endswith("submit"):
        checked(muva_command, verb, "muva")


def test_every_program_is_ours_rays_mlflows_or_known() -> None:
    for page in PAGES:
        for words in commands(page):
            first = next((word for word in words if not re.fullmatch(r"\w+=.*", word)), None)
            assert first is None or first in {"muva", "ray", "mlflow", *OUTSIDE}, (page, words)


def test_muvas_commands_and_options_exist() -> None:
    found = of_program("muva")
    assert len(found) > 10
    for _, words in found:
        checked(muva_command, words, "muva")


def test_rays_commands_and_options_exist() -> None:
    from ray.scripts.scripts import cli

    found = of_program("ray")
    assert {words[0] for _, words in found} >= {"start", "up", "down", "attach", "get-auth-token"}
    for _, words in found:
        checked(cli, [word for word in words if word not in "<>"], "ray")


def test_rays_options_in_the_cluster_files_exist() -> None:
    from ray.scripts.scripts import cli

    (aws,), (compose,) = documents("aws.yaml"), documents("compose.yaml")
    lines = [
        *(line for role in ("head", "worker") for line in aws[f"{role}_start_ray_commands"]),
        *(each["command"] for name, each in compose["services"].items() if name[0] in "hw"),
        (CLUSTERS / "slurm" / "muva.sbatch").read_text().replace("\\\n", " "),
    ]
    starts = [found for line in lines for found in re.findall(r"\bray start +(--.*)", line)]
    assert len(starts) == 5
    known = {option for each in cli.commands["start"].params for option in each.opts}
    for rest in starts:
        assert {
            word.partition("=")[0] for word in re.findall(r"(?<!\S)--[a-z-]+\S*", rest)
        } <= known


def test_mlflows_options_exist() -> None:
    server = importlib.import_module("mlflow.cli").server
    known = {option for each in server.params for option in each.opts}
    lines = [words for _, words in of_program("mlflow")]
    (kubernetes, aws, compose) = (
        (CLUSTERS / file).read_text()
        for file in ("kubernetes/mlflow.yaml", "aws.yaml", "compose.yaml")
    )
    lines.append(re.findall(r"^ +- (--[a-z-]+=.*)$", kubernetes, re.MULTILINE))
    for text in (aws, compose):
        joined = re.sub(r"\n\s+(?=--)", " ", text)
        lines += [line.split() for line in re.findall(r"mlflow server ([^\n]*)", joined)]
    assert len(lines) >= 5
    for words in lines:
        assert {w.partition("=")[0] for w in words if w.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    text = (CLUSTERS / page).read_text()
    here = (CLUSTERS / page).parent
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert all((here / link).exists() for link in links)
    named = re.findall(r"\bclusters/[\w./-]*\w", re.sub(r"~/\.muva/clusters\S*", "", text))
    assert all((ROOT / each).exists() for each in named if "NAME" not in each)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_a_page_goes_from_nothing_to_the_table_and_back(page: str) -> None:
    text = (CLUSTERS / page).read_text()
    for heading in ("**Prerequisites**", "**Cost**", "## From nothing to the table"):
        assert heading in text
    assert "## Back to nothing" in text
    assert "## What listens where" in text
    assert re.search(r"\brun demo$", text, re.MULTILINE)
    load_recipe("demo")


@pytest.mark.parametrize("page", ["compose.md", "aws.md", "kubernetes/README.md"])
def test_the_settings_that_a_page_writes_can_be_read(page: str, tmp_path: Path) -> None:
    text = (CLUSTERS / page).read_text()
    (settings,) = re.findall(r"<<'?SETTINGS'?\n(.*?)\nSETTINGS\n", text, re.DOTALL)
    file = tmp_path / "settings.yaml"
    file.write_text(settings.replace("$BUCKET", "people"))
    cluster = load_cluster(str(file))
    assert cluster.address == "http://127.0.0.1:8265"
    assert cluster.store is not None
    assert cluster.store.startswith("s3://")
    assert cluster.tracking_uri is not None


def test_every_cluster_has_a_page_in_the_table() -> None:
    index = (CLUSTERS / "README.md").read_text()
    for page in PAGES:
        assert page == "README.md" or f"]({page})" in index or f"]({Path(page).parent}/)" in index
