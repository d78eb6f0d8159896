"""Validation during a training: its epochs are evaluated on people that it is not trained on.

Ray Train validates every reported checkpoint in a separate task. The results are saved in the
folder of the artifact that is being trained, so that a resumed training knows them. Nothing here
has access to the images of a target: see `muva.data.sources`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from muva.config import ExperimentConfig
from muva.data.artifacts import Artifact
from muva.data.shards import StoredImages
from muva.data.store import MissingKeyError
from muva.errors import MuvaError
from muva.model.bundle import bundle_of_model
from muva.training.stage2_checkpoint import load_weights
from tracking.names import retrieval_metrics
from workflows.runtime.messages import MessageQueue
from workflows.runtime.tasks import MAX_RETRIES
from workflows.runtime.train_group import (
    from_first_worker,
    is_first_worker,
    report_epoch,
    validation_failed,
)
from workflows.steps.checkpoints import checkpoint_of_epoch
from workflows.steps.embed import image_labels
from workflows.steps.encoder import HELD_OUT, VALIDATION, ValidationResult, best
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.training_messages import default_device

if TYPE_CHECKING:
    from workflows.runtime.train_group import Validate

SHOWN_RANKS = (1, 5)
POLL_S = 0.2


def out_of_patience(results: Sequence[ValidationResult], patience: int | None) -> bool:
    """Whether none of the last `patience` results is better than an earlier one."""
    if patience is None or not results:
        return False
    since = [result["epoch"] > best(list(results))["epoch"] for result in results]
    return sum(since) >= patience


def epoch_validator(
    inputs: TrainingInputs, artifact: Artifact, queue: MessageQueue
) -> Validate | None:
    """The function by which Ray Train validates an epoch; None if nobody is held out."""
    if inputs.config.validation is None:
        return None
    return functools.partial(validate, inputs=inputs, artifact=artifact, queue=queue)


def validate(
    epoch: int, *, inputs: TrainingInputs, artifact: Artifact, queue: MessageQueue
) -> dict[str, float]:
    """Validate the checkpoint of an epoch, and save the result."""
    torch.set_num_threads(1)  # sums depend on it, and the training uses the cores
    try:
        metrics = _metrics_on_some_device(inputs, artifact, epoch, queue)
    except MuvaError as error:
        # The training waits for a result, and reports this error to the driver.
        _write(artifact, epoch, {"mistake": str(error)})
        return {}
    _write(artifact, epoch, {"epoch": epoch, **metrics})
    queue.send(("validation", {"epoch": epoch, **metrics}))
    return metrics


def _metrics_on_some_device(
    inputs: TrainingInputs, artifact: Artifact, epoch: int, queue: MessageQueue
) -> dict[str, float]:
    """Evaluate on the GPU, or on the CPU if the training leaves no GPU memory."""
    device = default_device()
    if device.type == "cuda":
        try:
            return _metrics(inputs, artifact, epoch, device)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        note = f"Epoch {epoch} is validated on the CPU: the training leaves no GPU memory for it"
        queue.send(("note", note))
    return _metrics(inputs, artifact, epoch, torch.device("cpu"))


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether GPU memory ran out: for tensors, at the first use, or in cuBLAS."""
    message = str(error)
    return "out of memory" in message or "CUBLAS_STATUS_ALLOC_FAILED" in message


def _metrics(
    inputs: TrainingInputs, artifact: Artifact, epoch: int, device: torch.device
) -> dict[str, float]:
    from muva.retrieval.evaluation import evaluate  # compiles ranking; the training needs none

    checkpoint = checkpoint_of_epoch(artifact, epoch)
    identities = torch.as_tensor(checkpoint["model/classifier.weight"]).shape[0]
    model = inputs.fresh_model(identities=identities).to(device)
    load_weights(model, checkpoint)
    embedder = bundle_of_model(model.eval(), metadata={})
    metrics: dict[str, float] = {}
    means = []
    for held_out in inputs.sources.held_out():
        images = StoredImages(held_out.dataset, held_out.rows["row"].to_numpy())
        labels = dataclasses.replace(image_labels(held_out.rows), features=embedder.embed(images))
        result = evaluate(**labels.retrieval_inputs(), ranks=SHOWN_RANKS, verify=False)
        means.append(result.mean_ap)
        metrics |= retrieval_metrics(
            held_out.dataset.name,
            mean_ap=result.mean_ap,
            cmc={rank: result.cmc[rank] for rank in SHOWN_RANKS},
        )
    return {HELD_OUT: statistics.fmean(means), **metrics}


