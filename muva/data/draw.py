"""A draw: which images make a batch, and how each of them is altered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True, eq=False)
class Draw:
    """B images of a training set, of which some may be drawn several times."""

    indices: Int[np.ndarray, " B"]
    flips: Bool[np.ndarray, " B"] | None = None
    """Which images are flipped horizontally; None: none of them."""
    seeds: Int[np.ndarray, " B"] | None = None
    """Seeds of the images' augmentation, from 0, which determine it; None: no augmentation."""

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: Int[np.ndarray, " b"]) -> Draw:
        """The draw of the images at these positions of the batch."""
        return Draw(
            self.indices[positions],
            None if self.flips is None else self.flips[positions],
            None if self.seeds is None else self.seeds[positions],
        )
