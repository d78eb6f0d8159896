from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from muva.errors import MuvaError
from muva.training.checkpoints import load_checkpoint, save_checkpoint

CHECKPOINT = {
    "epoch": 3,
    "model/weight": torch.randn(4, 5),
    "scaler/scale": 2.0,
    "note": "as it is",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint", CHECKPOINT)
    return tmp_path / "checkpoint"


def test_a_checkpoint_is_loaded_bit_for_bit(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    assert checkpoint.keys() == CHECKPOINT.keys()
    assert torch.equal(torch.as_tensor(checkpoint["model/weight"]), CHECKPOINT["model/weight"])
    assert (checkpoint["epoch"], checkpoint["scaler/scale"], checkpoint["note"]) == (
        3,
        2.0,
        "as it is",
    )


def test_a_checkpoint_is_written_over(folder: Path) -> None:
    save_checkpoint(folder, {"epoch": 4})
    assert load_checkpoint(folder) == {"epoch": 4}


def test_damage_is_found(folder: Path) -> None:
    tensors = folder / "state.safetensors"
    damaged = bytearray(tensors.read_bytes())
    damaged[-3] ^= 1
    tensors.write_bytes(damaged)
    with pytest.raises(MuvaError, match=r"is damaged.*resume from an earlier checkpoint"):
        load_checkpoint(folder)


def test_a_truncated_description_is_named(folder: Path) -> None:
    description = folder / "state.json"
    description.write_text(description.read_text()[:-20])
    with pytest.raises(MuvaError, match=r"state\.json is damaged"):
        load_checkpoint(folder)


def test_an_incomplete_checkpoint_is_refused(folder: Path) -> None:
    (folder / "state.json").unlink()
    with pytest.raises(MuvaError, match="is missing, so saving it was interrupted"):
        load_checkpoint(folder)


def test_another_format_is_refused(folder: Path) -> None:
    description = folder / "state.json"
    stored = json.loads(description.read_text())
    description.write_text(json.dumps({**stored, "format_version": 99}))
    with pytest.raises(MuvaError, match="has format version 99, but this program reads version 1"):
        load_checkpoint(folder)
