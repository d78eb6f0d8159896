"""The section `execution`: a recipe states it, the command line overrides it, no address has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from muva.config import (
    ExecutionConfig,
    ExperimentConfig,
    TuneConfig,
    load_recipe,
    to_yaml,
    with_settings,
)
from muva.config.search_space import space_for
from muva.data.artifacts import fingerprint
from muva.data.store import open_store
from muva.errors import SettingsError
from muva.training.compute import Compute
from workflows.runtime.workers import Workers
from workflows.session import Session, open_session
from workflows.steps.mlflow_records import run_params
from workflows.steps.pipeline import pipeline_run
from workflows.steps.train import declare_training
from workflows.tuning.study import study_of
from workflows.verb import override_option, worker_options

OTHERWISE: dict[str, Any] = {
    "workers": 3,
    "cpus_per_worker": 2,
    "gpus_per_worker": 0,
    "micro_batch": 5,
    "activation_checkpointing": True,
    "compile": True,
    "channels_last": True,
    "deterministic": True,
    "attention": "plain",
    "loaders": 4,
    "keep_every": 7,
}
"""Each setting at another value than its default; CUDA graphs go with no micro-batch."""


def elsewhere(config: ExperimentConfig) -> ExperimentConfig:
    return with_settings(config, {"execution": OTHERWISE}, where="test")


def effective(tmp_path: Path, recipe: dict[str, Any], *words: str) -> ExecutionConfig:
    """The section that a verb gets of a recipe and a command line."""
    found = []

    @click.command()
    @override_option
    @worker_options
    def verb(overrides: tuple[str, ...]) -> None:
        found.append(load_recipe(tmp_path / "recipe.yaml", overrides=overrides).execution)

    config = with_settings(ExperimentConfig(), {"execution": recipe}, where="test")
    (tmp_path / "recipe.yaml").write_text(to_yaml(config))
    result = CliRunner().invoke(verb, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def test_a_section_that_differs_differs_in_every_setting() -> None:
    changed = elsewhere(ExperimentConfig()).execution
    same = {
        name
        for name in ExecutionConfig.model_fields
        if getattr(changed, name) == getattr(ExecutionConfig(), name)
    }
    assert same == {"cuda_graphs"}


def test_what_a_recipe_states_holds_without_options(tmp_path: Path) -> None:
    assert effective(tmp_path, OTHERWISE) == ExecutionConfig(**OTHERWISE)


def test_options_override_the_recipe_and_set(tmp_path: Path) -> None:
    words = ["--workers", "2", "--set", "execution.workers=9", "--set", "execution.loaders=1"]
    found = effective(tmp_path, OTHERWISE, *words, "--gpus-per-worker", "1")
    expected = {**OTHERWISE, "workers": 2, "loaders": 1, "gpus_per_worker": 1}
    assert found == ExecutionConfig(**expected)


def test_what_a_recipe_switches_on_an_option_switches_off(tmp_path: Path) -> None:
    found = effective(tmp_path, OTHERWISE, "--no-compile", "--no-deterministic")
    expected = {**OTHERWISE, "compile": False, "deterministic": False}
    assert found == ExecutionConfig(**expected)
    assert effective(tmp_path, {}, "--compile").compile


def test_there_is_an_option_for_every_setting_with_its_help() -> None:
    command = click.command()(override_option(worker_options(lambda overrides: None)))
    options = {option.name: option for option in command.params}
    assert set(options) - {"overrides"} == set(ExecutionConfig.model_fields)
    for name, field in ExecutionConfig.model_fields.items():
        option = options[name]
        assert isinstance(option, click.Option)
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert option.help == " ".join((field.description or "").split()) != ""
        assert bool(option.secondary_opts) == (field.annotation is bool)


def test_cuda_graphs_of_micro_batches_are_refused() -> None:
    changes = ["execution.cuda_graphs=true", "execution.micro_batch=4"]
    with pytest.raises(SettingsError, match=r"execution: cuda_graphs replays .* leave out one"):
        load_recipe("base", overrides=changes)


def test_workers_compute_as_the_recipe_says() -> None:
    workers = Workers.of(ExecutionConfig(**OTHERWISE))
    found = {
        "workers": workers.count,
        "cpus_per_worker": workers.cpus_each,
        "gpus_per_worker": workers.gpus_each,
        "keep_every": workers.keep_every,
        **dataclasses.asdict(workers.compute),
        "loaders": workers.loaders,
    }
    assert found == {**OTHERWISE, "cuda_graphs": False}
    assert Workers.of(ExecutionConfig()) == Workers()
    assert Compute.of(ExecutionConfig(), loaders=0) == Compute()


def test_no_fingerprint_depends_on_it() -> None:
    config = ExperimentConfig()
    assert elsewhere(config) != config
    assert fingerprint(elsewhere(config)) == fingerprint(config) == "5bf5d567a9127a00"
    assert run_params(elsewhere(config)) == run_params(config)


def test_no_study_depends_on_it(tmp_path: Path) -> None:
    config = load_recipe("demo")
    settings = config.tune or TuneConfig()
    space = space_for(settings.space, config)
    store = open_store(tmp_path)
    one, other = (
        study_of(store, recipe, settings, space, objectives=("mAP",), inputs={})
        for recipe in (config, elsewhere(config))
    )
    assert one.artifact == other.artifact and one.config == other.config
    assert "execution" not in one.config["experiment"]


def test_no_address_of_a_step_and_no_run_of_a_pipeline_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipe("demo")
    session = open_session(home=tmp_path)

    @contextmanager
    def run(self: Session, name: str, *, key: str, params: Any, **_: object) -> Iterator[None]:
        opened.append((name, key, params))
        yield None

    monkeypatch.setattr(Session, "run", run)
    declared = []
    for one in (config, elsewhere(config)):
        opened: list[Any] = []
        training = declare_training(session, sources=[], labels=None, config=one, name="muva")
        with pipeline_run(session, one):
            pass
        steps = (training.prompts, training.encoder)
        declared.append([(step.artifact, step.settings) for step in steps] + opened)
    assert len(declared[0]) == 3
    assert declared[0] == declared[1]
