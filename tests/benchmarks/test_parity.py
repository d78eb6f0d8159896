from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.parity import difference, main
from tests.training.release_oracle import compute, read_arrays, record, write_arrays

GOLDEN = Path(__file__).parents[1] / "golden"

OTHER_SETTINGS: dict[str, dict[str, Any]] = {
    "head only": {"parts": [0]},
    "head and legs": {"parts": [0, 2]},
    "upper body and legs": {"parts": [1, 2], "template": "part-agnostic"},
    "part-agnostic": {"template": "part-agnostic"},
    "part-agnostic at night": {"template": "part-agnostic", "domain_context": "taken at night"},
    "at night": {"domain_context": "taken at night", "context_tokens": 2},
    "stride 12": {"stride": 12},
    "stride 12, bands": {"stride": 12, "part_token_init": "patch_avg", "image_size": (112, 48)},
    "bands of two parts": {"part_token_init": "patch_avg", "parts": [0, 1]},
    "bands": {"part_token_init": "patch_avg"},
    "class token": {"part_token_init": "cls"},
    "online": {"gating": "online", "mask_max_value": 3.0},
    "online, strong, mse": {"gating": "online", "mask_max_value": 100.0, "mask_loss": "mse"},
    "mse": {"mask_loss": "mse"},
    "one head": {"predictor_heads": 1},
    "eight heads": {"predictor_heads": 8},
    "no layer norm": {"predictor_layer_norm": False},
    "no shortcut": {"predictor_shortcut": False},
    "neither": {"predictor_layer_norm": False, "predictor_shortcut": False},
    "normalised": {"i2t_normalised": True, "i2t_temperature": 0.07},
    "temperature alone": {"i2t_temperature": 3.0},
    "soft memory": {"memory_hard_update": False},
    "slow memory": {"memory_momentum": 0.9, "memory_temperature": 0.05},
    "identities apart": {"pids": (3, 0, 1, 3, 0, 3, 1, 0), "memory_hard_update": False},
    "heads of other widths": {
        "clip": {"vision_width": 96, "vision_heads": 3, "text_width": 32, "text_heads": 2}
    },
    "identities apart, hard": {"pids": (3, 0, 1, 3, 0, 3, 1, 0)},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many small products: forty times as fast on a busy machine when threads do not wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_golden_files_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(GOLDEN / "model.json"), str(GOLDEN / "retrieval.npz")]
    written = tmp_path / "parity.json"
    assert main([*files, "--check", "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(written.read_text())
    assert list(figures) == files
    for check in (check for checks in figures.values() for check in checks):
        assert check["verdict"] == "ok"
        assert f"{check['difference']:.3e}" in printed
    assert "FAIL" not in printed
    assert "stage2/memory_after" in printed and "rerank_mean_ap" in printed


def test_every_recorded_result_of_the_golden_file_is_compared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([str(GOLDEN / "model.json")])
    compared = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    results = [
        name
        for name in json.loads((GOLDEN / "model.json").read_text())["arrays"]
        if not name.startswith(("input/", "clip/", "muva/")) and name != "stage1/centroid_pids"
    ]
    assert set(results) <= compared


def test_the_oracle_of_these_tests_gives_the_golden_numbers() -> None:
    settings = json.loads((GOLDEN / "model.json").read_text())
    arrays = read_arrays(GOLDEN / "model.json")
    outputs = compute(settings, arrays)
    apart = {
        name: difference(value, arrays[name])
        for name, value in outputs.items()
        if "param_sum" not in name
    }
    assert len(apart) > 90
    assert not {name: value for name, value in apart.items() if value > 2e-5}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_other_settings_agree_with_the_oracle(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record(tmp_path, **OTHER_SETTINGS[name])
    status = main([str(path)])
    failures = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert (failures, status) == ([], 0)


@pytest.mark.parametrize(
    ("recorded", "assumed"),
    [
        ({"gating": "online", "mask_max_value": 3.0}, {"gating": "offline"}),
        ({}, {"mask_loss": "mse"}),
        ({}, {"predictor_shortcut": False}),
        ({}, {"predictor_heads": 4}),
        ({}, {"i2t_normalised": True}),
        ({}, {"memory_hard_update": False}),
        ({}, {"memory_temperature": 0.011}),
        ({}, {"memory_momentum": 0.21}),
        ({}, {"template": "part-agnostic"}),
    ],
)
def test_numbers_of_another_setting_fail(
    recorded: dict[str, Any], assumed: dict[str, Any], tmp_path: Path
) -> None:
    path = record(tmp_path, **recorded)
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, **assumed}))
    assert main([str(path)]) == 1


def test_adamw_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.AdamW)
    path = record(tmp_path)
    assert main([str(path)]) == 1


