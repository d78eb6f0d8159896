"""Which of two computations of attention is faster on this processor, by measurement.

On CPUs, PyTorch's fused kernel and plain matrix products give the same result up to rounding, and
which one is faster depends on the CPU, the precision, the shape, and on whether a gradient is
needed. Each combination is measured once, in some milliseconds, and remembered for this processor
in a file in the user's cache folder. GPUs always use the fused kernels.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from muva.file_lock import locked
from muva.model.part_gate import PartGate
from muva.model.plain_attention import plain_attention
from muva.model.tracing import is_traced

Kernel = Literal["fused", "plain"]
KernelSetting = Literal["auto", "fused", "plain"]

MAX_IMAGES = 16
"""Larger batches are measured with so many images."""
ROUNDS = 3
"""Of each kernel, in turns, after one that warms up; the fastest counts."""
MIN_GAIN = 0.1
"""The plain products are used if they are faster by more than this fraction."""


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What decides which kernel is faster, besides the processor."""

    dtype: torch.dtype
    images: int
    heads: int
    queries: int
    tokens: int
    width: int
    """Of a head."""
    kind: Literal["open", "causal", "given gate", "learned gate"]
    """A learned gate has a gradient."""
    parts: int
    """Of a gate."""
    gradient: bool
    """Whether the pass has a backward pass."""
    threads: int

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        passes = "forward and backward" if self.gradient else "forward"
        kind = f"{self.kind} of {self.parts} parts" if self.parts else self.kind
        return (
            f"{dtype}, {self.images} x {self.heads} heads, {self.queries} x {self.tokens} tokens "
            f"of {self.width}, {kind}, {passes}, {self.threads} threads"
        )


_setting: KernelSetting = "auto"
_chosen: dict[AttentionShape, Kernel] = {}


@contextmanager
def attention_computed_by(setting: KernelSetting) -> Iterator[None]:
    """Inside the block, use this kernel on CPUs in all threads; `auto`: the faster one."""
    global _setting
    before, _setting = _setting, setting
    try:
        yield
    finally:
        _setting = before


def attend(
    query: Float[Tensor, " B heads queries d"],
    key: Float[Tensor, " B heads T d"],
    value: Float[Tensor, " B heads T d"],
    *,
    gate: PartGate | None,
    causal: bool,
) -> Float[Tensor, " B heads queries d"]:
    """Scaled dot-product attention, gated or causal or neither, by the faster kernel.

    With a gate, the queries are at least those of the class token and of all parts.
    """
    kernel = "fused"
    if query.device.type == "cpu":
        kernel = _kernel_for(query, key, value, gate, causal)
    return (_fused if kernel == "fused" else _plain)(query, key, value, gate, causal)


def measured_kernels() -> dict[str, dict[str, float]]:
    """What was measured on this processor: shape -> kernel -> milliseconds."""
    with suppress(OSError, ValueError):
        measured = json.loads(_file().read_text("utf-8"))
        if isinstance(measured, dict):
            return {
                shape: of
                for shape, of in measured.items()
                if isinstance(of, dict) and {"fused", "plain"} <= of.keys()
            }
    return {}


def measurements_summary() -> str:
    """How many shapes were measured on this processor, and which kernel they use, in one line."""
    kernels = [faster_kernel(one) for one in measured_kernels().values()]
    if not kernels:
        return f"{processor_name()}: each shape is measured at its first use; none has been so far"
    return (
        f"{processor_name()}: plain products for {kernels.count('plain')} of {len(kernels)} "
        f"measured shapes, PyTorch's fused kernel for the others; the times are in {_file()}"
    )


def faster_kernel(milliseconds: Mapping[str, float]) -> Kernel:
    """The kernel to use, by its measurement."""
    gains = milliseconds["plain"] < (1 - MIN_GAIN) * milliseconds["fused"]
    return "plain" if gains else "fused"


