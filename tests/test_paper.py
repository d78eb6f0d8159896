"""The field's protocols as lists of trainings, and the published results beside them."""

import json
from itertools import chain
from pathlib import Path

import pytest

from muva.config import load_recipe, with_settings
from muva.data.benchmarks import BENCHMARKS
from muva.errors import SettingsError
from muva.paper import FOUR, PROTOCOLS, published, published_for, rows

REFERENCE = Path(__file__).parents[2] / "shared" / "published.json"


def pairs(protocol: str, **choice: object) -> set[tuple[tuple[str, ...], str]]:
    made = rows(protocol, **choice)  # pyright: ignore[reportArgumentType]
    return {(row.sources, target) for row in made for target in row.targets}


def test_the_protocols_have_the_papers_rows():
    single = pairs("single-source")
    assert len(single) == 12
    assert all(len(sources) == 1 and target not in sources for sources, target in single)
    assert len(rows("single-source")) == 4  # trainings
    assert {target for _, target in pairs("leave-one-out")} == set(FOUR)
    assert all(len(sources) == 3 for sources, _ in pairs("leave-one-out"))
    assert pairs("same-domain") == {((name,), name) for name in FOUR}
    (classical,) = rows("classical")
    assert (len(classical.sources), len(classical.targets)) == (5, 4)


def test_all_their_data_sets_are_known_by_name():
    every = chain.from_iterable((*r.sources, *r.targets) for p in PROTOCOLS for r in rows(p))
    assert set(every) <= set(BENCHMARKS)
    for name in ("viper", "prid2011", "grid", "ilids"):
        assert BENCHMARKS[name].trials is not None


def test_rows_are_chosen_by_source_and_target_and_do_without_a_data_set():
    assert pairs("single-source", source="msmt17", target="market1501") == {
        (("msmt17",), "market1501")
    }
    without = pairs("leave-one-out", without=["dukemtmc"])
    assert {target for _, target in without} == set(FOUR) - {"dukemtmc"}
    assert all("dukemtmc" not in sources for sources, _ in without)
    (classical,) = rows("classical", without=["dukemtmc"])
    assert len(classical.sources) == 4


@pytest.mark.parametrize(
    ("protocol", "choice", "message"),
    [
        ("single-sauce", {}, "'single-sauce' is unknown; closest: single-source"),
        ("single-source", {"source": "viper"}, "no row has source viper; its data sets are cuhk03"),
        ("leave-one-out", {"without": FOUR}, "no row is left; its data sets are"),
    ],
)
def test_choices_that_leave_nothing_are_refused(protocol, choice, message):
    with pytest.raises(SettingsError, match=message):
        rows(protocol, **choice)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_row_makes_an_experiment(protocol):
    for row in rows(protocol):
        config = with_settings(load_recipe("base"), row.settings, where=protocol)
        assert config.train_on == ("all" if protocol == "classical" else "train")
        assert set(config.sources) & set(config.targets) == (
            set(row.sources) if protocol == "same-domain" else set()
        )


def test_test_people_are_never_learned_from():
    settings = {"sources": ["grid"], "targets": ["grid"], "same_domain": True, "train_on": "all"}
    with pytest.raises(SettingsError, match="its test people would be used for training"):
        with_settings(load_recipe("base"), settings, where="test")


def test_published_results_are_those_of_the_tables():
    for sources, target in pairs("single-source") | pairs("leave-one-out"):
        (ours,) = [found for found in published_for(sources, target) if found.method == "MUVA"]
        assert ours.mean_ap is not None and 0 < ours.mean_ap < 1
        assert ours.rank1 is not None and ours.mean_ap < ours.rank1 < 1
    found = {one.method: one for one in published_for(["market1501"], "dukemtmc")}
    assert (found["MUVA"].mean_ap, found["PAT"].rank1) == (0.52, 0.679)
    (same,) = published_for(["dukemtmc"], "dukemtmc")
    assert (same.mean_ap, same.rank1) == (None, 0.899)
    assert len(published()) == 54


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference is not beside this checkout")
def test_the_shipped_tables_are_the_reference():
    shipped = Path(__file__).parents[1] / "muva" / "published.json"
    assert json.loads(shipped.read_text()) == json.loads(REFERENCE.read_text())