class Validator:
    """The training's side of validation; all workers make the same calls.

    After an epoch, a training waits for the results of the earlier epochs, but not for that of the
    epoch itself. It therefore stops at the same epoch however fast validation is, hardly ever has
    to wait, and keeps few checkpoints.
    """

    def __init__(self, config: ExperimentConfig, artifact: Artifact):
        self._settings, self._epochs = config.validation, config.stage2.epochs
        self._artifact = artifact
        self._known: dict[int, ValidationResult] = {}
        self._first = is_first_worker()

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Report an epoch whose checkpoint has been saved."""
        validates = self._first and epoch in self._validated(epoch)
        report_epoch(epoch, metrics, validate=validates)

    def catch_up(self, epoch: int) -> None:
        """Validate epochs for which an interrupted training has no result or a failure."""
        if self._settings is None:
            return
        missing: list[int] = []
        if self._first:
            missing = [
                one for one in self._validated(epoch) if HELD_OUT not in (self._read(one) or {})
            ]
        for one in missing:
            self._known.pop(one, None)
            self._artifact.store.delete(_key(self._artifact, one))
        for one in from_first_worker(missing):
            self.report(one, {})

    def should_stop(self, epoch: int) -> bool:
        """Whether the training stops after this epoch, given the results of the earlier ones."""
        if self._settings is None:
            return False
        stop = None
        if self._first:
            stop = out_of_patience(self.results(epoch - 1), self._settings.patience)
        return bool(from_first_worker(stop))

    def results(self, epoch: int) -> list[ValidationResult]:
        """The results up to an epoch, once all are known; only for the first worker.

        Raises MuvaError if a validation failed.
        """
        return [self._awaited(one) for one in self._validated(epoch)]

    def best_so_far(self, epoch: int) -> list[int]:
        """The best epoch so far, whose checkpoint has to be kept."""
        known = [self._read(one) for one in self._validated(epoch)]
        found = [result for result in known if result is not None and HELD_OUT in result]
        return [best(found)["epoch"]] if found else []

    def _validated(self, epoch: int) -> list[int]:
        """The epochs up to this one that have to be validated."""
        if self._settings is None:
            return []
        every = self._settings.every
        return [e for e in range(1, epoch + 1) if e % every == 0 or e == self._epochs]

    def _awaited(self, epoch: int) -> ValidationResult:
        while (result := self._read(epoch)) is None:
            if validation_failed(epoch) and self._read(epoch) is None:
                raise MuvaError(
                    f"epoch {epoch} could not be validated: its task ended {MAX_RETRIES + 1} times "
                    "without a result (see Ray's logs of run_validation_fn). The same command "
                    "tries again; validation=null trains without validation"
                )
            time.sleep(POLL_S)
        if HELD_OUT not in result:
            raise MuvaError(f"epoch {epoch} could not be validated: {result['mistake']}")
        return result

    def _read(self, epoch: int) -> ValidationResult | None:
        if epoch not in self._known:
            try:
                stored = self._artifact.store.read(_key(self._artifact, epoch))
            except MissingKeyError:
                return None
            self._known[epoch] = json.loads(stored)
        return self._known[epoch]


def _write(artifact: Artifact, epoch: int, result: ValidationResult) -> None:
    artifact.store.write(_key(artifact, epoch), json.dumps(result).encode())


def _key(artifact: Artifact, epoch: int) -> str:
    return artifact.key(VALIDATION, f"{epoch:05d}.json")
