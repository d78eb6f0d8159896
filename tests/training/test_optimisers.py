from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from muva.config import Stage1Config, Stage2Config
from muva.errors import MuvaError
from muva.training.optimisers import (
    optimiser_state,
    restore_optimiser,
    set_learning_rate,
    stage1_lr,
    stage1_optimiser,
    stage2_lr,
    stage2_optimiser,
    trained_parameters,
)
from tests.model.small import small_model

GOLDEN = Path(__file__).parents[1] / "golden"


def test_learning_rates_are_the_recorded_ones() -> None:
    with np.load(GOLDEN / "model.npz") as recorded:
        stage1 = recorded["stage1/lr_by_epoch_1_to_120"]
        stage2 = recorded["stage2/lr_by_epoch_1_to_60"]
    ours1 = [stage1_lr(epoch, Stage1Config()) for epoch in range(1, 121)]
    ours2 = [stage2_lr(epoch, Stage2Config()) for epoch in range(1, 61)]
    np.testing.assert_allclose(ours1, stage1, rtol=1e-12)
    np.testing.assert_allclose(ours2, stage2[:, 0], rtol=1e-12)


def test_there_may_be_no_warm_up() -> None:
    assert stage2_lr(1, Stage2Config(warmup_epochs=0, lr=1.0)) == 1.0
    assert stage1_lr(120, Stage1Config(warmup_epochs=0)) == pytest.approx(1e-6)


def test_each_group_has_its_rate_and_decay() -> None:
    model = small_model()
    settings = Stage2Config(lr=1.0, head_lr_factor=3.0, part_token_lr_factor=5.0, weight_decay=0.5)
    optimiser = stage2_optimiser(model, settings)
    set_learning_rate(optimiser, 2.0)
    of = {
        parameter: (group["lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    rates = {name: of[parameter] for name, parameter in trained_parameters(model).items()}
    assert rates.pop("bn_neck.weight") == rates.pop("classifier.weight") == (6.0, 0.5)
    assert rates.pop("image_encoder.part_tokens") == (10.0, 0.5)
    for name, rate in rates.items():
        assert rate == ((20.0, 0.0) if "mask_predictor" in name else (2.0, 0.5)), name


def test_what_stage_2_trains_is_what_the_release_trains() -> None:
    arrays = json.loads((GOLDEN / "model.json").read_text())["arrays"]
    recorded = {name.split("/", 2)[2] for name in arrays if name.startswith("stage2/grad_norm/")}
    ours = set(trained_parameters(small_model()))
    shorter = {name for name in recorded if ".2." not in name.partition("blocks")[2][:4]}
    assert len(ours) == len(shorter)
    frozen = ("text_encoder.", "contexts", "bn_neck.bias", "image_encoder.conv1")
    assert not [name for name in ours if name.startswith(frozen)]


def test_moments_survive_saving_and_go_to_their_parameters() -> None:
    contexts = nn.Parameter(torch.randn(3, 2))
    first, second = (stage1_optimiser(contexts, Stage1Config()) for _ in range(2))
    contexts.grad = torch.randn(3, 2)
    first.step()
    state = optimiser_state(first, {"contexts": contexts})
    restore_optimiser(second, {"contexts": contexts}, state)
    for key, value in first.state[contexts].items():
        torch.testing.assert_close(second.state[contexts][key], value, rtol=0, atol=0)
    with pytest.raises(MuvaError, match="has a state for other, which this model lacks"):
        restore_optimiser(second, {"contexts": contexts}, {"other/step": torch.zeros(())})
    with pytest.raises(MuvaError, match="has no state for contexts"):
        restore_optimiser(second, {"contexts": contexts}, {})
