"""Stage 2 in the workers of a group; the first worker saves checkpoints and the bundle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from muva.data.artifacts import Artifact, open_artifact
from muva.errors import MuvaError
from muva.model.precision import resolve_precision
from muva.models import store_bundle
from muva.training.compute import Compute
from muva.training.divergence import DivergedError
from muva.training.stage2 import train_image_encoder
from muva.training.stage2_checkpoint import load_weights
from workflows.runtime.messages import MessageQueue
from workflows.runtime.train_group import (
    is_first_worker,
    placement_group,
    worker_count,
    worker_device,
)
from workflows.steps.checkpoints import (
    checkpoint_of_epoch,
    latest_checkpoint,
    save_diverged,
    save_epoch,
)
from workflows.steps.encoder import SUMMARY, best
from workflows.steps.mask_pictures import is_shown, masks_of
from workflows.steps.prompts import learned_contexts
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.training_messages import BATCHES, progress_sender
from workflows.steps.validation import Validator


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderTask:
    """The input of every worker of a group."""

    inputs: TrainingInputs
    prompts: Artifact
    artifact: Artifact
    chosen: Artifact
    """The artifact of the model of the chosen epoch, if one is chosen."""
    threads: int
    compute: Compute
    keep_every: int | None
    queue: MessageQueue
    draws_masks: bool
    """Whether the driver draws the predicted masks."""


def train_in_worker(config: Mapping[str, EncoderTask]) -> None:
    """The training function of the workers; `config` has the task."""
    task = config["task"]
    try:
        _train(task)
    except DivergedError as error:
        # It happens in all workers at the same step: the first one reports it.
        if is_first_worker():
            made_from = {"inputs": task.inputs.as_json(), "prompts": task.prompts.uri}
            reported = save_diverged(task.artifact, error, made_from=made_from)
            task.queue.send(("error", reported), block=True)
    except MuvaError as error:
        # Ray would restart the workers, which would diverge again: the driver raises the error.
        task.queue.send(("error", error), block=True)


def _train(task: EncoderTask) -> None:
    inputs, artifact = task.inputs, task.artifact
    epochs_in_all = inputs.config.stage2.epochs
    first, group = is_first_worker(), placement_group()
    if first and group is not None:
        task.queue.send(("placement group", group))
    device = worker_device()
    torch.set_num_threads(task.threads)
    checkpoint, history = latest_checkpoint(artifact)
    model, images = inputs.open(predicts_masks=True)
    model.contexts.data.copy_(learned_contexts(task.prompts))
    validator = Validator(inputs.config, artifact)
    last = history[-1]["epoch"] if history else 0
    validator.catch_up(last)
    if checkpoint is not None and validator.should_stop(last):
        load_weights(model, checkpoint)
        epochs = iter(())
    else:
        epochs = train_image_encoder(
            model=model,
            images=images,
            settings=inputs.config.stage2,
            seed=inputs.config.seed,
            device=device,
            checkpoint=checkpoint,
            progress=progress_sender(task.queue, BATCHES) if first else None,
            compute=task.compute,
        )
    for report in epochs:
        last = report.epoch
        history.append({"epoch": last, **report.metrics, **report.seconds})
        if first:
            kept = [*validator.best_so_far(last), *kept_for_good(last, task.keep_every)]
            save_epoch(artifact, report, history, keep=kept)
            task.queue.send(("epoch", history[-1]))
            shown = task.draws_masks and is_shown(last, epochs_in_all)
            if shown and (masks := masks_of(last, model, images, device)):
                task.queue.send(("masks", masks))
        validator.report(last, report.metrics)
        if validator.should_stop(last):
            break
    if not first:
        return
    metadata = _metadata(task)
    store_bundle(artifact, model, metadata={**metadata, "epoch": last})
    results = validator.results(last)
    if results:
        epoch = best(results)["epoch"]
        load_weights(model, checkpoint_of_epoch(artifact, epoch))
        store_bundle(task.chosen, model, metadata={**metadata, "epoch": epoch})
    summary = {
        "identities": model.identities,
        "feature_dim": model.feature_dim,
        "workers": worker_count(),
        "threads": task.threads,
        "device": device.type,
        "compute": dataclasses.asdict(task.compute),
        "precision": resolve_precision(inputs.config.stage2.precision, device),
        "history": history,
        "verdicts": results,
    }
    artifact.store.write(artifact.key(SUMMARY), json.dumps(summary).encode())


def _metadata(task: EncoderTask) -> dict[str, object]:
    """The metadata in the bundle: its provenance."""
    sources = task.inputs.sources.domains
    return {
        "sources": [Path(uri).name for uri in sources],
        "source_names": [open_artifact(uri).name for uri in sources],
        "prompts": task.prompts.address,
        **({"init": Path(task.inputs.init).name} if task.inputs.init else {}),
    }


def kept_for_good(epoch: int, every: int | None) -> list[int]:
    """The epochs up to this one whose checkpoints are kept after the training."""
    return list(range(every, epoch + 1, every)) if every else []
