"""The processes that share a training, and the options that say how many they are."""

from __future__ import annotations

import dataclasses

from muva.errors import MuvaError
from muva.training.compute import Compute
from workflows.runtime.cluster import cpus, cpus_of_one_node, gpus

MOST_FAILURES = 3
"""Lost workers that a training survives; each costs what was done since the last saved state."""
MOST_LOADERS = 8
"""That a worker starts unless it is told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that share stage 1's identities and stage 2's batches."""

    count: int = 1
    cpus_each: int | None = None
    """None: the cluster's cores divided among them, and at most a node's."""
    keep_every: int | None = None
    """Keep the training state of every so many epochs of stage 2 for good; None: of none."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    """How each computes, stage 1 its features alone: no setting of the result."""
    loaders: int | None = None
    """Processes of each that make batches; None: as many as it has cores to spare."""

    @property
    def threads(self) -> int:
        """Cores of each worker."""
        return self.cpus_each or max(1, min(cpus() // self.count, cpus_of_one_node()))

    def check(self) -> None:
        """Raises MuvaError when the cluster would never have room for them all.

        Nor may CUDA graphs be asked for of several workers, or of a cluster without GPUs.
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
        if self.compute.cuda_graphs and not (self.count == 1 and self.use_gpu):
            raise MuvaError(
                f"--cuda-graphs records the pass of one worker on a GPU; here are {self.count} "
                f"workers and {gpus()} GPUs: leave the option out"
            )

    @property
    def how(self) -> Compute:
        """How each computes, the number of its loaders decided.

        Where processors compute, no core is idle, and a thread decodes faster than they learn.
        """
        spare = min(self.threads - 1, MOST_LOADERS) if self.use_gpu else 0
        loaders = spare if self.loaders is None else self.loaders
        return dataclasses.replace(self.compute, loaders=loaders)

    @property
    def use_gpu(self) -> bool:
        """Whether the cluster has a GPU for every worker."""
        return gpus() >= self.count
