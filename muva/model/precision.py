"""The number format of heavy products: float32, or bfloat16 where the hardware is fast at it."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["bf16", "fp16", "fp32"]
LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(
    setting: Literal["auto", "bf16", "fp16", "fp32"], device: torch.device
) -> Precision:
    """What `auto` means on this device: bf16 where it has instructions for it, else fp16 or fp32.

    Processors have them as AMX or as AVX512-BF16. Of the latter alone (AMD EPYC, two cores), a
    training step of the tiny CLIP's demo takes 0.21 s in bf16 and 0.38 s in float32.
    """
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    fast_on_cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and fast_on_cpu else "fp32"


def at_least_float32(values: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """Half precision widened; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Run the products within at this precision; float32 means no autocast."""
    dtype = LOW_PRECISION.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def autocast_without_cache(device: str) -> torch.autocast:
    """The autocast in force on this type of device, with weights cast wherever they are used."""
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )


def exact_convolutions(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`function(images)`, in which float32 convolutions keep all bits.

    On GPUs cuDNN multiplies by ten of them (TF32) unless it is told otherwise.
    """
    if images.device.type != "cuda":
        return function(images)
    convolution = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    before = convolution.fp32_precision
    convolution.fp32_precision = "ieee"
    try:
        return function(images)
    finally:
        convolution.fp32_precision = before
