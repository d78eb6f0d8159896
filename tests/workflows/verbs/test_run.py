"""One small pipeline, looked at from all sides."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

import muva
from muva.config import ExecutionConfig, ExperimentConfig, load_recipe, with_settings
from muva.data import formats
from muva.data.artifacts import Artifact, find_artifact, list_artifacts, open_artifact
from muva.data.images import decode_rgb
from muva.data.shards import open_dataset
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.retrieval.features import Features, write_features
from tests.shared import linked_copy
from workflows.cli import main
from workflows.runtime.workers import Workers
from workflows.session import Session, open_session
from workflows.steps.evaluate import evaluate_on
from workflows.steps.import_data import import_tree
from workflows.steps.pipeline import PipelineReport, run_pipeline, run_recipe
from workflows.steps.rank import FeatureParts
from workflows.steps.train import check_parts, declare_training, train

TARGET = "syn-station"
TRAINED = ("smoke-global-only", "smoke-muva")


class Pipeline(NamedTuple):
    session: Session
    config: ExperimentConfig
    report: PipelineReport


@pytest.fixture(scope="module")
def pipeline(
    ray_session: None, smoke_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Pipeline:
    session = open_session(home=tmp_path_factory.mktemp("home"), experiment="muva/smoke")
    config = load_recipe(smoke_recipe)
    return Pipeline(session, config, run_recipe(session, config))


def runs_of(session: Session) -> list[MlflowRun]:
    client = MlflowClient(session.tracking_uri)
    experiment = client.get_experiment_by_name(session.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def stage2_run(pipeline: Pipeline) -> MlflowRun:
    runs = runs_of(pipeline.session)
    return next(run for run in runs if run.info.run_name == "stage 2 of smoke-muva")


def test_every_variant_is_evaluated_on_the_target(pipeline: Pipeline) -> None:
    results = pipeline.report.targets[TARGET]
    assert list(results) == ["clip", "global_only", "muva"]
    for found in results.values():
        assert 0 < found.mean_ap <= 1
        assert found.curve[1] <= found.curve[50]


def test_a_second_run_computes_nothing_and_makes_no_run(pipeline: Pipeline) -> None:
    store = pipeline.session.store
    before = {key: store.read(key) for key in store.list()}
    runs = {run.info.run_id for run in runs_of(pipeline.session)}
    again = run_recipe(pipeline.session, pipeline.config)
    assert {key: store.read(key) for key in store.list()} == before
    assert {run.info.run_id for run in runs_of(pipeline.session)} == runs
    assert {k: v.mean_ap for k, v in again.targets[TARGET].items()} == {
        k: v.mean_ap for k, v in pipeline.report.targets[TARGET].items()
    }


AGAIN = """
import sys
from muva.config import load_recipe
from workflows.session import open_session
from workflows.steps.pipeline import run_recipe

