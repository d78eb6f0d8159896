"""What a model can be exported as: `muva.model.export` writes it, the command line offers it.

Apart from `export`, whose imports take seconds: a help text names the formats and needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Form = Literal["onnx", "torchscript", "safetensors"]
Takes = Literal["normalised", "hwc", "chw", "imagenet"]
"""What images a graph takes, all of the model's size, RGB, a batch of any length: float32 (3, H, W)
normalised with the model's own mean and std; uint8 (H, W, 3) or (3, H, W) as decoded; float32
normalised with ImageNet's statistics, as BoxMOT does for every model."""

SUFFIXES: Mapping[Form, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "torchscript": (".torchscript", ".pt", ".ts"),
    "safetensors": (".safetensors",),
}
