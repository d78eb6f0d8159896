"""Judging a training's epochs beside it: by people of its sources that it does not learn from.

Ray Train gives every checkpoint that is reported for it to `judge`, in a task of its own. A verdict
is kept beside the artifact that is being trained: a training that goes on knows what was judged.
Nothing here has a way to a target's images: see `muva.data.sources`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConsistencyMode
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.reported_checkpoint import ReportedCheckpointStatus

from muva.config import ExperimentConfig
from muva.data.artifacts import Artifact
from muva.data.store import MissingKeyError
from muva.errors import MuvaError
from muva.model.bundle import embedder_of
from muva.retrieval.metrics import evaluate
from muva.training.stage2_state import load_weights
from tracking.names import retrieval_metrics
from workflows.runtime.cluster import ANYWHERE
from workflows.runtime.messages import Board
from workflows.runtime.workers import MOST_FAILURES, Workers
from workflows.steps.checkpoints import saved_state
from workflows.steps.embed import people_of
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.training_messages import device_here

HELD_OUT = "held-out/mAP"
"""Mean over the domains that are judged by: what an epoch is chosen by."""
VERDICTS = "verdicts"
POINTER = "epoch.json"
SHOWN_RANKS = (1, 5)
POLL_S = 0.2
FAILED = (
    ReportedCheckpointStatus.VALIDATION_FAILED,
    ReportedCheckpointStatus.VALIDATION_TIMEOUT,
)

Verdict = dict[str, Any]
"""`epoch`, and metrics by name: `held-out/mAP` and those of each domain."""


def best(verdicts: Sequence[Verdict]) -> Verdict:
    """The one with the highest mean mAP, the earliest of equals."""
    return max(verdicts, key=lambda verdict: (verdict[HELD_OUT], -verdict["epoch"]))


def out_of_patience(verdicts: Sequence[Verdict], patience: int | None) -> bool:
    """Whether the last `patience` verdicts are all no better than one before them."""
    if patience is None or not verdicts:
        return False
    since = [verdict["epoch"] > best(verdicts)["epoch"] for verdict in verdicts]
    return sum(since) >= patience


def validation_config(
    inputs: TrainingInputs, artifact: Artifact, workers: Workers, board: Board
) -> ray.train.ValidationConfig | None:
    """How Ray Train judges; None where nobody is held out.

    It has a GPU of its own where there is one more than workers, else it shares the first of its
    node. It takes no cores that are counted: a training holds all there are, and would wait for its
    own end.
    """
    if inputs.config.validation is None:
        return None
    return ray.train.ValidationConfig(
        fn=lambda checkpoint, **_: judge(checkpoint, inputs=inputs, artifact=artifact, board=board),
        ray_remote_kwargs={
            "num_cpus": 0,
            "num_gpus": 1 if workers.gpus > workers.count else 0,
            "runtime_env": workers.runtime_env,
            "max_retries": MOST_FAILURES,
            "scheduling_strategy": ANYWHERE,
        },
    )


def judge(
    checkpoint: ray.train.Checkpoint, *, inputs: TrainingInputs, artifact: Artifact, board: Board
) -> dict[str, float]:
    """Judges the epoch that a checkpoint points to, and keeps the verdict."""
    with checkpoint.as_directory() as folder:
        epoch = json.loads((Path(folder) / POINTER).read_text())["epoch"]
    torch.set_num_threads(1)  # sums depend on it, and the training has the cores
    try:
        metrics = _judged_where_there_is_room(inputs, artifact, epoch, board)
    except MuvaError as mistake:
        # The training waits for a verdict: it tells the driver.
        _write(artifact, epoch, {"mistake": str(mistake)})
        return {}
    _write(artifact, epoch, {"epoch": epoch, **metrics})
    board.post(("verdict", {"epoch": epoch, **metrics}))
    return metrics


def _judged_where_there_is_room(
    inputs: TrainingInputs, artifact: Artifact, epoch: int, board: Board
) -> dict[str, float]:
    """On the GPU, or on processors where the training beside it has all of the GPU's memory."""
    device = device_here()
    if device.type == "cuda":
        try:
            return _judged(inputs, artifact, epoch, device)
        except RuntimeError as error:
            if not _lacks_memory(error):
                raise
        torch.cuda.empty_cache()
        note = f"Epoch {epoch} is judged on processors: the GPU has no memory left beside training"
        board.post(("note", note))
    return _judged(inputs, artifact, epoch, torch.device("cpu"))


def _lacks_memory(error: RuntimeError) -> bool:
    """Whether a GPU had none for tensors, for itself when it was first used, or for cuBLAS."""
    told = str(error)
    return "out of memory" in told or "CUBLAS_STATUS_ALLOC_FAILED" in told