@functools.cache
def processor_name() -> str:
    """The processor with its vector instructions, and PyTorch's version."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    instructions = [torch.backends.cpu.get_cpu_capability()]
    instructions += ["AVX512-BF16"] if torch.cpu._is_avx512_bf16_supported() else []
    instructions += ["AMX"] if torch.cpu._is_amx_tile_supported() else []
    return f"{model}, {' '.join(instructions)}, PyTorch {torch.__version__}"


def _fused(
    query: Tensor, key: Tensor, value: Tensor, gate: PartGate | None, causal: bool
) -> Tensor:
    bias = None
    if gate is not None:
        bias = gate.bias[:, None, : query.shape[2]].to(query.dtype)
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal)


def _plain(
    query: Tensor, key: Tensor, value: Tensor, gate: PartGate | None, causal: bool
) -> Tensor:
    values = None if gate is None else gate.values
    return plain_attention(query, key, value, gate=values, causal=causal)


def _kernel_for(
    query: Tensor, key: Tensor, value: Tensor, gate: PartGate | None, causal: bool
) -> Kernel:
    if is_traced():  # an exported graph has PyTorch's own operators
        return "fused"
    if _setting != "auto":
        return _setting
    if torch.compiler.is_compiling():  # which cannot measure, and fuses the plain products itself
        return "plain" if query.dtype == torch.bfloat16 and not causal else "fused"
    needs = [torch.is_grad_enabled() and part.requires_grad for part in (query, key, value)]
    learned = gate is not None and torch.is_grad_enabled() and gate.values.requires_grad
    kind = "causal" if causal else "open"
    if gate is not None:
        kind = "learned gate" if learned else "given gate"
    shape = AttentionShape(
        dtype=query.dtype,
        images=min(MAX_IMAGES, 1 << (len(query) - 1).bit_length()),
        heads=query.shape[1],
        queries=query.shape[2],
        tokens=key.shape[2],
        width=query.shape[3],
        kind=kind,
        parts=0 if gate is None else gate.values.shape[1],
        gradient=any(needs) or learned,
        threads=torch.get_num_threads(),
    )
    if shape not in _chosen:
        _chosen[shape] = _remembered(shape)
    return _chosen[shape]


def _remembered(shape: AttentionShape) -> Kernel:
    """The kernel by an earlier process's measurement, or by one of our own.

    All processes use the measurement that was stored first, so that they round alike.
    """
    known = measured_kernels().get(str(shape))
    if known is None:
        # In a thread of its own, the pass is seen neither by the hooks with which checkpointing
        # records what a block saves for its backward pass, nor by other modes of this thread.
        with ThreadPoolExecutor(max_workers=1) as thread:
            autocast = torch.is_autocast_enabled("cpu")
            measured = thread.submit(_milliseconds, shape, autocast=autocast).result()
        file = _file()
        with locked(file.with_suffix(".lock")):
            every = measured_kernels()
            known = every.setdefault(str(shape), measured)
            _replace(file, json.dumps(every, indent=1))
    return faster_kernel(known)


def _replace(file: Path, text: str) -> None:
    temporary = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # without a cache folder, each process measures anew
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, "utf-8")
        temporary.replace(file)


def _file() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    words = "".join(c if c.isalnum() else "-" for c in processor_name()).strip("-")
    return cache / "muva" / "attention" / f"{words}.json"


def _milliseconds(shape: AttentionShape, *, autocast: bool) -> dict[str, float]:
    """Kernel -> the shortest time of a pass of this shape."""
    # A generator of its own: the default one belongs to the training.
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        drawn = torch.randn(size, generator=generator, dtype=torch.float32).to(shape.dtype)
        return drawn.requires_grad_(shape.gradient)

    # As in a block: heads are a transposed view of the projected tokens.
    query, key, value = (
        random(shape.images, count, shape.heads, shape.width).transpose(1, 2)
        for count in (shape.queries, shape.tokens, shape.tokens)
    )
    values = random(shape.images, shape.parts, shape.tokens - 1 - shape.parts)
    given = PartGate(values.detach()) if shape.kind == "given gate" else None
    upstream = random(shape.images, shape.heads, shape.queries, shape.width).detach()
    fastest: dict[str, float] = {}
    with (
        torch.set_grad_enabled(shape.gradient),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        for number in range(ROUNDS + 1):
            for name, kernel in (("fused", _fused), ("plain", _plain)):
                started_at = time.perf_counter()
                gate = PartGate(values) if shape.kind == "learned gate" else given
                mixed = kernel(query, key, value, gate, shape.kind == "causal")
                if shape.gradient:
                    mixed.backward(upstream)
                spent_ms = 1000 * (time.perf_counter() - started_at)
                if number:
                    fastest[name] = min(spent_ms, fastest.get(name, spent_ms))
    return fastest
