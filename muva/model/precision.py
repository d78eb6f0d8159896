"""The number format of heavy products: float32, or bfloat16 where the hardware is fast at it."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["bf16", "fp16", "fp32"]
LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(
    setting: Literal["auto", "bf16", "fp16", "fp32"], device: torch.device
) -> Precision:
    """What `auto` means on this device: bf16 on processors with AMX and GPUs with bf16 units."""
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return "bf16"
    return "fp32"


def at_least_float32(values: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """Half precision widened; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Run the products within at this precision; float32 means no autocast."""
    dtype = LOW_PRECISION.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
