"""The tasks of stage 1, each of which learns the prompts of a share of the identities.

The centroids of the identities, which all shares need, are computed once and saved with the
checkpoints.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from muva.config import Stage1Config
from muva.data.artifacts import Artifact
from muva.data.store import MissingKeyError
from muva.model.muva_model import MuvaModel
from muva.model.precision import Precision, resolve_precision
from muva.training.compute import Compute
from muva.training.divergence import DivergedError
from muva.training.loader import TrainingImages
from muva.training.report import EpochReport
from muva.training.stage1 import identity_shares, image_centroids, learn_prompts
from workflows.progress import Track
from workflows.runtime.capacity import CapacityMonitor
from workflows.runtime.cluster import cpus, cpus_of_one_node
from workflows.runtime.messages import MessageQueue
from workflows.runtime.tasks import run_tasks
from workflows.runtime.workers import Workers
from workflows.steps.checkpoints import (
    CHECKPOINTS,
    History,
    latest_checkpoint,
    save_diverged,
    save_epoch,
)
from workflows.steps.prompts import CONTEXTS
from workflows.steps.step import MetricLogger
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.training_messages import (
    BATCHES,
    default_device,
    progress_sender,
    training_message_handler,
)

CENTROIDS = f"{CHECKPOINTS}/start"
"""The folder of the centroids, which are stored as the checkpoint of epoch 0."""
MAX_SAVING_SHARE = 1 / 50
"""The fraction of the time that may be spent on saving checkpoints."""
_SHARES = f"{CHECKPOINTS}/shares/count.json"
"""Stores the number of shares with which the stage was started; deleted with the checkpoints."""


@dataclass(frozen=True)
class Share:
    """The identities of one task: the `index`-th of `count` parts, from 0."""

    index: int
    count: int

    @property
    def folder(self) -> str:
        """The folder of its checkpoints."""
        return f"{CHECKPOINTS}/share-{self.index + 1}-of-{self.count}"


@dataclass(frozen=True)
class Learned:
    """The result of a share."""

    contexts: torch.Tensor
    """(n, G, K, W)."""
    history: History
    precision: Precision


def learn_shares(
    inputs: TrainingInputs,
    artifact: Artifact,
    workers: Workers,
    progress: Track,
    log_metrics: MetricLogger,
) -> dict[str, Any]:
    """Learn all shares and write the prompts; returns the summary for the manifest."""
    settings = inputs.config.stage1
    count = _share_count(artifact, _shares_for(workers, settings))
    shares = [Share(index, count) for index in range(count)]
    cores = min(cpus(), workers.count * workers.threads)
    queue = MessageQueue()
    epochs = _Epochs(count, progress, log_metrics, settings.epochs)

    def on_message(message: tuple[str, Any]) -> None:
        kind, content = message
        if kind == "diverged":
            reason, checkpoint = content
            error = DivergedError(reason, lambda: checkpoint)
            raise save_diverged(artifact, error, made_from={"inputs": inputs.as_json()})
        if kind == "epochs":
            epochs.add(*content)
        elif kind == BATCHES:
            epochs.add_batches(content["share"], content["done"], content["total"])
        else:
            epochs.on_message(message)

    def run(task: Any, jobs: Sequence[Share | None]) -> list[Any]:
        threads = max(1, min(cores // len(jobs), cpus_of_one_node()))
        devices = min(1, workers.gpus)
        return run_tasks(
            task,
            [(inputs, artifact, job, workers.compute, queue) for job in jobs],
            cpus=threads,
            gpus=devices,
            threads=threads,
            runtime_env=workers.runtime_env,
            queue=queue,
            on_message=on_message,
            # Shares that do not fit at the same time are learned one after the other.
            capacity=CapacityMonitor(processes=1, cpus=threads, gpus=devices),
        )

    # A single share computes them itself: a separate task would open everything twice.
    if count > 1 and latest_checkpoint(artifact, folder=CENTROIDS)[0] is None:
        run(compute_centroids, [None])
    learned: list[Learned] = run(learn_share, shares)
    contexts = torch.cat([share.contexts for share in learned]).contiguous()
    artifact.store.write(artifact.key(CONTEXTS), save_tensors({"contexts": contexts}))
    return {
        "identities": len(contexts),
        "precision": learned[0].precision,
        "history": _together([share.history for share in learned]),
    }


def _shares_for(workers: Workers, settings: Stage1Config) -> int:
    """One per worker, but at most one per GPU, if any, and one per identity in a batch."""
    in_a_batch = settings.batch_size // settings.images_per_identity
    return min(workers.count, workers.gpus or workers.count, in_a_batch)


def _share_count(artifact: Artifact, wanted: int) -> int:
    """The number of shares with which the stage was started; `wanted` if it starts now."""
    key = artifact.key(_SHARES)
    artifact.store.create(key, json.dumps(wanted).encode())
    try:
        return int(json.loads(artifact.store.read(key)))
    except MissingKeyError:  # another driver has just finished the stage
        return wanted


def compute_centroids(
    inputs: TrainingInputs, artifact: Artifact, _: None, compute: Compute, queue: MessageQueue
) -> None:
    """Compute and save the centroids, which all shares need."""
    with compute.attention_kernel():
        _centroids(inputs, artifact, *inputs.open(predicts_masks=False), compute, queue)


def learn_share(
    inputs: TrainingInputs, artifact: Artifact, share: Share, compute: Compute, queue: MessageQueue
) -> Learned | None:
    """Learn a share of the identities, resuming from its last checkpoint; None if it diverged."""
    with compute.attention_kernel():
        return _learn_share(inputs, artifact, share, compute, queue)


def _learn_share(
    inputs: TrainingInputs, artifact: Artifact, share: Share, compute: Compute, queue: MessageQueue
) -> Learned | None:
    settings = inputs.config.stage1
    precision = resolve_precision(settings.precision, default_device())
    checkpoint, history = latest_checkpoint(artifact, folder=share.folder)
    if history:
        queue.send(("epochs", (share.index, history)))
    if checkpoint is not None and checkpoint["epoch"] == settings.epochs:
        return Learned(torch.as_tensor(checkpoint["contexts"]), history, precision)
    model, images = inputs.open(predicts_masks=False)
    centroids = _centroids(inputs, artifact, model, images, compute, queue)
    identities = identity_shares(images.labels, share.count)[share.index]
    epochs = learn_prompts(
        model=model.to(default_device()),
        centroids=centroids,
        labels=images.labels,
        settings=settings,
        seed=inputs.config.seed,
        identities=identities,
        checkpoint=checkpoint,
        progress=progress_sender(queue, BATCHES, share=share.index),
    )
    saved_at, took = 0.0, 0.0
    try:
        for report in epochs:
            history.append({"epoch": report.epoch, **report.metrics})
            queue.send(("epochs", (share.index, history[-1:])))
            since = time.monotonic() - saved_at
            if report.epoch == settings.epochs or took <= MAX_SAVING_SHARE * since:
                started_at = time.monotonic()
                save_epoch(artifact, report, history, folder=share.folder)
                saved_at = time.monotonic()
                took = saved_at - started_at
    except DivergedError as error:
        # Other shares may diverge too: the driver keeps the checkpoint of the first one.
        queue.send(("diverged", (str(error), error.checkpoint())), block=True)
        return None
    contexts = model.contexts[identities.start : identities.stop].detach().cpu()
    return Learned(contexts, history, precision)


def _centroids(
    inputs: TrainingInputs,
    artifact: Artifact,
    model: MuvaModel,
    images: TrainingImages,
    compute: Compute,
    queue: MessageQueue,
) -> torch.Tensor:
    """The centroids of the identities (N, F), loaded so that all shares have the same ones."""
    checkpoint, _ = latest_checkpoint(artifact, folder=CENTROIDS)
    if checkpoint is not None:
        return torch.as_tensor(checkpoint["centroids"])
    centroids = image_centroids(
        model,
        images,
        inputs.config.stage1,
        device=default_device(),
        progress=progress_sender(queue, "features"),
        compute=compute,
    )
    kept = {"centroids": centroids.cpu()}
    report = EpochReport(epoch=0, metrics={}, step_losses=(), checkpoint=lambda: kept)
    save_epoch(artifact, report, [], folder=CENTROIDS)
    return centroids


def _together(histories: Sequence[History]) -> History:
    """The epochs that all shares have finished; the loss is the sum over the shares."""
    return [
        {**parts[0], "loss": sum(part["loss"] for part in parts)}
        for parts in zip(*histories, strict=False)
    ]


class _Epochs:
    """Combines the epochs of the shares, and reports those that all shares have finished."""

    def __init__(self, count: int, progress: Track, log_metrics: MetricLogger, epochs: int) -> None:
        self.on_message = training_message_handler(
            progress, log_metrics, "stage1", epochs, reached=self._reached
        )
        self._progress, self._total = progress, epochs
        self._histories: list[History] = [[] for _ in range(count)]
        self._batches = [0.0] * count
        """The finished fraction of the epoch that each share computes."""
        self._passed_on = 0

    def add(self, share: int, epochs: History) -> None:
        """Add finished epochs of a share; a lost share restarts from its last checkpoint."""
        self._histories[share][epochs[0]["epoch"] - 1 :] = epochs
        self._batches[share] = 0.0
        together = _together(self._histories)
        if len(together) <= self._passed_on:
            self._show(share, f"epoch {epochs[-1]['epoch']} of {self._total}")
        for epoch in together[self._passed_on :]:
            self.on_message(("epoch", epoch))
        self._passed_on = max(self._passed_on, len(together))

    def add_batches(self, share: int, done: int, total: int) -> None:
        """Show how far a share has come in its epoch."""
        self._batches[share] = done / total
        epoch = len(self._histories[share]) + 1
        self._show(share, f"epoch {epoch} of {self._total}, {BATCHES} {done} of {total}")

    def _show(self, share: int, note: str) -> None:
        """Show the epochs that all shares have finished; the time left is that of all shares."""
        count = len(self._histories)
        if count > 1:
            note = f"share {share + 1} of {count}: {note}"
        self._progress.update(self._passed_on, self._total, note=note, finer=self._reached())

    def _reached(self) -> float:
        """The mean over the shares of their epochs, with the finished fraction of the next one."""
        epochs = sum(map(len, self._histories)) + sum(self._batches)
        return epochs / len(self._histories)
