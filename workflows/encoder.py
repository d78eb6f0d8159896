"""Stage 2 as a step: the image encoder, by a Ray Train group that saves its state as it goes."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from muva.data.artifacts import Artifact, fingerprint
from muva.errors import MuvaError
from muva.model.bundle import BUNDLE_FORMAT
from muva.model.precision import resolve_precision
from muva.models import store_bundle
from muva.training.divergence import DivergedError
from muva.training.stage2 import train_image_encoder
from workflows.board import Board, attend
from workflows.cluster import ray_cluster
from workflows.epochs import follow, posting, report_epochs
from workflows.progress import track
from workflows.prompts import learned_contexts
from workflows.session import Session
from workflows.states import delete_states, newest_state, save_diverged, save_state
from workflows.steps import Done, Step, Tell, do_step
from workflows.training_inputs import TrainingInputs
from workflows.workers import MOST_FAILURES, Workers

SUMMARY = "summary.json"
RAY_NOTES = "ray"
START_FORMAT = 2
"""What a training takes over from `--init`: 2 added the classifier."""


def encoder_step(
    session: Session,
    inputs: TrainingInputs,
    addresses: dict[str, str],
    prompts: Done,
    workers: Workers,
    *,
    name: str,
) -> Done:
    """The model of these sources and prompts, trained where it is not there."""
    config = inputs.config
    settings = {
        "model": config.model.model_dump(mode="json"),
        "stage2": config.stage2.model_dump(mode="json"),
        "seed": config.seed,
    }
    if inputs.init is not None:
        settings["start"] = START_FORMAT
    address = fingerprint([settings, prompts.artifact.fingerprint])
    artifact = Artifact(session.store, "models", name, address)

    def work(tell: Tell) -> dict[str, Any]:
        with ray_cluster(), track(f"stage 2 of {name}: image encoder") as progress:
            board = Board()
            trainer = _trainer(inputs, prompts.artifact, artifact, workers, board)
            on_message = follow(progress, tell, "stage2", config.stage2.epochs)
            attend(trainer.fit, board=board, on_message=on_message)
        summary = json.loads(artifact.store.read(artifact.key(SUMMARY)))
        delete_states(artifact)
        return summary

    step = Step(
        label=f"stage 2 of {name}",
        artifact=artifact,
        format_version=BUNDLE_FORMAT,
        config=settings,
        inputs={**addresses, "prompts": prompts.artifact.address},
    )
    return do_step(step, session=session, work=work, report=report_epochs("stage2"))


def _train_encoder(task: Mapping[str, Any]) -> None:
    """Stage 2 in each of Ray Train's workers."""
    try:
        _run_stage2(task)
    except DivergedError as error:
        # It is the same on all workers: the first one tells.
        if ray.train.get_context().get_world_rank() == 0:
            made_from = {"inputs": task["inputs"].as_json(), "prompts": task["prompts"].uri}
            mistake = save_diverged(task["artifact"], error, made_from=made_from)
            task["board"].post(("mistake", mistake))
    except MuvaError as mistake:
        # Ray would start the workers again, and they would end here again: the driver is told.
        task["board"].post(("mistake", mistake))


def _run_stage2(task: Mapping[str, Any]) -> None:
    """Trains; the first worker writes states and, at the end, the bundle."""
    inputs: TrainingInputs = task["inputs"]
    prompts: Artifact = task["prompts"]
    artifact: Artifact = task["artifact"]
    leads = ray.train.get_context().get_world_rank() == 0
    device = ray.train.torch.get_device()
    torch.set_num_threads(task["threads"])
    state, history = newest_state(artifact)
    model, images = inputs.open(predicts_masks=True)
    model.contexts.data.copy_(learned_contexts(prompts))
    for report in train_image_encoder(
        model=model,
        images=images,
        settings=inputs.config.stage2,
        seed=inputs.config.seed,
        device=device,
        state=state,
        progress=posting(task["board"], "batches") if leads else None,
        compute=task["compute"],
    ):
        history.append({"epoch": report.epoch, **report.metrics, **report.seconds})
        if leads:
            save_state(artifact, report, history)
            task["board"].post(("epoch", history[-1]))
        ray.train.report({"epoch": report.epoch, **report.metrics})
    if leads:
        store_bundle(
            artifact, model, metadata={"sources": task["sources"], "prompts": prompts.address}
        )
        precision = resolve_precision(inputs.config.stage2.precision, device)
        summary = {
            "identities": model.identities,
            "feature_dim": model.feature_dim,
            "workers": ray.train.get_context().get_world_size(),
            "compute": dataclasses.asdict(task["compute"]),
            "precision": precision,
            "history": history,
        }
        artifact.store.write(artifact.key(SUMMARY), json.dumps(summary).encode())


def _trainer(
    inputs: TrainingInputs,
    prompts: Artifact,
    artifact: Artifact,
    workers: Workers,
    board: Board,
) -> ray.train.torch.TorchTrainer:
    return ray.train.torch.TorchTrainer(
        _train_encoder,
        train_loop_config={
            "inputs": inputs,
            "prompts": prompts,
            "artifact": artifact,
            "sources": [Path(uri).name for uri in inputs.datasets],
            "threads": workers.threads,
            "compute": workers.how,
            "board": board,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.threads},
        ),
        run_config=ray.train.RunConfig(
            # Our states are in the store; Ray keeps its own notes beside them, one set a try.
            name=uuid.uuid4().hex,
            storage_path=f"{artifact.uri}/{RAY_NOTES}",
            failure_config=ray.train.FailureConfig(max_failures=MOST_FAILURES),
        ),
    )