session = open_session(home=sys.argv[1], experiment="muva/smoke")
report = run_recipe(session, load_recipe(sys.argv[2]))
assert not report.computed, report.seconds
ray = sys.modules.get("ray")
assert ray is None or not ray.is_initialized(), "a finished pipeline needs no cluster"
"""


def test_a_finished_pipeline_starts_no_cluster_draws_no_picture_and_opens_no_step_again(
    pipeline: Pipeline, smoke_recipe: Path
) -> None:
    def files() -> dict[Path, int]:
        """Of the store and of MLflow's artifacts, with their times."""
        found = (file for file in home.rglob("*") if not file.name.startswith("mlflow.db"))
        return {file: file.stat().st_mtime_ns for file in found if file.is_file()}

    def attempts() -> dict[str, str]:
        return {
            run.info.run_id: run.data.tags["muva.attempt"]
            for run in runs_of(pipeline.session)
            if "mlflow.parentRunId" in run.data.tags
        }

    home = pipeline.session.home
    files_before, attempts_before = files(), attempts()
    assert any(file.suffix == ".png" for file in files_before)
    assert set(attempts_before.values()) == {"1"}
    command = [sys.executable, "-c", AGAIN, str(home), str(smoke_recipe)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files() == files_before
    assert attempts() == attempts_before


def test_mlflow_holds_one_parent_with_a_child_per_step(pipeline: Pipeline) -> None:
    runs = runs_of(pipeline.session)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    parent = parents[0]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == {
        *(f"import {name}" for name in ("syn-harbour", "syn-airport", TARGET)),
        *(f"ground {name}" for name in ("syn-harbour", "syn-airport")),
        *(f"stage {stage} of {name}" for stage in (1, 2) for name in TRAINED),
        *(f"evaluate {name} on {TARGET}" for name in ("clip", *TRAINED)),
        "map of domains by smoke-muva",
    }
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.metrics[f"{TARGET}/mAP"] == pytest.approx(
        pipeline.report.targets[TARGET]["muva"].mean_ap
    )
    for child in children.values():
        assert child.data.tags["target"] == TARGET
        assert child.data.tags["recipe"] == "smoke"


def test_losses_are_recorded_once_an_epoch(pipeline: Pipeline) -> None:
    run = stage2_run(pipeline)
    client = MlflowClient(pipeline.session.tracking_uri)
    history = client.get_metric_history(run.info.run_id, "stage2/loss")
    assert [point.step for point in history] == [1, 2]


def test_pictures_and_settings_are_beside_the_numbers(pipeline: Pipeline) -> None:
    client = MlflowClient(pipeline.session.tracking_uri)
    names = {
        str(run.info.run_name): {file.path for file in client.list_artifacts(run.info.run_id)}
        for run in runs_of(pipeline.session)
    }
    pictures = {"ranked-gallery.png", "predicted-masks.png", "attention.png"}
    assert pictures <= names[f"evaluate smoke-muva on {TARGET}"]
    assert "pseudo-labels.png" in names["ground syn-harbour"]
    stage2 = next(
        r for r in runs_of(pipeline.session) if r.info.run_name == "stage 2 of smoke-muva"
    )
    masks = client.list_artifacts(stage2.info.run_id, "masks")
    assert [file.path for file in masks] == ["masks/epoch-001.png", "masks/epoch-002.png"]
    parent = f"syn-harbour+syn-airport -> {TARGET} · smoke · seed 0"
    assert {"cmc", "config.yaml"} <= names[parent]


def test_models_are_ranked_by_what_they_reached_on_the_target(pipeline: Pipeline) -> None:
    client = MlflowClient(pipeline.session.tracking_uri)
    experiment = client.get_experiment_by_name(pipeline.session.experiment)
    assert experiment is not None
    ranked = client.search_logged_models(
        [experiment.experiment_id],
        order_by=[{"field_name": f"metrics.{TARGET}/mAP", "ascending": False}],
    )
    results = pipeline.report.targets[TARGET]
    reached = sorted((found.mean_ap for found in results.values()), reverse=True)
    assert [
        metric.value for one in ranked for metric in one.metrics or [] if metric.key.endswith("mAP")
    ] == pytest.approx(reached)
    stage2 = next(
        r for r in runs_of(pipeline.session) if r.info.run_name == "stage 2 of smoke-muva"
    )
    assert stage2.inputs is not None
    assert {one.dataset.name for one in stage2.inputs.dataset_inputs} == {
        "syn-harbour", "syn-airport"
    }  # fmt: skip
    assert stage2.data.metrics["cost/core-hours"] > 0


def test_a_pipelines_parameters_are_few_and_tell_it_from_others(pipeline: Pipeline) -> None:
    parent = next(
        run for run in runs_of(pipeline.session) if "mlflow.parentRunId" not in run.data.tags
    )
    params = parent.data.params
    assert {"seed", "model.clip", "stage2.lr", "stage2.epochs", "sources"} <= params.keys()
    assert params["stage1.epochs"] == "2"
    assert len(params) < 40
    assert not [name for name in params if name.startswith("tune")]


def test_a_model_opens_in_one_call_and_embeds_as_the_pipeline_did(pipeline: Pipeline) -> None:
    report = pipeline.report
    bundle = muva.load(report.models["muva"])
    dataset = open_dataset(report.datasets[TARGET])
    rows = dataset.rows(splits=["query", "gallery"])["row"].to_numpy()
    ours = bundle.embed([decode_rgb(image) for image in dataset.read_images(rows)])
    (features,) = [
        artifact
        for artifact in list_artifacts(pipeline.session.store, "features")
        if artifact.name == f"{TARGET}-by-smoke-muva"
    ]
    theirs = FeatureParts(features).read(np.arange(len(rows)))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_market1501_tree_of_the_same_images_gives_the_same_metrics(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    report, session = pipeline.report, pipeline.session
    dataset = open_dataset(report.datasets[TARGET])
    rows = dataset.rows().to_pylist()
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    for number, row in enumerate(rows):
        name = f"{row['pid']:04d}_c{row['camid']}s1_{number:06d}_00.jpg"
        file = tmp_path / folders[row["split"]] / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(dataset.read_images([row["row"]])[0])
    tree = import_tree(session, "from-a-tree", tmp_path, layout="market1501", options={})
    for variant, model in report.models.items():
        found = evaluate_on(session, model, tree.artifact, pipeline.config, name=variant)
        assert found.computed
        assert found.scores == report.targets[TARGET][variant]


def test_features_of_another_program_score_alike(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = pipeline.report
    dataset = open_dataset(report.datasets[TARGET])
    rows = dataset.rows(splits=["query", "gallery"])
    images = [decode_rgb(image) for image in dataset.read_images(rows["row"].to_numpy())]
    features = Features(
        features=muva.load(report.models["muva"]).embed(images),
        ids=np.asarray(rows["image_id"].to_pylist()),
        pids=rows["pid"].to_numpy(),
        camids=rows["camid"].to_numpy(),
        split=np.asarray(rows["split"].to_pylist()),
    )
    write_features(tmp_path / "mine.npz", features)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "evaluate",
                "--features",
                f"{tmp_path / 'mine.npz'}",
                "--json",
                "--home",
                f"{tmp_path}",
            ]
        )
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)["mine"]
    assert found["mean_ap"] == pytest.approx(report.targets[TARGET]["muva"].mean_ap, abs=1e-6)


