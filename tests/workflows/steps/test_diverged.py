"""A training whose loss is not finite: what it leaves repeats its step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from muva.config import load_recipe, with_settings
from muva.data.artifacts import open_artifact
from muva.errors import MuvaError
from muva.training.checkpoints import load_checkpoint
from workflows.session import open_session
from workflows.steps.diverged import repeat_diverged
from workflows.steps.pipeline import run_pipeline


@pytest.fixture(scope="module")
def home(grounded_home: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grounded_home(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize(
    ("stage", "lr", "workers"), [("stage1", 1e25, 1), ("stage1", 2e25, 2), ("stage2", 1e30, 2)]
)
def test_a_training_that_diverges_keeps_what_repeats_its_step(
    smoke_recipe: Path, home: Path, stage: str, lr: float, workers: int
) -> None:
    session = dataclasses.replace(open_session(home=home), tracking_uri=None)
    settings = {"lr": lr, "warmup_epochs": 0, "precision": "fp32"}
    changes = {f"{stage}.{key}": value for key, value in settings.items()}
    changes |= {"variants": ["muva"], "execution.workers": workers}
    config = with_settings(load_recipe(smoke_recipe), changes, where="test")
    with pytest.raises(MuvaError, match=rf"^stage {stage[-1]} diverged in epoch ") as stopped:
        run_pipeline(session, config)
    message = str(stopped.value)
    uri = message.split("python -m workflows.verbs.diverged ")[1].split("`")[0]
    state = load_checkpoint(Path(uri) / "diverged")
    found = repeat_diverged(open_artifact(uri))
    assert (found["epoch"], found["step"]) == (state["epoch"], state["step"])
    assert f"in epoch {found['epoch']}, step {found['step']}" in message
    assert not np.isfinite(found["losses"]["loss"])
    assert all(image_id in message for image_id in found["images"])
    assert bool(found["images"]) == (stage == "stage2")


def test_where_nothing_diverged_there_is_nothing_to_repeat(tmp_path: Path) -> None:
    with pytest.raises(MuvaError, match="holds no checkpoint of a diverged step"):
        repeat_diverged(open_artifact(f"{tmp_path}/models/muva-0123456789abcdef"))
