from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from mlflow import MlflowClient

from muva.config import ExperimentConfig, TuneConfig, load_recipe, with_settings
from muva.data.artifacts import Artifact, find_artifact, list_artifacts
from muva.errors import MuvaError, SettingsError
from muva.training.divergence import NotFiniteError
from tests.workflows.commands import PATIENCE_S, start, wait_for
from workflows.cli import main
from workflows.runtime.workers import Workers
from workflows.session import Session, open_session
from workflows.steps.step import StepResult
from workflows.steps.train import Training
from workflows.tuning.driver import _Deadline, concurrency
from workflows.tuning.report import importance, reuse_text
from workflows.tuning.search import check_search, search
from workflows.tuning.study import best_of, find_study, pareto, ranked, reuse, study_of
from workflows.tuning.trial import (
    DEVIATION,
    MEAN,
    WORST,
    FoldResult,
    TrialInputs,
    TrialProgress,
    grounding_key,
    metrics_of,
    objectives_of,
    run_trial,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Sources that are imported and grounded, and searches over them."""

    session: Session
    config: ExperimentConfig
    sources: list[Artifact]
    labels: list[Artifact]

    def search(self, **changes: Any) -> StepResult:
        config = with_settings(
            self.config, {f"tune.{key}": value for key, value in changes.items()}, where="test"
        )
        return search(
            self.session, config, sources=self.sources, labels=self.labels, workers=Workers()
        )

    def runs(self) -> list[Any]:
        client = MlflowClient(self.session.tracking_uri)
        experiment = client.get_experiment_by_name(self.session.experiment)
        return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="module")
def place(
    grounded_home: Callable[[Path], Path],
    smoke_recipe: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    home = grounded_home(tmp_path_factory.mktemp("tune"))
    (target,) = (home / "store" / "datasets").glob("syn-station-*")
    shutil.rmtree(target)  # a search that looked for it would import it
    session = open_session(home=home, experiment="muva/smoke")
    config = load_recipe(smoke_recipe)
    sources = [find_artifact(session.store, "datasets", name) for name in config.sources]
    labels = [find_artifact(session.store, "labels", name) for name in config.sources]
    return Place(session=session, config=config, sources=sources, labels=labels)


@pytest.mark.timeout(600)  # minutes by itself, and another test beside it
def test_trials_are_judged_on_a_held_out_source_and_found_again(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = place.search()

    trials = found.summary["trials"]
    assert {trial["params"]["model.gating"] for trial in trials} == {"offline", "online"}
    assert len(trials) == 2
    values = [trial["metrics"][MEAN] for trial in trials]
    assert values == sorted(values, reverse=True)
    held_out = place.sources[0].name
    assert all(trial["metrics"][f"{held_out}/mAP"] == trial["metrics"][MEAN] for trial in trials)

    store = place.session.store
    kinds = {artifact.name for artifact in list_artifacts(store)}
    assert not any("syn-station" in name for name in kinds), "a search has no way to a target"
    assert len(list_artifacts(store, "prompts")) == 1, "made once, though both began together"
    assert len(list_artifacts(store, "models")) == 2
    shared = found.summary["reuse"]
    assert shared["kinds"]["prompts"] | {"used": 2, "computed": 1} == shared["kinds"]["prompts"]
    prompts = list_artifacts(store, "prompts")[0].manifest()
    given = [artifact.manifest() for artifact in (*place.sources, *place.labels)]
    assert prompts is not None
    saved = prompts["seconds"] + sum(one["seconds"] for one in given if one is not None)
    assert shared["saved_s"] == pytest.approx(saved, abs=0.2)

    runs = place.runs()
    search_run = next(run for run in runs if run.info.run_name == "tune smoke")
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == search_run.info.run_id
    ]
    assert len(children) == 2
    assert {run.data.metrics[f"{held_out}/mAP"] for run in children} == set(values)
    assert search_run.data.metrics[MEAN] == max(values)
    client = MlflowClient(place.session.tracking_uri)
    pictures = {file.path for file in client.list_artifacts(search_run.info.run_id, "search")}
    assert {"search/history.png", "search/parallel.png"} <= pictures

    again = place.search()
    assert not again.computed
    assert len(place.runs()) == len(runs)

    _shown_and_written(place, found, tmp_path, capsys)


def _shown_and_written(
    place: Place, found: StepResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`muva tune show` and `muva tune best`, of the newest study."""
    home = ["--home", f"{place.session.home}"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["tune", "show", "--json", *home])
    assert stop.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["trials"] == found.summary["trials"]
    assert shown["history"][-1][2] == shown["trials"][0]["metrics"][MEAN]

    recipe = tmp_path / "best.yaml"
    with pytest.raises(SystemExit):
        main(["tune", "best", "smoke", "--recipe", f"{recipe}", *home])
    best = load_recipe(recipe)
    assert best.model.gating == shown["trials"][0]["params"]["model.gating"]
    assert best.stage2 == place.config.stage2, "a trial's short training is no setting"
    assert (best.sources, best.targets) == (place.config.sources, place.config.targets)


@pytest.mark.timeout(600)  # minutes by itself, and another test beside it
def test_a_trial_that_falls_behind_is_stopped_and_leaves_no_worker(place: Place) -> None:
    found = place.search(
        space={"stage2.lr": [3e-2, 1e-6]},  # the second one learns nothing
        trials=2,
        folds=1,
        scheduler="asha",
        search="grid",
        concurrent_trials=1,
        objective="worst",
        stage2_epochs=2,
    )
    states = {trial["state"] for trial in found.summary["trials"]}
    assert states == {"complete", "stopped"}
    by_number = sorted(found.summary["trials"], key=lambda trial: trial["number"])
    first = by_number[0]
    assert list(first["rungs"]) == ["1", "2"], "two epochs of one training"
    for trial in by_number[1:]:
        if trial["state"] == "stopped":
            last = list(trial["rungs"])[-1]
            assert trial["rungs"][last] <= first["rungs"][last]
    for trial in by_number:
        domains = [v for k, v in trial["metrics"].items() if k in DOMAINS]
        assert trial["metrics"][WORST] == min(domains)
        assert trial["metrics"][MEAN] == pytest.approx(sum(domains) / len(domains))
    _eventually(lambda: not _processes_of_actors("Train"))
    _eventually(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


DOMAINS = ("syn-harbour/mAP", "syn-airport/mAP")


def _eventually(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.2)


def _processes_of_actors(name: str) -> list[str]:
    """The titles that Ray gives to the processes of this cluster's actors of such a class."""
    titles = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            titles.append(" ".join(process.cmdline()))
    assert any("raylet" in title for title in titles), "the cluster is not among the children"
    return [title for title in titles if title.startswith("ray::") and name in title]


@pytest.mark.timeout(600)  # minutes by itself, and another test beside it
def test_a_killed_search_goes_on_with_the_trials_that_it_has(
    place: Place, grounded_home: Callable[[Path], Path], smoke_recipe: Path, tmp_path: Path
) -> None:
    tune = {"trials": 2, "concurrent_trials": 1, "space": {"stage2.mask_loss": ["bce+dice", "mse"]}}
    words = (word for key, value in tune.items() for word in ("--set", f"tune.{key}={value}"))
    grounded_home(tmp_path)
    killed = start(tmp_path, "tune", "--recipe", f"{smoke_recipe}", *words)
    trials = tmp_path / "store" / "trials"
    wait_for(lambda: list(trials.glob("smoke-*/manifest.json")), killed)
    # The next one has begun.
    wait_for(lambda: len(list(trials.glob("smoke-*/begun.json"))) == 2, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    session = dataclasses.replace(open_session(home=tmp_path), tracking_uri=None)
    study = find_study(session.store, None)
    (first,), (begun,) = study.finished(), study.begun()
    made = {artifact.address: artifact.manifest() for artifact in list_artifacts(session.store)}

    again = dataclasses.replace(place, session=session, sources=[], labels=[])
    for one in place.sources:
        again.sources.append(find_artifact(session.store, "datasets", one.name))
        again.labels.append(find_artifact(session.store, "labels", one.name))
    found = again.search(**tune)

    assert found.artifact.address == study.artifact.address
    ended = study.finished()
    assert [trial["number"] for trial in ended] == [0, 1]
    assert ended[0] == first
    assert ended[1]["params"] == begun["params"] != first["params"]
    for address, manifest in made.items():
        assert {a.address: a for a in list_artifacts(session.store)}[address].manifest() == manifest
    assert len(list_artifacts(session.store, "models")) == 2


def test_a_budget_runs_by_a_clock_that_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    deadline = _Deadline(0.5, clock=lambda: now)
    jumping = _Deadline(0.5)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not jumping.passed(), "the time of day is none of its business"
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert not jumping.passed()
    now += 1799
    assert not deadline.stop_all()
    now += 1
    assert deadline.stop_all()
    assert deadline("a trial", {})
    assert not _Deadline(None).passed()


def test_a_budget_that_is_over_starts_no_trial(place: Place) -> None:
    found = place.search(space={"stage2.mask_weight": [5.0, 6.0]}, budget_hours=1e-9)
    assert found.summary["trials"] == []
    assert reuse_text(found.summary["reuse"]) == "No step has been used yet."


def test_a_trial_that_diverges_ends_and_the_search_goes_on(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"stage1.lr": [1e25], "stage1.precision": ["fp32"]}
    found = place.search(space=space, trials=1)
    (trial,) = found.summary["trials"]
    assert (trial["state"], trial["metrics"]) == ("failed", {})
    assert "stage 1 diverged in epoch" in trial["failed"]
    assert "stage 1 diverged in epoch" in capsys.readouterr().err
    (run,) = (run for run in place.runs() if run.data.tags.get("state") == "failed")
    assert run.data.tags["mlflow.note.content"] == trial["failed"]
    assert not place.search(space=space, trials=1).computed, "it would diverge again"
    with pytest.raises(MuvaError, match="no trial is complete yet"):
        best_of(find_study(place.session.store, found.artifact.address), [trial])


def test_trials_at_once_fit_in_the_cluster(ray_session: None, smoke_recipe: Path) -> None:
    cores = int(ray.cluster_resources()["CPU"])
    settings = TuneConfig(trials=1000)
    count, workers = concurrency(settings, Workers())
    assert count * workers.count * workers.threads <= cores
    assert count == min(cores, 8)
    count, workers = concurrency(settings, Workers(cpus_each=cores))
    assert (count, workers.threads) == (1, cores)
    alone, workers = concurrency(settings.model_copy(update={"concurrent_trials": 1}), Workers())
    assert (alone, workers.threads) == (1, cores)
    with pytest.raises(MuvaError, match="ask for fewer"):
        concurrency(settings, Workers(count=cores + 1))


def test_a_trial_reaches_no_data_set_but_the_sources(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TrialInputs] = []
    monkeypatch.setattr("workflows.tuning.driver.run_trials", lambda *args: given.append(args[3]))
    place.search(space={"stage2.mask_weight": [7.0]})
    (inputs,) = given
    with pytest.raises(MuvaError, match="does not belong to a source"):
        inputs.session.store.read("datasets/syn-station-0123456789abcdef/manifest.json")
    assert inputs.config.targets == ()
    assert [source.manifest() for source in inputs.sources] == [
        source.manifest() for source in place.sources
    ]


def test_what_a_trial_gets_names_no_target(smoke_recipe: Path) -> None:
    fields = {field.name for field in dataclasses.fields(TrialInputs)}
    assert fields == {"session", "config", "sources", "labels", "workers"}


def test_a_trials_figures_are_means_over_seeds_and_domains() -> None:
    def of(domain: str, seed: int, mean_ap: float) -> FoldResult:
        return FoldResult(domain=domain, seed=seed, mean_ap=mean_ap, rank1=1.0)

    half = metrics_of([of("a", 0, 0.2), of("b", 0, 0.6), of("a", 1, 0.4)])
    assert half["a/mAP"] == pytest.approx(0.3)
    assert half[MEAN] == pytest.approx(0.45)
    assert half[WORST] == pytest.approx(0.3)
    assert DEVIATION not in half, "the second seed was not evaluated on all domains yet"
    whole = metrics_of([of("a", 0, 0.2), of("b", 0, 0.6), of("a", 1, 0.4), of("b", 1, 0.8)])
    assert whole[DEVIATION] == pytest.approx(0.2 / 2**0.5)


def test_every_domain_is_held_out_with_every_seed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, list[str]]] = []

    def train(session: Session, training: Training, *_: Any, **__: Any) -> Any:
        sources = [source.name for source in training.sources]
        asked.append((training.encoder.name, training.config.seed, sources))
        if len(asked) > 4:
            raise NotFiniteError("its loss is nan")
        return SimpleNamespace(encoder=SimpleNamespace(artifact=place.sources[0]))

    monkeypatch.setattr("workflows.tuning.trial.train", train)
    found = SimpleNamespace(scores=SimpleNamespace(mean_ap=0.5, rank1=0.75))
    monkeypatch.setattr("workflows.tuning.trial.evaluate_on", lambda *args, **kwargs: found)
    inputs = TrialInputs(
        session=place.session,
        config=place.config,
        sources=tuple(place.sources),
        labels={grounding_key(place.config.grounding): tuple(place.labels)},
        workers=Workers(),
    )
    reports: list[TrialProgress] = []
    run_trial({}, inputs=inputs, settings=TuneConfig(seeds=2), report=reports.append)
    harbour, airport = (source.name for source in place.sources)
    assert asked == [
        (f"trial-without-{held_out}", seed, [other])
        for seed in (0, 1)
        for held_out, other in ((harbour, airport), (airport, harbour))
    ]
    assert [one.rung for one in reports] == [1, 2, 3, 4]
    assert [one.complete for one in reports] == [False, False, False, True]

    run_trial({}, inputs=inputs, settings=TuneConfig(), report=reports.append)
    assert (reports[-1].rung, reports[-1].state) == (0, "failed")
    assert reports[-1].failed == "its loss is nan"


def test_the_setting_that_decides_is_the_important_one(smoke_recipe: Path, tmp_path: Path) -> None:
    space = {
        "model.gating": ["offline", "online"],
        "model.mask_max_value": {"choice": [1.0, 10.0], "when": {"model.gating": "online"}},
        "stage2.mask_loss": ["bce+dice", "mse"],
    }
    config = with_settings(load_recipe(smoke_recipe), {"tune.space": space}, where="test")
    chosen = check_search(config)
    store = open_session(home=tmp_path).store
    study = study_of(
        store, config, chosen.settings, chosen.space, objectives=chosen.objectives, inputs={}
    )
    trials = [
        {
            **record(number, 0.5 if point["stage2.mask_loss"] == "mse" else 0.1, 0.1),
            "params": point,
        }
        for number, point in enumerate([*chosen.space.points()] * 2)
    ]
    shares = importance(study, trials)
    assert next(iter(shares)) == "stage2.mask_loss"
    assert shares["stage2.mask_loss"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(study, trials[:3]) == {}, "too few"


def record(number: int, mean: float, worst: float, state: str = "complete") -> dict[str, Any]:
    metrics = {MEAN: mean, WORST: worst}
    return {"number": number, "params": {}, "state": state, "metrics": metrics}


def test_with_two_objectives_what_no_trial_beats_in_both_comes_first() -> None:
    trials = [
        record(0, 0.5, 0.1),
        record(1, 0.4, 0.3),
        record(2, 0.45, 0.05),
        record(3, 0.9, 0.9, "stopped"),
    ]
    assert [one["number"] for one in pareto(trials, (MEAN, WORST))] == [0, 1]
    assert [one["number"] for one in ranked(trials, (MEAN, WORST))] == [0, 1, 2, 3]
    assert [one["number"] for one in ranked(trials, (MEAN,))] == [0, 2, 1, 3]


def test_what_is_saved_is_every_use_of_a_step_but_the_first() -> None:
    def step(address: str, seconds: float) -> dict[str, Any]:
        return {"label": address, "address": address, "seconds": seconds}

    savings = reuse(
        [
            {"steps": [step("prompts/a-1", 10.0), step("models/a-1", 2.0)]},
            {"steps": [step("prompts/a-1", 10.0), step("models/a-2", 3.0)]},
        ]
    )
    assert (savings["alone_s"], savings["spent_s"], savings["saved"]) == (25.0, 15.0, 0.4)
    assert savings["kinds"]["prompts"] == {
        "used": 2,
        "computed": 1,
        "alone_s": 20.0,
        "spent_s": 10.0,
    }


@pytest.mark.parametrize(
    ("changes", "explanation"),
    [
        ({"tune": None}, "expected a section tune"),
        ({"tune.space": {"model.gatin": ["online"]}}, "did you mean model.gating"),
        ({"tune.space": {}}, "expected at least one setting to search"),
        ({"tune.space": "mask"}, "did you mean masks"),
        ({"sources": ["syn-harbour"]}, "expected two sources or more, found 1"),
        ({"tune.folds": 3}, "3 folds, but only 2 sources"),
        (
            {"tune.space": {"stage2.epochs": [1, 2]}, "tune.scheduler": "asha"},
            "asha compares trials at equal epochs",
        ),
        (
            {"tune.objective": "median"},
            "objective median: no trial reports it; expected mean, worst, both",
        ),
        ({"tune.objective": "syn-station", "tune.folds": 2}, "held out: syn-harbour, syn-airport"),
        ({"tune.objective": "both", "tune.folds": 1}, "mean and worst domain are the same"),
        (
            {"tune.search": "grid", "tune.space": {"stage2.lr": {"range": [1e-6, 1e-3]}}},
            "stage2.lr is a range",
        ),
    ],
)
def test_an_impossible_search_is_refused_before_it_starts(
    changes: dict[str, object], explanation: str, smoke_recipe: Path, tmp_path: Path
) -> None:
    config = with_settings(load_recipe(smoke_recipe), changes, where="test")
    session = open_session(home=tmp_path)
    nowhere: Any = [object(), object()]
    with pytest.raises(SettingsError, match=explanation):
        search(session, config, sources=nowhere, labels=[], workers=Workers())
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").iterdir())


def test_the_objective_may_be_a_domain(smoke_recipe: Path) -> None:
    config = with_settings(
        load_recipe(smoke_recipe), {"tune.objective": "syn-airport", "tune.folds": 2}, where="test"
    )
    assert check_search(config).objectives == ("syn-airport/mAP",)
    assert objectives_of(TuneConfig(objective="both"), ["a", "b"]) == (MEAN, WORST)
