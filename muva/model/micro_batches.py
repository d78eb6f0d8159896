"""The image encoder on a few images at a time, for outputs and gradient of the whole batch.

The pass forward keeps each micro-batch's outputs and drops its activations; the pass back computes
them again, one micro-batch after the other, from the gradient of the losses over all outputs. So
whatever looks at the batch as a whole (BN neck, losses, memory) never knows. The gradient cache of
Gao et al. ("Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP
2021), by the means of Chen et al. ("Training Deep Nets with Sublinear Memory Cost", 2016).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from muva.model.image_encoder import ImageFeatures
from muva.model.precision import autocast_without_cache


def encode_in_micro_batches(
    encode: Callable[[Tensor], ImageFeatures], images: Float[Tensor, " B 3 H W"], size: int
) -> ImageFeatures:
    """What `encode(images)` gives, computed on `size` images at a time, and on the rest.

    It is one graph with one pass back: gradient hooks, those of several workers included, see each
    parameter once. `encode` draws no random numbers. Raises ValueError where `size` < 1.
    """
    if size < 1:
        raise ValueError(f"a micro-batch has at least one image, not {size}")
    # To a copy of the weights that all share, gradients would be summed in half precision.
    with autocast_without_cache(images.device.type):
        encoded: list[ImageFeatures] = [
            checkpoint(encode, few, use_reentrant=False, preserve_rng_state=False)
            for few in images.split(size)
        ]
    return ImageFeatures(
        feature=torch.cat([few.feature for few in encoded]),
        mask_logits=_joined([few.mask_logits for few in encoded]),
        mask_probabilities=_joined([few.mask_probabilities for few in encoded]),
    )


def _joined(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Masks (blocks, b, R, L) of micro-batches as those of the batch; None without a predictor."""
    present = [mask for mask in masks if mask is not None]
    return torch.cat(present, dim=1) if present else None
