"""The processes that share a training: a recipe's `execution` on the cluster at hand."""

from __future__ import annotations

import dataclasses
from typing import Any

from muva.config import ExecutionConfig
from muva.errors import MuvaError
from muva.training.compute import Compute
from workflows.runtime.cluster import cpus, cpus_of_one_node, gpus

MOST_FAILURES = 3
"""Lost workers that a training survives; each costs what was done since the last saved state."""
MOST_LOADERS = 8
"""That a worker starts unless a recipe says how many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that share stage 1's identities and stage 2's batches.

    `Workers.of` makes them of a recipe's section; what it leaves open depends on the cluster.
    """

    count: int = 1
    cpus_each: int | None = None
    """None: the cluster's cores divided among them, and at most a node's."""
    gpus_each: int | None = None
    """0: none, 1: one; None: one where the cluster has a GPU for every worker."""
    keep_every: int | None = None
    """Keep the training state of every so many epochs of stage 2 for good; None: of none."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    """How each computes, stage 1 its features alone: no setting of the result."""
    loaders: int | None = None
    """Processes of each that make batches; None: as many as it has cores to spare."""

    @classmethod
    def of(cls, execution: ExecutionConfig) -> Workers:
        """Those that a recipe asks for."""
        return cls(
            count=execution.workers,
            cpus_each=execution.cpus_per_worker,
            gpus_each=execution.gpus_per_worker,
            keep_every=execution.keep_every,
            compute=Compute.of(execution, loaders=0),
            loaders=execution.loaders,
        )

    @property
    def threads(self) -> int:
        """Cores of each worker."""
        return self.cpus_each or max(1, min(cpus() // self.count, cpus_of_one_node()))

    def check(self) -> None:
        """Raises MuvaError when the cluster could never run all of them at once.

        CUDA graphs need a single worker, and it a GPU.
        """
        if self.count * self.threads > cpus():
            raise MuvaError(
                f"{self.count} workers of {self.threads} cores each: this cluster has {cpus()} "
                "cores in all; ask for fewer with --workers or --cpus-per-worker"
            )
        if self.threads > cpus_of_one_node():
            raise MuvaError(
                f"workers of {self.threads} cores each: no node of this cluster has more than "
                f"{cpus_of_one_node()}; ask for fewer with --cpus-per-worker"
            )
        if self.gpus_each and not self.use_gpu:
            raise MuvaError(
                f"{self.count} workers with a GPU each: this cluster has {gpus()} GPUs; ask for "
                "fewer with --workers, or for workers without one with --gpus-per-worker 0"
            )
        if self.compute.cuda_graphs and not (self.count == 1 and self.use_gpu):
            raise MuvaError(
                f"--cuda-graphs records the pass of one worker on a GPU; here are {self.count} "
                f"workers and {self.gpus} GPUs: leave the option out"
            )

    @property
    def how(self) -> Compute:
        """How each computes, the number of its loaders decided.

        Where CPUs compute, no core is idle, and a thread decodes faster than they learn.
        """
        spare = min(self.threads - 1, MOST_LOADERS) if self.use_gpu else 0
        loaders = spare if self.loaders is None else self.loaders
        return dataclasses.replace(self.compute, loaders=loaders)

    @property
    def gpus(self) -> int:
        """The cluster's GPUs that the training may use."""
        return 0 if self.gpus_each == 0 else gpus()

    @property
    def runtime_env(self) -> dict[str, Any] | None:
        """Hides the GPUs of a node where none is to be used: Ray leaves them visible."""
        return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if self.gpus_each == 0 else None

    @property
    def use_gpu(self) -> bool:
        """Whether every worker computes on a GPU of its own."""
        return self.gpus >= self.count
