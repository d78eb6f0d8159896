"""What a row of the paper's tables takes, against calculations by hand."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks.openai_files import Sizes
from benchmarks.paper import (
    PHASES,
    Rates,
    Weights,
    as_text,
    commands,
    described,
    every_row,
    find_row,
    main,
    measured_rates,
    memory_at,
    overview,
    read_rates,
)
from muva.config import load_recipe
from muva.errors import MuvaError, SettingsError
from muva.paper import PROTOCOLS, rows
from workflows.cli import muva
from workflows.verbs import VERBS

RATES = Rates(
    device="a card",
    precision="bf16",
    per_s={"features": 100, "prompts": 50, "memory": 80, "steps": 20, "embedding": 90},
    peak_mb={64: 9000.0},
)


def test_every_row_of_every_protocol_has_a_unique_name() -> None:
    names = [one.name for one in every_row()]
    assert len(names) == len(set(names)) == 12 + 4 + 4 + 4
    assert {"MA->D", "MA+D+C3->MS", "C3->C3", "classical->viper"} <= set(names)
    assert all(find_row(name).name == name for name in names)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("ma -> d", "MA->D"),
        ("MS+D+C3->MA", "D+MS+C3->MA"),
        ("market1501->cuhk03np-detected", "MA->C3"),
        ("classical->VIPeR", "classical->viper"),
        ("cuhk02+market1501+dukemtmc+cuhksysu+cuhk03-detected->grid", "classical->grid"),
    ],
)
def test_a_row_is_found_in_any_order_and_spelling(asked: str, name: str) -> None:
    assert find_row(asked).name == name


def test_an_unknown_row_names_the_closest() -> None:
    with pytest.raises(
        SettingsError, match=r"'MA->M' is none of the paper's; closest: MA->MS, MA->MA"
    ):
        find_row("MA->M")
    with pytest.raises(SettingsError, match=r"--row all lists them"):
        find_row("nonsense")


def test_work_and_hours_are_those_of_a_calculation_by_hand() -> None:
    described_row = described(
        find_row("D+MS+C3->MA"), RATES, expert="florence-2", grounding_rate=10
    )
    learned = 16522 + 32621 + 7365
    everything = (16522 + 2228 + 17661) + (32621 + 11659 + 82161) + (7365 + 1400 + 5332)
    expected = {
        "grounding": (everything, everything / 10 / 3600),
        "features": (learned, learned / 100 / 3600),
        "prompts": (120 * (learned // 4), 120 * (learned // 4) / 50 / 3600),
        "memory": (60 * learned, 60 * learned / 80 / 3600),
        "steps": (60 * learned, 60 * learned / 20 / 3600),
        "embedding": (3368 + 19732, (3368 + 19732) / 90 / 3600),
    }
    assert list(described_row["phases"]) == list(expected)
    for phase, (work, hours) in expected.items():
        found = described_row["phases"][phase]
        assert (found["work"], found["hours"]) == (work, pytest.approx(hours))
    assert described_row["hours"] == pytest.approx(
        sum(h for p, (_, h) in expected.items() if p != "grounding")
    )
    assert described_row["published"] == [{"mean_ap": 0.667, "rank1": 0.861}]
    assert described_row["memory"] == {"batch": 64, "mb": 9000.0, "measured_at": [64]}


def test_an_unpublished_count_gives_no_hours_until_it_is_given() -> None:
    row = find_row("classical->viper")
    described_row = described(row, RATES, expert="florence-2")
    assert described_row["phases"]["steps"]["work"] is None and described_row["hours"] is None
    assert "how many images cuhk03-detected has: --images NAME=COUNT" in as_text(described_row)
    described_row = described(row, RATES, expert="florence-2", images={"cuhk03-detected": 14000})
    learned = (12936 + 3368 + 19732) + (16522 + 2228 + 17661) + 7264 + 14000 + 34574
    assert described_row["phases"]["features"]["work"] == learned
    assert described_row["phases"]["grounding"] == {"work": learned, "per_s": None, "hours": None}
    assert described_row["hours"] is not None


def test_memory_is_extrapolated_linearly_from_two_batches() -> None:
    weights = Weights(weights_mb=600, gradients_and_adam_mb=1000, identities=16, identity_mb=0.5)
    rates = Rates(
        device="x", precision="fp32", per_s={}, peak_mb={16: 3000.0, 32: 4600.0}, weights=weights
    )
    memory = memory_at(rates, 64, identities=116)
    assert memory is not None
    assert (memory["mb"], memory["each_image_mb"]) == (3000 + 48 * 100 + 100 * 0.5, 100)


@pytest.mark.parametrize("one", every_row(), ids=lambda one: one.name)
def test_the_commands_are_understood_and_make_this_row(one: Any) -> None:
    typed = [shlex.split(line) for line in commands(one, expert="florence-2")]
    imported = [words[3] for words in typed if words[:3] == ["muva", "data", "import"]]
    assert set(imported) == {*one.row.sources, one.target}
    grounded = [words[2] for words in typed if words[:2] == ["muva", "ground"]]
    assert tuple(grounded) == one.row.sources
    (run,) = [words[2:] for words in typed if words[:2] == ["muva", "run"]]
    given = parsed(["run"], run)
    (row,) = rows(given["recipe"], source=given["source"], target=given["target"])
    assert (row.protocol, row.sources, row.targets) == (
        one.row.protocol, one.row.sources, one.row.targets,
    )  # fmt: skip
    assert given["settings"] == ("msmt17" if one.row.sources == ("msmt17",) else "base")
    config = load_recipe(given["settings"], overrides=given["overrides"])
    assert config.grounding is not None and config.grounding.expert == "florence-2"
    for words in typed:
        assert words[1] in VERBS
        parsed(
            words[1:2] if words[1] != "data" else words[1:3],
            words[2 if words[1] != "data" else 3 :],
        )


def parsed(verb: list[str], words: list[str]) -> dict[str, Any]:
    """The parameters that the verb makes of its words; nothing is run."""
    command: click.Command = muva
    context = click.Context(muva, info_name="muva")
    for name in verb:
        assert isinstance(command, click.Group)
        found = command.get_command(context, name)
        assert found is not None
        command = found
    return command.make_context(verb[-1], list(words), parent=context).params


def rates_file(path: Path, *, gpu_mb: float | None = None) -> Path:
    phases = {
        name: {"count": 8, "seconds": 1.0, "per_s": per_s, "peak_mb": 5000.0, "gpu_peak_mb": gpu_mb}
        for name, per_s in RATES.per_s.items()
    }
    path.write_text(
        json.dumps({"device": "a card", "precision": "bf16", "batch": 64, "phases": phases})
    )
    return path


def test_rates_come_from_a_file_of_the_other_benchmark(tmp_path: Path) -> None:
    assert read_rates(rates_file(tmp_path / "gpu.json", gpu_mb=9000.0)) == RATES
    assert read_rates(rates_file(tmp_path / "cpu.json")).peak_mb == {64: 5000.0}
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(MuvaError, match=r"expected the JSON of `python -m benchmarks\.large"):
        read_rates(tmp_path / "other.json")


def test_all_rows_are_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["paper", "--row", "all", "--rates", str(rates_file(tmp_path / "rates.json"))]
    monkeypatch.setattr("sys.argv", [*words, "--json", str(tmp_path / "rows.json")])
    assert main() == 0
    printed = capsys.readouterr().out
    assert "Hours on a card, bf16, grounding left out" in printed
    found = json.loads((tmp_path / "rows.json").read_text())
    assert printed.strip() == overview(found)
    assert {one["protocol"] for one in found} == set(PROTOCOLS)
    market = next(line for line in printed.splitlines() if line.startswith("| MA->D |"))
    stage1 = 12936 / 100 + 120 * 3234 / 50
    stage2 = 60 * 12936 * (1 / 80 + 1 / 20)
    embedding = (2228 + 17661) / 90
    hours = [stage1, stage2, embedding, stage1 + stage2 + embedding]
    cells = [cell.strip() for cell in market.strip("|").split("|")]
    assert cells[3:] == ["12936", *(f"{value / 3600:.2f}" for value in hours)]


def test_wrong_arguments_exit_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["--row", "MA->X"], "closest: "),
        (["--row", "MA->D", "--images", "mine=3"], "expected NAME=COUNT"),
    ):
        monkeypatch.setattr("sys.argv", ["paper", *words])
        assert main() == 2
        assert said in capsys.readouterr().err


def test_rates_are_measured_at_two_batches() -> None:
    sizes = Sizes(
        patch=16, vision_width=64, vision_layers=1, text_width=64, text_layers=1, embed_dim=32,
        resolution=64,
    )  # fmt: skip
    rates = measured_rates(
        "base",
        sizes=sizes,
        overrides=["model.image_height=64", "model.image_width=32"],
        batches=(8, 16),
    )
    assert set(rates.per_s) == set(PHASES) and all(rate > 0 for rate in rates.per_s.values())
    assert set(rates.peak_mb) == {8, 16}
    assert rates.weights is not None
    # Contexts and classifier, each of 16 identities: 4 x 4 x 64, and four grains of 32.
    assert rates.weights.identity_mb == (4 * 4 * 64 + 6 * 4 * 32) * 4 / 1e6
    assert rates.weights.weights_mb > rates.weights.gradients_and_adam_mb / 3 > 0