def test_an_unknown_array_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(tmp_path)
    arrays = read_arrays(path)
    write_arrays(path, arrays | {"stage3/feature": np.zeros(3)})
    assert main([str(path)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert line.startswith("stage3/feature") and "unknown" in line


def test_a_missing_array_and_an_unknown_setting_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record(tmp_path)
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "dropout": 0.1}))
    arrays = read_arrays(path)
    del arrays["stage2/logits"]
    write_arrays(path, arrays)
    assert main([str(path)]) == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert failed == ["setting", "stage2/logits"]


def test_a_flipped_gate_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(tmp_path)
    arrays = read_arrays(path)
    arrays["stage2/mask_probabilities"][1, 6, 2, 4] = (
        1 - arrays["stage2/mask_probabilities"][1, 6, 2, 4]
    )
    write_arrays(path, arrays)
    assert main([str(path)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert "gate flip: block 1, image 6, part 2, patch 4" in line


def test_a_dice_term_beside_the_squared_error_may_be_recorded_either_way(tmp_path: Path) -> None:
    dice = read_arrays(record(tmp_path))["stage2/loss/dice"]
    path = record(tmp_path, mask_loss="mse")
    arrays = read_arrays(path)
    for value in (dice, np.zeros((), np.float32)):
        write_arrays(path, arrays | {"stage2/loss/dice": value})
        assert main([str(path)]) == 0
    write_arrays(path, arrays | {"stage2/loss/dice": dice + 0.01})
    assert main([str(path)]) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0, -np.inf], [0.0, -np.inf], 0.0),
        ([-5.0, -np.inf], [0.0, -np.inf], 5.0),
        ([-1000.0, 0.0], [-np.inf, 0.0], np.inf),
        ([np.nan, 0.0], [1.0, 0.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_an_infinity_hides_no_difference(
    ours: list[float], theirs: list[float], expected: float
) -> None:
    assert difference(np.array(ours), np.array(theirs)) == expected


def test_a_wrong_bias_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(tmp_path)
    arrays = read_arrays(path)
    arrays["attention_bias/given_masks"][0, 0, 0] = -5
    write_arrays(path, arrays)
    assert main([str(path)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert line.startswith("attention_bias/given_masks")


def test_a_setting_that_is_null_has_its_default(tmp_path: Path) -> None:
    path = record(tmp_path)
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "domain_context": None, "mask_max_value": None}))
    assert main([str(path)]) == 0


def test_a_parameter_that_a_setting_disables_is_ignored(tmp_path: Path) -> None:
    tokens = read_arrays(record(tmp_path))["muva/part_tokens"]
    path = record(tmp_path, part_token_init="patch_avg")
    write_arrays(path, read_arrays(path) | {"muva/part_tokens": tokens})
    assert main([str(path)]) == 0


@pytest.mark.parametrize(
    ("without", "reason"), [("input/pids", "there is no 'input/pids'"), (None, "No such file")]
)
def test_a_file_that_cannot_be_compared_fails_without_stopping_the_others(
    without: str | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record(tmp_path)
    if without is None:
        path.with_suffix(".npz").unlink()
    else:
        arrays = read_arrays(path)
        del arrays[without]
        write_arrays(path, arrays)
    assert main([str(path), str(GOLDEN / "retrieval.npz")]) == 1
    printed = capsys.readouterr().out
    assert reason in printed
    assert any(line.startswith("mean_ap") and "ok" in line for line in printed.splitlines())


def test_a_recording_may_hold_no_re_ranking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = read_arrays(GOLDEN / "retrieval.json")
    plain = {name: value for name, value in arrays.items() if not name.startswith("rerank_")}
    write_arrays(tmp_path / "plain.json", plain)
    assert main([str(tmp_path / "plain.npz")]) == 0
    usual = {name: value for name, value in arrays.items() if name != "rerank_lambda"}
    write_arrays(tmp_path / "usual.json", usual)
    assert main([str(tmp_path / "usual.npz")]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_re_ranking_takes_the_settings_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = read_arrays(GOLDEN / "retrieval.json")
    write_arrays(tmp_path / "other.json", arrays | {"rerank_k1": np.array(8)})
    assert main([str(tmp_path / "other.npz")]) == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert "rerank_distance" in failed and "rerank_mean_ap" in failed
    assert not [name for name in failed if not name.startswith("rerank_")]


def test_an_npz_beside_its_json_is_no_retrieval_file(tmp_path: Path) -> None:
    path = record(tmp_path)
    shutil.copy(GOLDEN / "retrieval.npz", tmp_path)
    files = sorted(str(file) for file in tmp_path.iterdir())
    assert path.suffix == ".json" and len(files) == 3
    assert main(files) == 0
