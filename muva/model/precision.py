"""The precision of matrix products: float32, or a half precision where the hardware is fast."""

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
    """Resolve `auto`: bf16 if the device has instructions for it, else fp16 (GPU) or fp32 (CPU).

    CPUs need AMX or AVX512-BF16. With only the latter (AMD EPYC, two cores), a training step of the
    demo with the tiny CLIP takes 0.21 s in bf16 and 0.38 s in float32.
    """
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    fast_on_cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and fast_on_cpu else "fp32"


def at_least_float32(values: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """Convert half precision to float32; float32 and float64 stay unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Autocast to this precision; disabled for float32."""
    dtype = LOW_PRECISION.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def autocast_without_cache(device: str) -> torch.autocast:
    """The current autocast of this device type, without its cache of cast weights."""
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )


def exact_convolutions(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`function(images)` with float32 convolutions in full precision.

    By default, cuDNN rounds their inputs to TF32, which has a mantissa of ten bits.
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
