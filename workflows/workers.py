"""The processes that share a training's batches, and the options that say how many they are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import click

from muva.errors import MuvaError
from workflows.cluster import cpus, gpus

MOST_FAILURES = 3
"""Lost workers that a training survives; each costs what was done since the last saved state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that share a training's batches."""

    count: int = 1
    cpus_each: int | None = None
    """None: the cluster's cores divided among them."""
    keep_every: int | None = None
    """Keep the training state of every so many epochs of stage 2 for good; None: of none."""
    micro_batch: int | None = None
    """Images that each encodes at a time in stage 2, for memory's sake; None: its whole share."""

    @property
    def threads(self) -> int:
        """Cores of each worker."""
        return self.cpus_each or max(1, cpus() // self.count)

    def check(self) -> None:
        """Raises MuvaError when the cluster would never have room for them all."""
        if self.count * self.threads > cpus():
            raise MuvaError(
                f"{self.count} workers of {self.threads} cores each: this cluster has {cpus()} "
                "cores in all; ask for fewer with --workers or --cpus-per-worker"
            )

    @property
    def use_gpu(self) -> bool:
        """Whether the cluster has a GPU for every worker."""
        return gpus() >= self.count


def worker_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a verb the options of a training's workers, and `workers` made of them."""

    @click.option(
        "--workers",
        "count",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that share a batch.",
    )
    @click.option(
        "--cpus-per-worker", type=click.IntRange(min=1), help="Cores of each. [all, divided]"
    )
    @click.option(
        "--micro-batch",
        type=click.IntRange(min=1),
        help="Images that each encodes at a time, with the same result. [its whole share]",
    )
    @click.option(
        "--keep-every",
        type=click.IntRange(min=1),
        metavar="N",
        help="Keep the state of every N-th epoch of stage 2. [of none]",
    )
    @functools.wraps(verb)
    def with_workers(
        *args: object,
        count: int,
        cpus_per_worker: int | None,
        micro_batch: int | None,
        keep_every: int | None,
        **kwargs: object,
    ) -> Any:
        workers = Workers(
            count=count, cpus_each=cpus_per_worker, micro_batch=micro_batch, keep_every=keep_every
        )
        return verb(*args, workers=workers, **kwargs)

    return with_workers
