from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from mlflow import MlflowClient

from muva.config import load_recipe, with_settings
from muva.data.artifacts import list_artifacts
from muva.errors import SettingsError
from workflows.data import datasets_of
from workflows.ground import ground
from workflows.session import open_session
from workflows.tune import OBJECTIVE, TrialInputs, distinct_points, search
from workflows.workers import Workers


def test_trials_are_judged_on_a_held_out_source_and_found_again(
    ray_session: None, smoke_recipe: Path, tmp_path: Path
) -> None:
    session = open_session(home=tmp_path, experiment="muva/smoke")
    config = load_recipe(smoke_recipe)
    assert config.grounding is not None
    sources = [d.artifact for d in datasets_of(session, config.sources, config.synthetic).values()]
    labels = [ground(session, source, config.grounding).artifact for source in sources]

    found = search(session, config, sources=sources, labels=labels, workers=Workers())

    trials = found.summary["trials"]
    assert {trial["params"]["model.gating"] for trial in trials} == {"offline", "online"}
    assert len(trials) == 2
    values = [trial["metrics"][OBJECTIVE] for trial in trials]
    assert values == sorted(values, reverse=True)
    held_out = sources[0].name
    assert all(trial["metrics"][f"{held_out}/mAP"] > 0 for trial in trials)

    kinds = {artifact.name for artifact in list_artifacts(session.store)}
    assert not any("syn-station" in name for name in kinds), "a search has no way to a target"
    prompts = list_artifacts(session.store, "prompts")
    assert len(prompts) == 1, "trials that differ in gating share their prompts"

    runs = MlflowClient(session.tracking_uri).search_runs(["1"])
    search_run = next(run for run in runs if run.info.run_name == "tune smoke")
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == search_run.info.run_id
    ]
    assert len(children) == 2
    assert search_run.data.metrics[OBJECTIVE] == pytest.approx(max(values))

    again = search(session, config, sources=sources, labels=labels, workers=Workers())
    assert not again.computed
    assert len(MlflowClient(session.tracking_uri).search_runs(["1"])) == len(runs)


def test_points_differ_and_are_all_there_are_at_most() -> None:
    space = {"a": [1, 2, 3], "b": ["x", "y"]}
    everything = {(a, b) for a in space["a"] for b in space["b"]}
    for count in (1, 4, 6, 50):
        points = [tuple(point.values()) for point in distinct_points(space, count, seed=3)]
        assert len(set(points)) == len(points) == min(count, 6)
        assert set(points) <= everything
    assert distinct_points(space, 4, seed=3) == distinct_points(space, 4, seed=3)
    assert distinct_points(space, 4, seed=3) != distinct_points(space, 4, seed=4)


def test_what_a_trial_gets_names_no_target(smoke_recipe: Path) -> None:
    fields = {field.name for field in dataclasses.fields(TrialInputs)}
    assert fields == {"session", "config", "sources", "labels", "workers"}


@pytest.mark.parametrize(
    ("changes", "explanation"),
    [
        ({"tune": None}, "expected a section tune"),
        ({"tune.space": {"model.gatin": ["online"]}}, "did you mean model.gating"),
        ({"tune.space": {"model.gating": ["soft"]}}, "should be 'offline' or 'online'"),
        ({"tune.space": {"model.gating": []}}, "model.gating names no value"),
        ({"tune.space": {}}, "names no setting to search"),
        ({"tune.space": {"targets": ["a"]}}, "tune.space.targets changes nothing"),
        ({"tune.space": {"model.clip": ["tiny", "ViT-Z"]}}, "nor a name that open_clip knows"),
        ({"sources": ["syn-harbour"]}, "expected two sources or more, found 1"),
    ],
)
def test_an_impossible_search_is_refused_before_it_starts(
    changes: dict[str, object], explanation: str, smoke_recipe: Path, tmp_path: Path
) -> None:
    config = with_settings(load_recipe(smoke_recipe), changes, where="test")
    session = open_session(home=tmp_path)
    nowhere = [object(), object()]
    with pytest.raises(SettingsError, match=explanation):
        search(session, config, sources=nowhere, labels=[], workers=Workers())  # pyright: ignore[reportArgumentType]
