"""The formats of exported models, which `muva.model.export` writes and the command line offers.

They are apart from `muva.model.export` because a help text names them and needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Form = Literal["onnx", "torchscript", "safetensors"]
InputFormat = Literal["normalised", "hwc", "chw", "imagenet", "unit"]
"""The input of a graph: RGB images of the model's size, in batches of any length.

`normalised`: float32 (3, H, W), normalised with the model's own mean and std. `hwc` and `chw`:
uint8 (H, W, 3) or (3, H, W), as decoded. `imagenet`: float32 (3, H, W), normalised with ImageNet's
mean and std, as BoxMOT does for every model. `unit`: float32 (3, H, W), from 0 to 1, as Ultralytics
gives them to every model.
"""

SUFFIXES: Mapping[Form, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "torchscript": (".torchscript", ".pt", ".ts"),
    "safetensors": (".safetensors",),
}
