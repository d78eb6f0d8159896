"""A group of training processes: Ray Train's workers, and the operations that they share.

The driver calls the first half, the training function in each worker calls the second half.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConsistencyMode
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.reported_checkpoint import ReportedCheckpointStatus
from ray.util import get_current_placement_group
from ray.util.placement_group import PlacementGroup

from muva.memory import freed_memory_kept
from workflows.runtime.capacity import CapacityMonitor
from workflows.runtime.gloo import NodeAddressConfig
from workflows.runtime.messages import POLL_S, MessageQueue
from workflows.runtime.quirks import OUTSIDE_PLACEMENT_GROUPS, in_thread
from workflows.runtime.tasks import MAX_RETRIES, run_tasks
from workflows.runtime.train_storage import train_storage
from workflows.runtime.workers import Workers

_POINTER = "epoch.json"
_FAILED = (
    ReportedCheckpointStatus.VALIDATION_FAILED,
    ReportedCheckpointStatus.VALIDATION_TIMEOUT,
)

Validate = Callable[[int], dict[str, float]]
"""Validates the checkpoint of an epoch, in a task that runs beside the training."""


@dataclass(frozen=True, kw_only=True)
class TrainGroup:
    """The configuration of a group of workers."""

    workers: Workers
    storage: str
    """URI of a folder for Ray Train's own state, without checkpoints."""
    validate: Validate | None = None

    def run(
        self,
        function: Callable[[Any], None],
        task: Mapping[str, Any],
        *,
        queue: MessageQueue,
        on_message: Callable[[Any], None],
    ) -> None:
        """Run `function(task)` in every worker, and restart the workers if one is lost.

        A single worker without a GPU runs as a task, whose process the next task reuses. A group
        takes two new processes and their imports: ten seconds, which would dominate a search with
        short trials.

        Raises:
            MuvaError: the cluster lost so much capacity that the workers no longer fit.
        """
        workers = self.workers
        capacity = CapacityMonitor(
            processes=workers.count, cpus=workers.threads, gpus=int(workers.use_gpu)
        )
        if workers.count == 1 and not workers.use_gpu and self.validate is None:
            run_tasks(
                _run_alone,
                [(function, task)],
                cpus=workers.threads,
                threads=None,
                runtime_env=workers.runtime_env,
                queue=queue,
                on_message=on_message,
                capacity=capacity,
            )
            return
        path, filesystem = train_storage(self.storage)
        trainer = ray.train.torch.TorchTrainer(
            _run_in_group,
            train_loop_config={"call": ray.put((function, dict(task)))},
            torch_config=NodeAddressConfig(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers.count,
                use_gpu=workers.use_gpu,
                resources_per_worker={"CPU": workers.threads},
            ),
            run_config=ray.train.RunConfig(
                name=uuid.uuid4().hex,  # a new one for each attempt
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray.train.FailureConfig(max_failures=MAX_RETRIES),
                worker_runtime_env=workers.runtime_env,
            ),
            validation_config=self._validation_config(),
        )
        thread, result = in_thread(trainer.fit)
        while thread.is_alive():
            thread.join(POLL_S)
            for message in queue.drain():
                on_message(message)
            capacity.check()
        result()

    def _validation_config(self) -> ray.train.ValidationConfig | None:
        """Validation takes a GPU of its own if the workers leave one, else it shares one.

        It requests zero CPUs, to avoid a deadlock: a training holds all of them, and waits for its
        validation before it ends.
        """
        if self.validate is None:
            return None
        validate = ray.put(self.validate)
        return ray.train.ValidationConfig(
            fn=lambda checkpoint, **_: ray.get(validate)(_epoch_in(checkpoint)),
            ray_remote_kwargs={
                "num_cpus": 0,
                "num_gpus": 1 if self.workers.gpus > self.workers.count else 0,
                "runtime_env": self.workers.runtime_env,
                "max_retries": MAX_RETRIES,
                "scheduling_strategy": OUTSIDE_PLACEMENT_GROUPS,
            },
        )


def _run_in_group(config: Mapping[str, ray.ObjectRef]) -> None:
    """Run the training function in this worker of a group.

    Ray Train's controller unpickles the configuration of a training. A reference spares it the
    imports of the function and of the task, which take seconds.
    """
    function, task = ray.get(config["call"])
    with freed_memory_kept():
        function(task)


def _run_alone(function: Callable[[Any], None], task: dict[str, Any]) -> None:
    """Run the training function in this process, in Ray Train's local mode."""
    ray.train.torch.TorchTrainer(
        function,
        train_loop_config=task,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
    ).fit()


def _epoch_in(checkpoint: ray.train.Checkpoint) -> int:
    with checkpoint.as_directory() as folder:
        return json.loads((Path(folder) / _POINTER).read_text())["epoch"]


def is_first_worker() -> bool:
    """Whether this is the worker that writes checkpoints and sends messages."""
    return ray.train.get_context().get_world_rank() == 0


def worker_count() -> int:
    """The number of workers in the group."""
    return ray.train.get_context().get_world_size()


def worker_device() -> torch.device:
    """The device that this worker computes on."""
    return ray.train.torch.get_device()


def placement_group() -> PlacementGroup | None:
    """The placement group of the workers; None if a single task trains."""
    return get_current_placement_group()


def from_first_worker(value: Any) -> Any:
    """Broadcast the first worker's value to all workers; every worker has to call this."""
    return broadcast_from_rank_zero(value)


def report_epoch(epoch: int, metrics: Mapping[str, float], *, validate: bool) -> None:
    """Report an epoch to Ray Train; every worker has to call this.

    With `validate`, which only the first worker may set, Ray Train starts the validation of the
    epoch's checkpoint. Ray Train's checkpoint is only a pointer to ours, which is in the store.
    """
    reported = {"epoch": epoch, **metrics}
    if not validate:
        ray.train.report(reported)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _POINTER).write_text(json.dumps({"epoch": epoch}))
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(reported, checkpoint=checkpoint, validation=True)


def validation_failed(epoch: int) -> bool:
    """Whether Ray Train has given up validating an epoch, after all retries."""
    reported = ray.train.get_all_reported_checkpoints(
        consistency_mode=CheckpointConsistencyMode.COMMITTED
    )
    return any(one.status in _FAILED and one.metrics.get("epoch") == epoch for one in reported)
