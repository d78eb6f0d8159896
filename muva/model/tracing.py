"""Whether a model is being traced into a TorchScript or ONNX graph."""

import torch


def is_traced() -> bool:
    """Whether the operators that run now are recorded: a graph should have PyTorch's own alone."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
