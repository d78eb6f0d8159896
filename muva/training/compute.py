"""How a machine computes a training: settings of speed and memory, none of the result.

They change losses by rounding at most, so no artifact's address depends on them. What each of them
brings is measured by `python -m benchmarks.training`.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from muva.config import ExecutionConfig
from muva.errors import MuvaError
from muva.model.image_encoder import Call, ImageEncoder
from muva.model.precision import Precision
from muva.training.cuda_graphs import GraphedEncoder

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS needs workspaces of a fixed size to give the same sums twice."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How the image encoder is computed. MuvaError for CUDA graphs of micro-batches."""

    micro_batch: int | None = None
    """Images that are encoded at a time, for memory's sake; None: a worker's whole share."""
    activation_checkpointing: bool = False
    """Blocks keep their inputs alone, and are computed again on the way back."""
    compile: bool = False
    """Blocks go through torch.compile: at first it takes its time, and a C++ compiler."""
    channels_last: bool = False
    """Images lie in memory pixel by pixel."""
    cuda_graphs: bool = False
    """One worker's training pass is recorded once and replayed: see `cuda_graphs`."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time, where the device has others."""
    loaders: int = 0
    """Processes that make batches; 0: a thread of this one."""

    def __post_init__(self) -> None:
        if self.cuda_graphs and self.micro_batch is not None:
            raise MuvaError(
                "--cuda-graphs replays the pass of a whole batch, --micro-batch cuts the batch: "
                "leave out one of them"
            )

    @classmethod
    def of(cls, execution: ExecutionConfig, *, loaders: int) -> "Compute":
        """What a recipe's section says of one process; `loaders`: how many it has in the end."""
        shared = {field.name for field in fields(cls)} - {"loaders"}
        return cls(**execution.model_dump(include=shared), loaders=loaders)

    def pixels(
        self, images: Float[Tensor, " B 3 H W"], device: torch.device
    ) -> Float[Tensor, " B 3 H W"]:
        """A batch on its device."""
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        return images.to(device, non_blocking=True, memory_format=layout)

    def at_once(self, images: int) -> int:
        """How many of so many images are encoded at a time."""
        return min(images, self.micro_batch or images)


@contextmanager
def computing(encoder: ImageEncoder, compute: Compute) -> Iterator[None]:
    """The encoder's blocks run as these settings say for the length of the block.

    Raises MuvaError where torch.compile does not work.
    """
    before = encoder.call
    call = before
    if compute.compile:
        call = _compiled(call)
    if compute.activation_checkpointing:
        call = _checkpointed(call)
    encoder.call = call
    try:
        with (
            _deterministic(compute.deterministic),
            _compile_explained(compute.compile),
            _graphed(encoder, compute.cuda_graphs),
        ):
            yield
    finally:
        encoder.call = before


@contextmanager
def out_of_memory_told(
    compute: Compute, *, batch: int, precision: Precision, where: str
) -> Iterator[None]:
    """A GPU's lack of memory as a MuvaError with the settings that would fit.

    `batch`: images that a worker encodes together without micro-batches.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        at_once = compute.at_once(batch)
        ways = []
        if compute.cuda_graphs:
            ways.append(
                "no --cuda-graphs, which keep a pass's memory and go with neither micro-batches "
                "nor several workers"
            )
        if at_once > 1:
            ways.append(f"--micro-batch {at_once // 2} (the same result, a second pass forward)")
        if not compute.activation_checkpointing:
            ways.append("--activation-checkpointing (the same result, a second pass forward)")
        if precision == "fp32":
            ways.append("--set stage2.precision=bf16, or fp16 where the GPU has no bf16")
        ways.append("more --workers, which share a batch")
        ways.append("at last a lower stage2.batch_size, which is another training")
        raise MuvaError(
            f"{where}: the memory is full with {at_once} of {batch} images encoded at a time in "
            f"{precision}{_used()}. What would fit, best first: {'; '.join(ways)}. PyTorch says: "
            f"{str(error).splitlines()[0] if str(error) else 'nothing more'}"
        ) from error


def _used() -> str:
    if not torch.cuda.is_available():
        return ""
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
    return f" ({peak / 1e9:.1f} GB at most so far, of the GPU's {total / 1e9:.1f} GB)"


@contextmanager
def _graphed(encoder: ImageEncoder, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    own = vars(encoder).get("forward")
    encoder.forward = GraphedEncoder(encoder)
    try:
        yield
    finally:
        del encoder.forward
        if own is not None:
            encoder.forward = own
        gc.collect()  # recorded passes are in cycles, and hold a GPU's memory


def _compiled(call: Call) -> Call:
    made: dict[Any, Callable[..., Any]] = {}

    def compiled(function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        key = getattr(function, "__func__", function)
        if key not in made:
            made[key] = torch.compile(function, dynamic=False)
        return call(made[key], *args, **named)

    return compiled


def _checkpointed(call: Call) -> Call:
    def checkpointed(function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return call(function, *args, **named)
        return checkpoint(
            call, function, *args, **named, use_reentrant=False, preserve_rng_state=False
        )

    return checkpointed


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    # Read when cuBLAS first works in this process: nothing has been computed yet.
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _compile_explained(compiles: bool) -> Iterator[None]:
    if not compiles:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        raise MuvaError(
            f"--compile: torch.compile fails here: {str(error).splitlines()[0]}. It needs a C++ "
            "compiler on processors (g++, or the one that CXX names) and Triton on GPUs; leave "
            "--compile out to train without it"
        ) from error
