"""Stage 1 as a step: the sources' prompts, by a Ray task that saves its state as it goes."""

from __future__ import annotations

import time
from typing import Any

import ray
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from muva.data.artifacts import Artifact, fingerprint, open_artifact
from muva.model.precision import resolve_precision
from muva.training.divergence import DivergedError
from muva.training.images import image_features
from muva.training.stage1 import learn_prompts
from workflows.board import Board, gather
from workflows.cluster import ANYWHERE, cpus, gpus, ray_cluster
from workflows.epochs import device_here, follow, posting, report_epochs
from workflows.progress import track
from workflows.session import Session
from workflows.states import delete_states, newest_state, save_diverged, save_state
from workflows.steps import Done, Step, Tell, do_step
from workflows.training_inputs import TrainingInputs, without_mask_settings
from workflows.workers import MOST_FAILURES, Workers

PROMPTS_FORMAT = 1
CONTEXTS = "contexts.safetensors"
SAVE_STATE_EVERY_S = 30.0


def prompts_step(
    session: Session,
    inputs: TrainingInputs,
    addresses: dict[str, str],
    contents: list[str],
    workers: Workers,
    *,
    name: str,
) -> Done:
    """The prompts of these sources, learned where they are not there."""
    config = inputs.config
    settings = {
        "model": without_mask_settings(config.model).model_dump(mode="json"),
        "prompts": config.prompts.model_dump(mode="json"),
        "stage1": config.stage1.model_dump(mode="json"),
        "seed": config.seed,
    }
    if config.train_on != "train":
        settings["train_on"] = config.train_on
    if inputs.sources.held_out_share:
        settings["held_out_share"] = inputs.sources.held_out_share
    labels = [open_artifact(uri).address for uri in inputs.labels]
    made_from = [contents, labels, inputs.init and open_artifact(inputs.init).address]
    artifact = Artifact(session.store, "prompts", name, fingerprint([settings, made_from]))

    def work(tell: Tell) -> dict[str, Any]:
        with ray_cluster(), track(f"stage 1 of {name}: prompts") as progress:
            board = Board()
            threads = min(cpus(), workers.count * workers.threads)
            learn = _learn_prompts.options(num_cpus=threads, num_gpus=min(1, gpus()))
            task = learn.remote(inputs, artifact, threads, board)
            on_message = follow(progress, tell, "stage1", config.stage1.epochs)
            summary = gather([task], board=board, on_message=on_message)[0]
        delete_states(artifact)
        return summary

    step = Step(
        label=f"stage 1 of {name}",
        artifact=artifact,
        format_version=PROMPTS_FORMAT,
        config=settings,
        inputs=addresses,
    )
    return do_step(step, session=session, work=work, report=report_epochs("stage1"))


@ray.remote(max_retries=MOST_FAILURES, scheduling_strategy=ANYWHERE)
def _learn_prompts(
    inputs: TrainingInputs, artifact: Artifact, threads: int, board: Board
) -> dict[str, Any]:
    """Stage 1 in one process: the prompts are written, the manifest's summary returned."""
    # Set here, for sums depend on it and Ray may reuse a process that had another number.
    torch.set_num_threads(threads)
    device = device_here()
    settings = inputs.config.stage1
    state, history = newest_state(artifact)
    model, images = inputs.open(predicts_masks=False)
    precision = resolve_precision(settings.precision, device)
    features = image_features(
        model.to(device),
        images,
        device=device,
        batch_size=settings.batch_size,
        precision=precision,
        progress=posting(board, "features"),
    )
    saved_at = time.monotonic()
    epochs = learn_prompts(
        model=model,
        features=features,
        labels=images.labels,
        settings=settings,
        seed=inputs.config.seed,
        state=state,
    )
    try:
        for report in epochs:
            history.append({"epoch": report.epoch, **report.metrics})
            board.post(("epoch", history[-1]))
            if time.monotonic() - saved_at > SAVE_STATE_EVERY_S:
                save_state(artifact, report, history)
                saved_at = time.monotonic()
    except DivergedError as error:
        raise save_diverged(artifact, error, made_from={"inputs": inputs.as_json()}) from error
    contexts = {"contexts": model.contexts.detach().cpu().contiguous()}
    artifact.store.write(artifact.key(CONTEXTS), save_tensors(contexts))
    return {"identities": model.identities, "precision": precision, "history": history}


def learned_contexts(prompts: Artifact) -> torch.Tensor:
    """The contexts (N, G, K, W) of a made prompts artifact."""
    return load_tensors(prompts.store.read(prompts.key(CONTEXTS)))["contexts"]