def test_an_epochs_parts_are_timed(pipeline: Pipeline) -> None:
    run = stage2_run(pipeline)
    spent = {name: run.data.metrics[f"stage2/{name}"] for name in ("memory_pass_s", "steps_s")}
    assert min(spent.values()) > 0
    assert 0 <= run.data.metrics["stage2/waiting_s"] < sum(spent.values())


def test_neither_workers_nor_loaders_nor_micro_batches_change_a_loss(pipeline: Pipeline) -> None:
    one, config = pipeline.report, pipeline.config
    elsewhere = dataclasses.replace(
        open_session(home=pipeline.session.home / "two"), store=pipeline.session.store
    )
    shutil.rmtree(open_path(one.models["muva"]))
    declared = declare_training(
        elsewhere,
        config,
        sources=[one.datasets[name] for name in config.sources],
        labels=[one.labels[name] for name in config.sources],
        name="smoke-muva",
        facts={"recipe": "smoke", "variant": "muva"},
    )
    workers = Workers(count=2, loaders=1, execution=ExecutionConfig(micro_batch=3))
    two = train(elsewhere, declared, workers)
    assert two.model.uri == one.models["muva"]
    summary = two.encoder.summary
    assert (summary["workers"], summary["compute"]["micro_batch"]) == (2, 3)
    assert summary["compute"]["loaders"] == 1
    history = runs_history(pipeline)
    losses = [epoch["loss"] for epoch in summary["history"]]
    np.testing.assert_allclose(losses, history, rtol=1e-4)


def test_how_it_is_computed_is_part_of_no_address_and_no_run(pipeline: Pipeline) -> None:
    execution = {"workers": 2, "micro_batch": 3, "deterministic": True, "keep_every": 1}
    config = with_settings(pipeline.config, {"execution": execution}, where="test")
    runs = {run.info.run_id: run.data.params for run in runs_of(pipeline.session)}
    again = run_recipe(pipeline.session, config)
    assert again.models == pipeline.report.models
    assert {n: a.address for n, a in again.datasets.items()} == {
        n: a.address for n, a in pipeline.report.datasets.items()
    }
    assert {n: a.address for n, a in again.labels.items()} == {
        n: a.address for n, a in pipeline.report.labels.items()
    }
    steps = [s for name, s in again.seconds.items() if name.startswith(("stage", "evaluate"))]
    assert max(steps) < 5, "nothing is computed again"
    assert {run.info.run_id: run.data.params for run in runs_of(pipeline.session)} == runs


def runs_history(pipeline: Pipeline) -> list[float]:
    run = stage2_run(pipeline)
    client = MlflowClient(pipeline.session.tracking_uri)
    return [p.value for p in client.get_metric_history(run.info.run_id, "stage2/loss")]


def open_path(uri: str) -> Path:
    return Path(open_artifact(uri).uri)


def test_a_mistake_in_a_workers_settings_is_told_as_it_is(
    pipeline: Pipeline,
) -> None:
    config = with_settings(pipeline.config, {"model.predictor_heads": 4}, where="test")
    with pytest.raises(
        MuvaError, match="a different architecture: predictor_heads is 2 in that model, 4 here"
    ):
        session = dataclasses.replace(pipeline.session, tracking_uri=None)
        declared = declare_training(
            session,
            config,
            sources=[pipeline.report.datasets[name] for name in config.sources],
            labels=[pipeline.report.labels[name] for name in config.sources],
            name="of-another-build",
            init=open_artifact(pipeline.report.models["muva"]),
        )
        train(session, declared, Workers())


