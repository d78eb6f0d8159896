"""How a training is computed: settings that trade speed for memory and leave the result unchanged.

They change losses by rounding at most, so no artifact's address depends on them.
`python -m benchmarks.training` measures the effect of each.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from muva.config import ExecutionConfig
from muva.errors import MuvaError
from muva.model.attention_kernels import KernelSetting, attention_computed_by
from muva.model.cast_weights import with_cast_weights
from muva.model.image_encoder import Call, ImageEncoder
from muva.model.precision import Precision
from muva.training.cuda_graphs import GraphedEncoder

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS is deterministic only with workspaces of a fixed size."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How the image encoder is computed.

    Raises:
        MuvaError: CUDA graphs are combined with micro-batches.
    """

    micro_batch: int | None = None
    """Images encoded per forward pass, to save memory; None: a worker's share of the batch."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each block and recompute the block in the backward pass."""
    compile: bool = False
    """Compile the blocks with torch.compile, which needs a C++ compiler and a slow first step."""
    channels_last: bool = False
    """Store images in the channels-last memory format."""
    cuda_graphs: bool = False
    """Capture the training pass of a single worker as CUDA graphs, and replay them."""
    deterministic: bool = False
    """Use only deterministic algorithms, which give bit-identical results on every run."""
    attention: KernelSetting = "auto"
    """The kernel of attention on CPUs; auto: the faster one, by measurement."""
    loaders: int = 0
    """Processes that load batches; 0: a thread of this process."""

    def __post_init__(self) -> None:
        if self.cuda_graphs and self.micro_batch is not None:
            raise MuvaError(
                "--cuda-graphs replays the pass of a whole batch, whereas --micro-batch splits the "
                "batch: use only one of them"
            )

    @classmethod
    def of(cls, execution: ExecutionConfig, *, loaders: int) -> "Compute":
        """What a recipe's section says of one process; `loaders`: how many it has in the end."""
        shared = {field.name for field in fields(cls)} - {"loaders"}
        return cls(**execution.model_dump(include=shared), loaders=loaders)

    def attention_kernel(self) -> AbstractContextManager[None]:
        """Use the kernel of these settings inside the `with` block.

        A measurement may turn out differently on the next run, so deterministic results need a
        fixed kernel.
        """
        fixed = self.deterministic and self.attention == "auto"
        return attention_computed_by("fused" if fixed else self.attention)

    def pixels(
        self, images: Float[Tensor, " B 3 H W"], device: torch.device
    ) -> Float[Tensor, " B 3 H W"]:
        """Move a batch to its device, in the memory format of these settings."""
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        return images.to(device, non_blocking=True, memory_format=layout)

    def images_per_pass(self, images: int) -> int:
        """How many of `images` images are encoded per forward pass."""
        return min(images, self.micro_batch or images)


@contextmanager
def apply_compute(encoder: ImageEncoder, compute: Compute) -> Iterator[None]:
    """Apply these settings to the encoder inside the `with` block.

    Raises:
        MuvaError: torch.compile does not work on this machine.
    """
    before = encoder.call
    call = _compiled(before) if compute.compile else _with_cast_weights(before)
    if compute.activation_checkpointing:
        call = _checkpointed(call)
    encoder.call = call
    try:
        with (
            _deterministic(compute.deterministic),
            compute.attention_kernel(),
            _explain_compile_errors(compute.compile),
            _graphed(encoder, compute.cuda_graphs),
        ):
            yield
    finally:
        encoder.call = before


@contextmanager
def explain_out_of_memory(
    compute: Compute, *, batch: int, precision: Precision, where: str
) -> Iterator[None]:
    """Turn an out-of-memory error of the GPU into a MuvaError that lists settings to reduce memory.

    Args:
        batch: images per worker and step.
        where: the stage, epoch and step, for the message.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        images_per_pass = compute.images_per_pass(batch)
        remedies = []
        if compute.cuda_graphs:
            remedies.append(
                "no --cuda-graphs, which keep the memory of a whole pass allocated and cannot be "
                "combined with micro-batches or several workers"
            )
        if images_per_pass > 1:
            remedies.append(
                f"--micro-batch {images_per_pass // 2} (the same result, a second forward pass)"
            )
        if not compute.activation_checkpointing:
            remedies.append("--activation-checkpointing (the same result, a second forward pass)")
        if precision == "fp32":
            remedies.append("--set stage2.precision=bf16, or fp16 if the GPU does not support bf16")
        remedies.append("more --workers, which share the batch")
        remedies.append("as a last resort a smaller stage2.batch_size, which changes the result")
        raise MuvaError(
            f"{where}: the GPU is out of memory when encoding {images_per_pass} of {batch} "
            f"images at a time in {precision}{_memory_in_use()}. To reduce memory, best option "
            f"first: {'; '.join(remedies)}. PyTorch's message: "
            f"{str(error).splitlines()[0] if str(error) else 'none'}"
        ) from error


def _memory_in_use() -> str:
    if not torch.cuda.is_available():
        return ""
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
    return f" (a peak of {peak / 1e9:.1f} GB of the GPU's {total / 1e9:.1f} GB so far)"


@contextmanager
def _graphed(encoder: ImageEncoder, enabled: bool) -> Iterator[None]:
    if not enabled:
        yield
        return
    own_forward = vars(encoder).get("forward")
    encoder.forward = GraphedEncoder(encoder)
    try:
        yield
    finally:
        del encoder.forward
        if own_forward is not None:
            encoder.forward = own_forward
        gc.collect()  # captured graphs are in reference cycles and hold GPU memory


def _compiled(call: Call) -> Call:
    made: dict[Any, Callable[..., Any]] = {}

    def compiled(function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        key = getattr(function, "__func__", function)
        if key not in made:
            made[key] = torch.compile(function, dynamic=False)
        return call(made[key], *args, **named)

    return compiled


def _with_cast_weights(call: Call) -> Call:
    """torch.compile fuses the casts itself."""

    def cast(function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        modules = [argument for argument in args if isinstance(argument, nn.Module)]
        return with_cast_weights(call, function, *args, modules=modules, **named)

    return cast


def _checkpointed(call: Call) -> Call:
    def checkpointed(function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return call(function, *args, **named)
        return checkpoint(
            call, function, *args, **named, use_reentrant=False, preserve_rng_state=False
        )

    return checkpointed


@contextmanager
def _deterministic(enabled: bool) -> Iterator[None]:
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    # cuBLAS reads it on its first use in this process, and nothing has been computed yet.
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _explain_compile_errors(enabled: bool) -> Iterator[None]:
    if not enabled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        raise MuvaError(
            f"--compile: torch.compile failed: {str(error).splitlines()[0]}. It needs a C++ "
            "compiler on CPUs (g++, or the one that the variable CXX names) and Triton on GPUs; "
            "train without --compile"
        ) from error
