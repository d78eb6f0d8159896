"""Epochs judged beside a training, on people of its sources that it does not learn from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

import muva
from muva.config import ExperimentConfig, load_recipe, with_settings
from muva.data.artifacts import Artifact, find_artifact
from muva.data.sources import Sources
from muva.errors import MuvaError
from tests.shared import linked_copy
from workflows.results.comparison import compare_results, results_in
from workflows.runtime.messages import MessageQueue
from workflows.runtime.workers import Workers
from workflows.session import Session, open_session
from workflows.steps import validation
from workflows.steps.checkpoints import CHECKPOINTS, checkpoint_of_epoch
from workflows.steps.encoder import LAST_EPOCH, ON_SOURCES, model_of_epoch
from workflows.steps.pipeline import run_pipeline
from workflows.steps.train import Trained, declare_training, train
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.validation import HELD_OUT, VALIDATION, best, out_of_patience, validate

TARGET = "syn-station"
JUDGED = (
    "stage2.epochs=5",
    "stage2.lr=1e-3",
    "stage2.warmup_epochs=0",
    "validation={identities: 0.4}",
)


@dataclass(frozen=True)
class Training:
    session: Session
    config: ExperimentConfig
    sources: list[Artifact]
    labels: list[Artifact]
    trained: Trained
    heard: dict[int, float]


@pytest.fixture(scope="module")
def training(
    grounded_home: Callable[[Path], Path],
    smoke_recipe: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Training:
    session = open_session(home=grounded_home(tmp_path_factory.mktemp("judged")))
    config = load_recipe(smoke_recipe, overrides=JUDGED)
    sources = [find_artifact(session.store, "datasets", name) for name in config.sources]
    labels = [find_artifact(session.store, "labels", name) for name in config.sources]
    heard: dict[int, float] = {}
    trained = train(
        session,
        declare_training(
            session,
            config,
            sources=sources,
            labels=labels,
            name="smoke-muva",
            facts={"recipe": "smoke", "variant": "muva"},
        ),
        Workers(count=2, keep_every=2),
        on_validated=lambda epoch, metrics: heard.update({epoch: metrics[HELD_OUT]}),
    )
    return Training(session, config, sources, labels, trained, heard)


def test_every_epoch_is_judged_and_the_best_is_chosen(training: Training) -> None:
    verdicts = training.trained.encoder.summary["verdicts"]
    assert [verdict["epoch"] for verdict in verdicts] == [1, 2, 3, 4, 5]
    assert training.heard == {verdict["epoch"]: verdict[HELD_OUT] for verdict in verdicts}
    values = [verdict[HELD_OUT] for verdict in verdicts]
    assert len(set(values)) > 1, "nothing would be chosen"
    chosen = muva.load(training.trained.model.uri)
    assert chosen.metadata["epoch"] == 1 + int(np.argmax(values))
    last = muva.load(training.trained.encoder.artifact.uri)
    assert last.metadata["epoch"] == 5
    assert chosen.metadata["sources"] == last.metadata["sources"]


def test_a_verdict_is_the_plain_evaluation_of_that_epochs_model(training: Training) -> None:
    assert training.trained.chosen is not None
    verdict = training.trained.chosen.summary["verdict"]
    model = muva.load(training.trained.model.uri)
    means = []
    for held_out in Sources.of(training.sources, training.config).held_out():
        rows = held_out.rows.to_pydict()
        features = model.embed(held_out.dataset.read_images(rows["row"]))
        precisions = []
        for asking in np.flatnonzero(np.array(rows["split"]) == "query"):
            ranked = np.argsort(-(features @ features[asking]), kind="stable")
            matches = [
                rows["pid"][other] == rows["pid"][asking]
                for other in ranked
                if rows["split"][other] == "gallery"
                and (rows["pid"][other], rows["camid"][other])
                != (rows["pid"][asking], rows["camid"][asking])
            ]
            found = np.flatnonzero(matches)
            if len(found):
                precisions.append(np.mean((1 + np.arange(len(found))) / (1 + found)))
        means.append(np.mean(precisions))
        assert verdict[f"{held_out.dataset.name}/mAP"] == pytest.approx(means[-1])
    assert verdict[HELD_OUT] == pytest.approx(np.mean(means))


def test_checkpoints_are_kept_as_asked_and_nothing_else(training: Training) -> None:
    artifact = training.trained.encoder.artifact
    kept = {key.split("/")[2:4][1] for key in artifact.store.list(artifact.key(CHECKPOINTS))}
    assert kept == {"00002", "00004"}
    assert checkpoint_of_epoch(artifact, 4)["epoch"] == 4
    with pytest.raises(MuvaError, match="no checkpoint of epoch 3 is kept, only of 2, 4"):
        checkpoint_of_epoch(artifact, 3)
    assert {key.split("/")[2] for key in artifact.store.list(artifact.address + "/")} == {
        "bundle", "manifest.json", "started.json", "states", "summary.json"
    }  # fmt: skip


def test_a_kept_epoch_becomes_a_model(training: Training) -> None:
    last = training.trained.encoder.artifact
    done = model_of_epoch(training.session, last, 2)
    assert done.artifact.name == "smoke-muva-epoch-2"
    model = muva.load(done.artifact.uri)
    weights = checkpoint_of_epoch(last, 2)
    for name, value in model.model.named_parameters():
        stored = weights.get(f"model/{name}")
        assert stored is None or value.equal(torch.as_tensor(stored)), name
    assert model.metadata == {**muva.load(last.uri).metadata, "epoch": 2}
    with pytest.raises(MuvaError, match="no checkpoint of epoch 3 is kept"):
        model_of_epoch(training.session, last, 3)
    for other in (training.trained.model, done.artifact):
        with pytest.raises(MuvaError, match="`muva train` made after its last epoch"):
            model_of_epoch(training.session, other, 2)


def test_the_three_numbers_stay_apart(training: Training) -> None:
    config = training.config.model_copy(update={"variants": ("muva",)})
    report = run_pipeline(training.session, config)
    assert set(report.models) == {"muva", "muva, chosen"}
    assert report.models["muva, chosen"] == training.trained.model.uri
    found = {
        one.checkpoint: one.mean_ap
        for one in compare_results(results_in(training.session.store))
        if one.method == "muva (smoke)"
    }
    assert found == {
        LAST_EPOCH: report.targets[TARGET]["muva"].mean_ap,
        ON_SOURCES: report.targets[TARGET]["muva, chosen"].mean_ap,
    }


def test_what_trains_and_judges_has_no_way_to_a_target(training: Training) -> None:
    assert training.config.targets == (TARGET,)
    inputs = TrainingInputs.of(training.config, sources=training.sources, labels=training.labels)
    assert TARGET.encode() not in cloudpickle.dumps(inputs)
    assert inputs.config.targets == ()
    datasets = [*inputs.sources.pool().datasets]
    datasets += [held_out.dataset for held_out in inputs.sources.held_out()]
    for dataset in datasets:
        assert dataset.name in training.config.sources
        for row in range(dataset.summary.images):
            if row not in dataset.rows([])["row"].to_pylist():
                with pytest.raises(MuvaError, match="which must not be read here"):
                    dataset.read_images([row])


def test_a_judgement_that_fails_is_told_to_the_training(training: Training, tmp_path: Path) -> None:
    nothing = Artifact(training.session.store, "models", "nothing", "0" * 16)
    inputs = TrainingInputs.of(training.config, sources=training.sources, labels=training.labels)
    validate_here(inputs, nothing, MessageQueue())
    verdict = json.loads(nothing.store.read(nothing.key(VALIDATION, "00003.json")))
    assert "no checkpoint of epoch 3 is kept" in verdict["mistake"]
    nothing.delete_part(VALIDATION)


def test_beside_a_training_that_fills_the_gpu_processors_judge(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def metrics_on(device: torch.device) -> dict[str, float]:
        tried.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return {HELD_OUT: 0.5}

    monkeypatch.setattr(validation, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(validation, "_metrics", lambda *given: metrics_on(given[-1]))
    artifact = Artifact(training.session.store, "models", "full", "0" * 16)
    inputs = TrainingInputs.of(training.config, sources=training.sources, labels=training.labels)
    queue = MessageQueue()
    found = validate_here(inputs, artifact, queue)
    assert tried == ["cuda", "cpu"] and found == {HELD_OUT: 0.5}
    note, (kind, result) = queue.drain()
    assert note[0] == "note" and note[1].startswith(
        "Epoch 3 is validated on the CPU: the training "
    )
    assert kind == "validation" and result == {"epoch": 3, HELD_OUT: 0.5}
    artifact.delete_part(VALIDATION)


def test_what_else_goes_wrong_on_a_gpu_is_not_hidden(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> dict[str, float]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(validation, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(validation, "_metrics", broken)
    inputs = TrainingInputs.of(training.config, sources=training.sources, labels=training.labels)
    artifact = Artifact(training.session.store, "models", "broken", "0" * 16)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        validate_here(inputs, artifact, MessageQueue())


def validate_here(
    inputs: TrainingInputs, artifact: Artifact, queue: MessageQueue
) -> dict[str, float]:
    """In this process, whose threads stay as many as they are."""
    threads = torch.get_num_threads()
    try:
        return validate(3, inputs=inputs, artifact=artifact, queue=queue)
    finally:
        torch.set_num_threads(threads)


def verdicts(*values: float) -> list[dict[str, float]]:
    return [{"epoch": epoch, HELD_OUT: value} for epoch, value in enumerate(values, start=1)]


def test_the_earliest_of_the_best_is_chosen() -> None:
    assert best(verdicts(0.1, 0.4, 0.3, 0.4))["epoch"] == 2


@pytest.mark.parametrize(
    ("values", "patience", "over"),
    [
        ((), 1, False),
        ((0.1, 0.2, 0.3), 1, False),
        ((0.3, 0.2), 1, True),
        ((0.3, 0.3), 1, True),
        ((0.3, 0.2), 2, False),
        ((0.1, 0.3, 0.2, 0.25), 2, True),
        ((0.3, 0.2, 0.1, 0.0), None, False),
    ],
)
def test_patience_ends_with_verdicts_no_better_than_before(
    values: tuple[float, ...], patience: int | None, over: bool
) -> None:
    assert out_of_patience(verdicts(*values), patience) is over


def test_a_judged_training_that_is_resumed_ends_as_it_would_have(
    training: Training, tmp_path: Path
) -> None:
    """Also where a judgement had failed: it is asked for anew."""
    undisturbed = training.trained.encoder
    verdicts = undisturbed.summary["verdicts"]
    assert best(verdicts)["epoch"] > 1, "the checkpoint of epoch 1 would be needed, and is not kept"
    store = Path(training.session.store.uri)
    for kind in ("datasets", "labels", "prompts"):
        linked_copy(store / kind, tmp_path / "store" / kind)
    session = open_session(home=tmp_path)
    # As a driver that was killed after two epochs leaves it.
    begun = dataclasses.replace(undisturbed.artifact, store=session.store)
    kept = f"{begun.address}/{CHECKPOINTS}/00002"
    linked_copy(store / kept, tmp_path / "store" / kept)
    failed = {"mistake": "a disk was full"}
    for epoch, verdict in ((1, verdicts[0]), (2, failed)):
        begun.store.write(begun.key(VALIDATION, f"{epoch:05d}.json"), json.dumps(verdict).encode())

    declared = declare_training(
        session,
        training.config,
        sources=[find_artifact(session.store, "datasets", one.name) for one in training.sources],
        labels=[find_artifact(session.store, "labels", one.name) for one in training.labels],
        name="smoke-muva",
    )
    trained = train(session, declared, Workers(count=2, keep_every=2))

    assert trained.encoder.artifact.address == begun.address
    assert not trained.prompts.computed
    assert without_times(trained.encoder.summary) == without_times(undisturbed.summary)
    ended, expected = (
        muva.load(one.artifact.uri).model.state_dict() for one in (trained.encoder, undisturbed)
    )
    assert ended.keys() == expected.keys()
    for weight, value in ended.items():
        assert value.equal(expected[weight]), weight


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    epochs = [
        {name: value for name, value in epoch.items() if not name.endswith("_s")}
        for epoch in summary["history"]
    ]
    return {**summary, "history": epochs}


def test_patience_ends_a_training(training: Training) -> None:
    values = [one[HELD_OUT] for one in training.trained.encoder.summary["verdicts"]]
    worse = next(e for e in range(1, 5) if values[e] <= max(values[:e])) + 1
    settings = {"stage2.epochs": 9, "validation.patience": 1}
    patient = with_settings(training.config, settings, where="test")
    declared = declare_training(
        training.session,
        patient,
        sources=training.sources,
        labels=training.labels,
        name="patient",
    )
    trained = train(training.session, declared, Workers())
    history = trained.encoder.summary["history"]
    assert len(history) == worse + 1, "one epoch goes on while the one before it is judged"
    assert trained.chosen is not None
    through = [one[HELD_OUT] for one in trained.encoder.summary["verdicts"]]
    assert trained.chosen.summary["verdict"]["epoch"] == 1 + int(np.argmax(through))
