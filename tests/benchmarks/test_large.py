"""The check of the full size, at a small one: the same way, files and loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.large import learning_checks, run, table
from benchmarks.openai_files import Sizes
from benchmarks.phases import PHASES, Learned, Pace
from muva.config import load_recipe

SMALL = Sizes(
    patch=16, vision_width=64, vision_layers=2, text_width=64, text_layers=2, embed_dim=32,
    resolution=64,
)  # fmt: skip
LARGER = Sizes(
    patch=14, vision_width=128, vision_layers=3, text_width=64, text_layers=1, embed_dim=48,
    resolution=56,
)  # fmt: skip


def test_the_recipe_trains_on_openais_files_and_every_phase_is_measured(
    ray_session: None, tmp_path: Path
) -> None:
    config = load_recipe(
        "base",
        overrides=[
            "sources=[syn-boulevard]",
            "synthetic={train_people: 8, test_people: 3, height: 64, width: 32}",
            "model.image_height=64",
            "model.image_width=32",
            *("stage1.epochs=2", "stage2.epochs=2", "stage1.batch_size=16", "stage2.batch_size=16"),
        ],
    )
    found = run(tmp_path, config, base=SMALL, large=LARGER, large_size=(56, 28))
    assert [name for name, _, good in found.checks if not good] == []
    assert len(found.checks) == 10
    figures = json.loads(json.dumps(found.figures))
    assert tuple(figures["phases"]) == PHASES
    # 8 people, 4 cameras, 2 images each: 64 images, and 16 groups of 4 in 4 batches an epoch.
    counts = {name: phase["count"] for name, phase in figures["phases"].items()}
    assert counts == {
        "features": 64, "prompts": 2 * 4 * 4, "memory": 64, "steps": 2 * 64, "embedding": 24,
    }  # fmt: skip
    assert all(
        phase["per_s"] > 0 and phase["peak_mb"] > 100 for phase in figures["phases"].values()
    )
    assert [len(losses) for losses in figures["losses"].values()] == [8, 8]
    assert "| prompts | 32 identities |" in table(found.figures)


def test_a_rate_excludes_the_first_batch() -> None:
    pace = Pace(torch.device("cpu"), began_at=0.0, done_at=[10.0, 12.0, 14.0])
    phase = pace.phase(160, 64)
    assert (phase.per_s, phase.seconds) == (96 / 4, 14.0)
    # Two epochs: a pass of two batches, then three steps, of which the first waits.
    pace.done_at = [1, 2, 7, 8, 9, 10, 11, 14, 15, 16]
    steps = pace.steps(2, passed=2, batch=8)
    assert (steps.count, steps.seconds, steps.per_s) == (48, 7 + 5, 32 / 4)
    pace.done_at = [1, 3]
    assert pace.steps(1, passed=1, batch=8).per_s == 4.0


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"unmoved": ["proj"]}, "learning weights that stayed"),
        ({"thawed": ["image_encoder.conv1.weight"]}, "frozen weights that moved"),
        ({"losses": {"prompts": [1.0], "steps": [np.nan]}}, "losses"),
        ({"features": np.ones((2, 4)) / 2}, "features"),
        ({"deviation": 0.1}, "the bundle's features from the model's"),
    ],
)
def test_a_failed_check_is_reported(change: dict[str, object], wrong: str) -> None:
    sound: dict[str, object] = {
        "phases": {},
        "losses": {"prompts": [1.0], "steps": [2.0]},
        "unmoved": [],
        "thawed": [],
        "features": np.eye(128)[:2],
        "deviation": 0.0,
    }
    config = load_recipe("base")
    for given, expected in ((sound, []), ({**sound, **change}, [wrong])):
        checks = learning_checks(Learned(**given), config, SMALL)  # pyright: ignore[reportArgumentType]
        assert [name for name, _, good in checks if not good] == expected
