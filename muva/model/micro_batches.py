"""Encodes a batch in micro-batches, with the outputs and gradients of the whole batch.

The forward pass keeps each micro-batch's outputs and frees its activations; the backward pass
recomputes them, one micro-batch at a time, from the gradient of the losses with respect to all
outputs. Whatever needs the whole batch (BN neck, losses, memory) is unaffected. This is the
gradient cache of Gao et al. ("Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup", RepL4NLP 2021), implemented by activation checkpointing (Chen et al., "Training Deep Nets
with Sublinear Memory Cost", 2016).
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
    """The result of `encode(images)`, computed on `size` images at a time.

    It is one autograd graph with one backward pass: gradient hooks, including those of
    DistributedDataParallel, see each parameter once. `encode` must not draw random numbers.

    Raises:
        ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"expected micro-batches of at least one image, found {size}")
    # With a shared cast of the weights, gradients would be summed in half precision.
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
    """Concatenate the masks (blocks, b, R, L) of micro-batches; None without a mask predictor."""
    present = [mask for mask in masks if mask is not None]
    return torch.cat(present, dim=1) if present else None
