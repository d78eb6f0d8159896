"""The BN neck: batch normalisation of the whole feature, with a frozen bias (Sec. 3.4).

In the authors' code each training step runs it twice on the same batch, which updates the running
statistics twice with momentum 0.1. A single pass with momentum 1 - 0.9 * 0.9 = 0.19 is equivalent.
"""

from jaxtyping import Float
from torch import Tensor, nn

from muva.model.distributed import gather_batch, rank, world_size

MOMENTUM = 0.19


class BatchNormNeck(nn.BatchNorm1d):
    """Batch normalisation with the statistics of the global batch over all workers."""

    def __init__(self, features: int):
        super().__init__(features, momentum=MOMENTUM)
        self.bias.requires_grad_(False)

    def forward(self, input: Float[Tensor, " B F"]) -> Float[Tensor, " B F"]:
        """Normalise this worker's features."""
        if not self.training:
            return super().forward(input)
        return super().forward(gather_batch(input)).chunk(world_size())[rank()]