def test_a_training_that_cannot_end_well_is_refused_before_anything_is_grounded(
    smoke_store: Path, smoke_recipe: Path, tmp_path: Path
) -> None:
    linked_copy(smoke_store / "datasets", tmp_path / "store" / "datasets")
    session = dataclasses.replace(open_session(home=tmp_path), tracking_uri=None)
    cases: list[tuple[dict[str, object], int, str]] = [
        (
            {"stage1.batch_size": 64},
            1,
            r"stage1\.batch_size is 64: .* 16 identities, .* only 12\. Lower stage1\.batch_size",
        ),
        (
            {"stage2.batch_size": 64},
            1,
            r"stage2\.batch_size is 64: .* Lower stage2\.batch_size to 48",
        ),
        ({"stage2.batch_size": 12}, 2, "2 workers cannot share the 3 identities"),
        (
            {"model.parts": ["head", "bag", "shoes"]},
            1,
            "model.parts names bag, shoes, which would have no pseudo-labels",
        ),
        ({"model.clip": "ViT-B-16:laion"}, 1, "open_clip has no weights laion for ViT-B-16"),
    ]
    for changes, workers, message in cases:
        changes |= {"execution.workers": workers}
        config = with_settings(load_recipe(smoke_recipe), changes, where="test")
        with pytest.raises(MuvaError, match=message):
            run_pipeline(session, config)
    assert not list_artifacts(session.store, "labels", unfinished=True)


def test_recipes_of_different_names_stand_side_by_side(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = pipeline.session.store
    config = with_settings(
        pipeline.config, {"name": "other", "variants": ["global_only"]}, where="test"
    )
    before = {key: store.read(key) for key in store.list()}
    session = Session(home=tmp_path, store=store, tracking_uri=None)
    report = run_pipeline(session, config)

    after = {key: store.read(key) for key in store.list()}
    assert before.items() <= after.items(), "nothing of the other recipe's is touched"
    model = open_artifact(report.models["global_only"])
    assert model.name == "other-global-only"
    smoke = find_artifact(store, "models", "smoke-global-only")
    assert smoke.uri == pipeline.report.models["global_only"]
    assert find_artifact(store, "metrics", f"other-global-only-on-{TARGET}").manifest()

    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--json", "--home", f"{tmp_path}", "--store", store.uri])
    assert stop.value.code == 0
    found = {row["method"]: row["mean_ap"] for row in json.loads(capsys.readouterr().out)}
    results = pipeline.report.targets[TARGET]
    assert found["global-only (smoke)"] == results["global_only"].mean_ap
    assert found["muva (smoke)"] == results["muva"].mean_ap
    assert found["global-only (other)"] == report.targets[TARGET]["global_only"].mean_ap


def test_more_workers_than_there_are_cores_are_refused(ray_session: None) -> None:
    with pytest.raises(MuvaError, match="1000 workers of 1 cores"):
        Workers(count=1000).check()


def test_gpus_are_used_left_alone_or_insisted_on(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.runtime.cluster.gpus", lambda: 2)
    two, three = (Workers(count=count, cpus_each=1) for count in (2, 3))
    assert two.use_gpu and not three.use_gpu
    without = dataclasses.replace(two, gpus_each=0)
    assert (without.gpus, without.use_gpu) == (0, False)
    assert without.runtime_env == {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    assert two.runtime_env is None
    one = Workers(cpus_each=1)
    dataclasses.replace(one, gpus_each=1).check()
    monkeypatch.setattr("workflows.runtime.cluster.gpus", lambda: 0)
    with pytest.raises(MuvaError, match=r"has 0 GPUs; .* --gpus-per-worker 0"):
        dataclasses.replace(one, gpus_each=1).check()


def test_cuda_graphs_are_for_one_worker_with_a_gpu(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count, gpus, counts in ((1, 0, "1 workers and 0"), (2, 2, "2 workers and 2"), (1, 1, None)):
        monkeypatch.setattr("workflows.runtime.cluster.gpus", lambda gpus=gpus: gpus)
        workers = Workers(count=count, cpus_each=1, execution=ExecutionConfig(cuda_graphs=True))
        expected = pytest.raises(
            MuvaError, match=f"--cuda-graphs .* {counts} GPUs: leave the option"
        )
        with expected if counts else nullcontext():
            workers.check()


@pytest.mark.parametrize(
    ("parts_of_second", "remedy"),
    [(("upper_body", "legs"), r"upper_body: .* set model.parts=\[upper_body\]"), ((), "none of")],
)
def test_sources_whose_labels_share_too_few_parts_are_refused(
    parts_of_second: tuple[str, ...], remedy: str, tmp_path: Path
) -> None:
    labels = []
    for name, parts in (("town", ("head", "upper_body")), ("city", parts_of_second)):
        artifact = Artifact(open_store(tmp_path), "labels", name, "0" * 16)
        artifact.commit(
            format_version=formats.LABELS, config={}, inputs={}, summary={"parts": parts}
        )
        labels.append(artifact)
    config = load_recipe("base", overrides=["model.parts=[head, upper_body]"])
    with pytest.raises(MuvaError, match=rf"town has head, upper_body; city has .*{remedy}"):
        check_parts(config, labels)
    check_parts(config, labels[:1])
