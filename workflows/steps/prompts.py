"""Stage 1 as a step: the sources' prompts, by Ray tasks that learn a share of the identities each.

What the shares have in common, the identities' centroids, is computed once and kept beside the
artifact. Each share saves its own states as it goes, and a stage that was begun goes on in the
shares that it was begun in, whatever the number of workers is now.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from muva.config import Stage1Config
from muva.data.artifacts import Artifact, fingerprint, open_artifact
from muva.model.muva_model import MuvaModel
from muva.model.precision import Precision, resolve_precision
from muva.training.compute import Compute
from muva.training.divergence import DivergedError
from muva.training.loader import TrainingImages
from muva.training.report import EpochReport
from muva.training.stage1 import identity_shares, image_centroids, learn_prompts
from workflows.progress import Track, track
from workflows.runtime.capacity import Room
from workflows.runtime.cluster import ANYWHERE, cpus, cpus_of_one_node, ray_cluster
from workflows.runtime.messages import Board, gather
from workflows.runtime.workers import MOST_FAILURES, Workers
from workflows.session import Session
from workflows.steps.checkpoints import (
    STATES,
    History,
    delete_states,
    newest_state,
    save_diverged,
    save_state,
)
from workflows.steps.step import Done, Step, Tell, do_step
from workflows.steps.training_inputs import TrainingInputs, without_mask_settings
from workflows.steps.training_messages import device_here, follow, posting, report_epochs

PROMPTS_FORMAT = 1
CONTEXTS = "contexts.safetensors"
START = f"{STATES}/start"
SAVING_PART = 1 / 50
"""Of the time: so much at most goes into saving states."""

_SHARE = re.compile(rf"/{STATES}/share-\d+-of-(\d+)/")


@dataclass(frozen=True)
class Share:
    """The identities of one task: the `index`-th of `count` parts, from 0."""

    index: int
    count: int

    @property
    def folder(self) -> str:
        """Where its states are."""
        return f"{STATES}/share-{self.index + 1}-of-{self.count}"


@dataclass(frozen=True)
class Learned:
    """What a share comes to."""

    contexts: torch.Tensor
    """(n, G, K, W)."""
    history: History
    precision: Precision


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
            summary = _learn(inputs, artifact, workers, progress, tell)
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


def learned_contexts(prompts: Artifact) -> torch.Tensor:
    """The contexts (N, G, K, W) of a made prompts artifact."""
    return load_tensors(prompts.store.read(prompts.key(CONTEXTS)))["contexts"]


def _learn(
    inputs: TrainingInputs, artifact: Artifact, workers: Workers, progress: Track, tell: Tell
) -> dict[str, Any]:
    """Has all shares learned and writes the prompts; the manifest's summary."""
    settings = inputs.config.stage1
    count = _begun_in(artifact) or _shares_for(workers, settings)
    shares = [Share(index, count) for index in range(count)]
    cores = min(cpus(), workers.count * workers.threads)
    board = Board()
    epochs = _Epochs(count, progress, tell, settings.epochs)

    def on_message(message: tuple[str, Any]) -> None:
        kind, content = message
        if kind == "diverged":
            told, state = content
            error = DivergedError(told, lambda: state)
            raise save_diverged(artifact, error, made_from={"inputs": inputs.as_json()})
        if kind == "epochs":
            epochs.add(*content)
        else:
            epochs.follow(message)

    def done(task: Any, jobs: Sequence[Share | None]) -> list[Any]:
        threads = max(1, min(cores // len(jobs), cpus_of_one_node()))
        remote = task.options(
            num_cpus=threads, num_gpus=min(1, workers.gpus), runtime_env=workers.runtime_env
        )
        how = workers.how
        # Shares that are not learned at once are learned one after the other.
        room = Room(processes=1, cpus=threads, gpus=min(1, workers.gpus))
        running = [remote.remote(inputs, artifact, job, threads, how, board) for job in jobs]
        try:
            return gather(running, board=board, on_message=on_message, room=room)
        except BaseException:
            for one in running:
                ray.cancel(one, force=True)
            raise

    # A single share computes them itself: a task of their own would open everything twice.
    if count > 1 and newest_state(artifact, folder=START)[0] is None:
        done(_prepare, [None])
    learned: list[Learned] = done(_learn_share, shares)
    contexts = torch.cat([share.contexts for share in learned]).contiguous()
    artifact.store.write(artifact.key(CONTEXTS), save_tensors({"contexts": contexts}))
    return {
        "identities": len(contexts),
        "precision": learned[0].precision,
        "history": _together([share.history for share in learned]),
    }


def _shares_for(workers: Workers, settings: Stage1Config) -> int:
    """As many as workers, but no more than there are GPUs, if any, or identities in a batch."""
    in_a_batch = settings.batch_size // settings.images_per_identity
    return min(workers.count, workers.gpus or workers.count, in_a_batch)


def _begun_in(artifact: Artifact) -> int:
    """The number of shares of which there are states; 0 when nothing has begun."""
    keys = artifact.store.list(artifact.key(STATES) + "/")
    return max((int(found[1]) for key in keys if (found := _SHARE.search(key))), default=0)


@ray.remote(max_retries=MOST_FAILURES, scheduling_strategy=ANYWHERE)
def _prepare(
    inputs: TrainingInputs,
    artifact: Artifact,
    _: None,
    threads: int,
    compute: Compute,
    board: Board,
) -> None:
    """What the shares have in common."""
    torch.set_num_threads(threads)
    _centroids(inputs, artifact, *inputs.open(predicts_masks=False), compute, board)


@ray.remote(max_retries=MOST_FAILURES, scheduling_strategy=ANYWHERE)
def _learn_share(
    inputs: TrainingInputs,
    artifact: Artifact,
    share: Share,
    threads: int,
    compute: Compute,
    board: Board,
) -> Learned | None:
    """Learns a share of the identities from its last state on; None when it diverged."""
    # Set here, for sums depend on it and Ray may reuse a process that had another number.
    torch.set_num_threads(threads)
    settings = inputs.config.stage1
    precision = resolve_precision(settings.precision, device_here())
    state, history = newest_state(artifact, folder=share.folder)
    if history:
        board.post(("epochs", (share.index, history)))
    if state is not None and state["epoch"] == settings.epochs:
        return Learned(torch.as_tensor(state["contexts"]), history, precision)
    model, images = inputs.open(predicts_masks=False)
    centroids = _centroids(inputs, artifact, model, images, compute, board)
    identities = identity_shares(images.labels, share.count)[share.index]
    epochs = learn_prompts(
        model=model.to(device_here()),
        centroids=centroids,
        labels=images.labels,
        settings=settings,
        seed=inputs.config.seed,
        identities=identities,
        state=state,
    )
    saved_at, took = 0.0, 0.0
    try:
        for report in epochs:
            history.append({"epoch": report.epoch, **report.metrics})
            board.post(("epochs", (share.index, history[-1:])))
            since = time.monotonic() - saved_at
            if report.epoch == settings.epochs or took <= SAVING_PART * since:
                began_at = time.monotonic()
                save_state(artifact, report, history, folder=share.folder)
                saved_at = time.monotonic()
                took = saved_at - began_at
    except DivergedError as error:
        # Others may diverge too: the driver keeps the first one's state.
        board.post(("diverged", (str(error), error.state())), wait=True)
        return None
    contexts = model.contexts[identities.start : identities.stop].detach().cpu()
    return Learned(contexts, history, precision)


def _centroids(
    inputs: TrainingInputs,
    artifact: Artifact,
    model: MuvaModel,
    images: TrainingImages,
    compute: Compute,
    board: Board,
) -> torch.Tensor:
    """The identities' centroids (N, F): kept ones, so that all shares have the same, or new ones.

    They are kept as the state behind epoch 0.
    """
    state, _ = newest_state(artifact, folder=START)
    if state is not None:
        return torch.as_tensor(state["centroids"])
    centroids = image_centroids(
        model,
        images,
        inputs.config.stage1,
        device=device_here(),
        progress=posting(board, "features"),
        compute=compute,
    )
    kept = {"centroids": centroids.cpu()}
    report = EpochReport(epoch=0, metrics={}, step_losses=(), state=lambda: kept)
    save_state(artifact, report, [], folder=START)
    return centroids


def _together(histories: Sequence[History]) -> History:
    """The epochs that all shares are through: a share's loss is its part of the whole."""
    return [
        {**parts[0], "loss": sum(part["loss"] for part in parts)}
        for parts in zip(*histories, strict=False)
    ]


class _Epochs:
    """Puts together what shares tell of their epochs, and hands on what all are through."""

    def __init__(self, count: int, progress: Track, tell: Tell, epochs: int) -> None:
        self.follow = follow(progress, tell, "stage1", epochs)
        self._total = epochs
        self._histories: list[History] = [[] for _ in range(count)]
        self._told = 0

    def add(self, share: int, epochs: History) -> None:
        """A share is through these; one that was lost begins again at its last state."""
        self._histories[share][epochs[0]["epoch"] - 1 :] = epochs
        together = _together(self._histories)
        if len(together) <= self._told:
            done = {"done": epochs[-1]["epoch"], "total": self._total}
            self.follow((f"share {share + 1} of {len(self._histories)}: epoch", done))
        for epoch in together[self._told :]:
            self.follow(("epoch", epoch))
        self._told = max(self._told, len(together))
