"""What a training loop yields after each epoch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Checkpoint = Mapping[str, Tensor | int | float | str]
"""Everything needed to resume a training: a flat mapping from names to tensors and plain values."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One finished epoch. `checkpoint()` saves the current state: call it before the next epoch."""

    epoch: int
    metrics: Mapping[str, float]
    """Means over the steps of the epoch and all workers."""
    step_losses: tuple[float, ...]
    """The total loss of each step, over the global batch of all workers."""
    checkpoint: Callable[[], Checkpoint]
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds that each phase of the epoch took on this worker, by name."""
