"""The worker processes of a training: a recipe's `execution` on the current cluster."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from muva.config import ExecutionConfig
from muva.errors import MuvaError

if TYPE_CHECKING:  # Ray and PyTorch are imported where they are used: finished steps need neither
    from muva.training.compute import Compute

MAX_LOADERS = 8
"""The maximum of data loaders per worker, unless a recipe sets their number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes among which stage 1's identities and stage 2's batches are divided.

    `Workers.of` takes them from a recipe's section; what it leaves open depends on the cluster.
    """

    count: int = 1
    cpus_each: int | None = None
    """None: the cluster's CPU cores divided among them, at most those of one node."""
    gpus_each: int | None = None
    """0 or 1; None: 1 if the cluster has a GPU for every worker."""
    keep_every: int | None = None
    """Checkpoints of every N-th epoch of stage 2 are kept permanently; None: of no epoch."""
    loaders: int | None = None
    """Data loader processes per worker; None: as many as it has spare CPU cores."""
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    """How each worker computes; in stage 1 this applies only to the features."""

    @classmethod
    def of(cls, execution: ExecutionConfig) -> Workers:
        """The workers that a recipe asks for."""
        return cls(
            count=execution.workers,
            cpus_each=execution.cpus_per_worker,
            gpus_each=execution.gpus_per_worker,
            keep_every=execution.keep_every,
            loaders=execution.loaders,
            execution=execution,
        )

    @property
    def threads(self) -> int:
        """CPU cores of each worker."""
        from workflows.runtime.cluster import cpus, cpus_of_one_node

        return self.cpus_each or max(1, min(cpus() // self.count, cpus_of_one_node()))

    def check(self) -> None:
        """Raise MuvaError if the cluster could never run all of them at the same time.

        CUDA graphs need a single worker with a GPU.
        """
        from workflows.runtime.cluster import cpus, cpus_of_one_node, gpus

        if self.count * self.threads > cpus():
            raise MuvaError(
                f"{self.count} workers of {self.threads} cores each: this cluster has {cpus()} "
                "cores in all; ask for fewer with --workers or --cpus-per-worker"
            )
        if self.threads > cpus_of_one_node():
            raise MuvaError(
                f"workers of {self.threads} cores each: no node of this cluster has more than "
                f"{cpus_of_one_node()}; request fewer with --cpus-per-worker"
            )
        if self.gpus_each and not self.use_gpu:
            raise MuvaError(
                f"{self.count} workers with a GPU each: this cluster has {gpus()} GPUs; request "
                "fewer with --workers, or for workers without one with --gpus-per-worker 0"
            )
        if self.execution.cuda_graphs and not (self.count == 1 and self.use_gpu):
            raise MuvaError(
                f"--cuda-graphs records the pass of one worker on a GPU; here are {self.count} "
                f"workers and {self.gpus} GPUs: leave the option out"
            )

    @property
    def compute(self) -> Compute:
        """How each worker computes, with a definite number of data loaders.

        On CPUs no core is idle, and a single thread decodes faster than the training needs.
        """
        from muva.training.compute import Compute

        spare = min(self.threads - 1, MAX_LOADERS) if self.use_gpu else 0
        return Compute.of(self.execution, loaders=spare if self.loaders is None else self.loaders)

    @property
    def gpus(self) -> int:
        """The cluster's GPUs that the training may use."""
        from workflows.runtime.cluster import gpus

        return 0 if self.gpus_each == 0 else gpus()

    @property
    def runtime_env(self) -> dict[str, Any] | None:
        """Hide the GPUs of a node if none is to be used: Ray leaves them visible."""
        return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if self.gpus_each == 0 else None

    @property
    def use_gpu(self) -> bool:
        """Whether every worker computes on a GPU of its own."""
        return self.gpus >= self.count
