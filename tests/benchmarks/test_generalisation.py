from __future__ import annotations

import pytest

from benchmarks.generalisation import (
    Figures,
    not_improved,
    parts_do_not_help,
    print_table,
    sources_for,
)
from muva.pretraining.clip import NETWORKS
from muva.synthetic import BENCHMARK, REAL_LOOK, networks_in
from muva.synthetic.world import network_name

FIGURES: Figures = {
    "syn-station": {"clip": [0.1] * 3, "global_only": [0.2, 0.3, 0.4], "muva": [0.3, 0.5, 0.4]},
    "syn-airport": {"clip": [0.3] * 3, "global_only": [0.4, 0.3, 0.2], "muva": [0.5, 0.5, 0.8]},
}


def test_the_table_gives_means_deviations_and_the_paired_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(FIGURES)
    rows = {
        cells[0]: cells[1:]
        for line in capsys.readouterr().out.splitlines()[2:]
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    # Differences 10, 20, 0: deviation 10, standard error 10 / sqrt(3).
    assert rows["syn-station"] == ["10.0 ± 0.0", "30.0 ± 10.0", "40.0 ± 10.0", "+10.0 ± 5.8"]
    # Over the targets each seed's mean: 30, 30, 30 and 40, 50, 60.
    assert rows["mean"] == ["20.0 ± 0.0", "30.0 ± 0.0", "50.0 ± 10.0", "+20.0 ± 5.8"]


def test_two_experts_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"syn-station": {"annotated": [0.3, 0.3, 0.3], "tiny": [0.2, 0.3, 0.1]}}
    names = {"annotated": "annotated", "tiny": "tiny"}
    print_table(figures, names=names, ours="tiny", reference="annotated")
    printed = capsys.readouterr().out
    assert "| target | annotated | tiny | tiny - annotated |" in printed
    assert "| syn-station | 30.0 ± 0.0 | 20.0 ± 10.0 | -10.0 ± 5.8 |" in printed


def test_no_target_is_among_its_sources_and_the_open_worlds_networks_are_new_to_the_clips() -> None:
    for target in BENCHMARK:
        assert {*sources_for(target)} == {*BENCHMARK} - {target}
    for target in REAL_LOOK:
        networks = [network for source in sources_for(target) for network in networks_in(source)]
        assert len(networks) == len({*networks})
        assert not {*networks} & {network_name(n) for n in range(NETWORKS)}


def test_a_model_that_did_not_improve_is_named() -> None:
    assert not_improved(FIGURES) == ["global-only on syn-airport"]


def test_parts_that_gain_too_little_are_named() -> None:
    assert parts_do_not_help(FIGURES) == []
    worse = FIGURES | {"syn-station": FIGURES["syn-station"] | {"muva": [0.2, 0.1, 0.1]}}
    assert parts_do_not_help(worse) == ["MUVA below global-only on syn-station"]
    little = {"syn-station": FIGURES["syn-station"] | {"muva": [0.3, 0.3, 0.36]}}
    assert parts_do_not_help(little) == ["MUVA gains +2.0 mAP on average, goal +3.0"]


def test_one_seed_has_no_deviation(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"syn-station": {"clip": [0.1], "global_only": [0.2], "muva": [0.15]}})
    assert "| syn-station | 10.0 | 20.0 | 15.0 | -5.0 |" in capsys.readouterr().out