def _judged(
    inputs: TrainingInputs, artifact: Artifact, epoch: int, device: torch.device
) -> dict[str, float]:
    state = saved_state(artifact, epoch)
    identities = torch.as_tensor(state["model/classifier.weight"]).shape[0]
    model = inputs.fresh_model(identities=identities).to(device)
    load_weights(model, state)
    embedder = embedder_of(model.eval(), metadata={})
    metrics: dict[str, float] = {}
    means = []
    for held_out in inputs.sources.held_out():
        images = held_out.dataset.read_images(held_out.rows["row"].to_numpy())
        people = dataclasses.replace(people_of(held_out.rows), features=embedder.embed(images))
        found = evaluate(**people.retrieval_inputs(), ranks=SHOWN_RANKS)
        means.append(found.mean_ap)
        metrics |= retrieval_metrics(
            held_out.dataset.name,
            mean_ap=found.mean_ap,
            cmc={rank: found.cmc[rank] for rank in SHOWN_RANKS},
        )
    return {HELD_OUT: statistics.fmean(means), **metrics}


class Judging:
    """What a training's workers ask of its judgement; all of them call alike.

    Behind an epoch a training waits for the verdicts of those before it, never for that one's: so
    it stops at the same epoch however fast judging is, hardly ever waits, and keeps few states.
    """

    def __init__(self, config: ExperimentConfig, artifact: Artifact):
        self._settings, self._epochs = config.validation, config.stage2.epochs
        self._artifact = artifact
        self._known: dict[int, Verdict] = {}
        self._leads = ray.train.get_context().get_world_rank() == 0

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Reports an epoch, whose state is saved."""
        told = {"epoch": epoch, **metrics}
        if not self._leads or epoch not in self._asked(epoch):
            ray.train.report(told)
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / POINTER).write_text(json.dumps({"epoch": epoch}))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(told, checkpoint=checkpoint, validation=True)

    def catch_up(self, epoch: int) -> None:
        """Has judged what a training that ended behind this epoch was waiting for, or ended by."""
        if self._settings is None:
            return
        waiting: list[int] = []
        if self._leads:
            waiting = [one for one in self._asked(epoch) if HELD_OUT not in (self._read(one) or {})]
        for one in waiting:
            self._known.pop(one, None)
            self._artifact.store.delete(_key(self._artifact, one))
        for one in broadcast_from_rank_zero(waiting):
            self.report(one, {})

    def ends(self, epoch: int) -> bool:
        """Whether training is to end with this epoch, by what those before it are worth."""
        if self._settings is None:
            return False
        over = None
        if self._leads:
            over = out_of_patience(self.verdicts(epoch - 1), self._settings.patience)
        return bool(broadcast_from_rank_zero(over))

    def verdicts(self, epoch: int) -> list[Verdict]:
        """Those up to an epoch, when all are there; the first worker alone may ask.

        Raises MuvaError where judging failed.
        """
        return [self._awaited(one) for one in self._asked(epoch)]

    def best_so_far(self, epoch: int) -> list[int]:
        """The epoch up to this one that would be chosen now: its state is to be kept."""
        known = [self._read(one) for one in self._asked(epoch)]
        found = [verdict for verdict in known if verdict is not None and HELD_OUT in verdict]
        return [best(found)["epoch"]] if found else []

    def _asked(self, epoch: int) -> list[int]:
        """The epochs up to this one that are judged."""
        if self._settings is None:
            return []
        every = self._settings.every
        return [e for e in range(1, epoch + 1) if e % every == 0 or e == self._epochs]

    def _awaited(self, epoch: int) -> Verdict:
        while (verdict := self._read(epoch)) is None:
            reported = ray.train.get_all_reported_checkpoints(
                consistency_mode=CheckpointConsistencyMode.COMMITTED
            )
            failed = any(
                one.status in FAILED and one.metrics.get("epoch") == epoch for one in reported
            )
            if failed and self._read(epoch) is None:
                raise MuvaError(
                    f"epoch {epoch} could not be judged: its task ended {MOST_FAILURES + 1} times "
                    f"without a verdict (see Ray's logs of run_validation_fn). The same command "
                    f"tries again; validation=null trains without"
                )
            time.sleep(POLL_S)
        if HELD_OUT not in verdict:
            raise MuvaError(f"epoch {epoch} could not be judged: {verdict['mistake']}")
        return verdict

    def _read(self, epoch: int) -> Verdict | None:
        if epoch not in self._known:
            try:
                stored = self._artifact.store.read(_key(self._artifact, epoch))
            except MissingKeyError:
                return None
            self._known[epoch] = json.loads(stored)
        return self._known[epoch]


def _write(artifact: Artifact, epoch: int, verdict: Verdict) -> None:
    artifact.store.write(_key(artifact, epoch), json.dumps(verdict).encode())


def _key(artifact: Artifact, epoch: int) -> str:
    return artifact.key(VERDICTS, f"{epoch:05d}.json")
