"""What a training loop tells after each epoch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Checkpoint = Mapping[str, Tensor | int | float | str]
"""All that resuming needs, flat: tensors and plain values by name."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One finished epoch. `checkpoint()` is the state as it stands: call it before the next epoch."""

    epoch: int
    metrics: Mapping[str, float]
    """Means over the epoch's steps and workers."""
    step_losses: tuple[float, ...]
    """The total loss of each step, over the whole batch of all workers."""
    checkpoint: Callable[[], Checkpoint]
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What the epoch's parts took here, by name: no two runs have the same."""
