"""How many operators does a training step launch?: `python -m benchmarks.operators`.

A GPU in half precision finishes most of them before the next one is launched, so their number
bounds its speed. They are counted on the CPU, below autograd, in a step and a feature pass of
ViT-B/16 with three parts, with the fused kernels that a GPU uses for attention; views and empty
tensors, which launch nothing, are left out. `--check` exits with 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.baseline import DTYPES, Table, benchmark_parser, exit_code, write_results
from benchmarks.training import Stage2
from muva.model.precision import Precision, autocast
from muva.training.compute import Compute, apply_compute

MOST = 730
"""Goal: operators of a step in bfloat16, a third of the 2,191 that there once were."""
BATCH = 2
SHOWN = 6
NO_KERNEL = {
    *("view", "_unsafe_view", "transpose", "t", "permute", "expand", "slice", "select", "detach"),
    *("unsqueeze", "squeeze", "as_strided", "alias", "split", "split_with_sizes", "unbind"),
    *("diagonal", "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty"),
    *("new_empty_strided", "lift_fresh", "promote_types"),
}


class Launches(TorchDispatchMode):
    """Counts operators that launch a kernel, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in NO_KERNEL:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def main() -> int:
    """Count and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("operators", __doc__, check="exit 1 when a goal is missed")
    arguments = parser.parse_args()
    stage2 = Stage2(BATCH)
    compute = Compute(attention="fused")
    print("| precision | step | of which the encoder | feature pass | most frequent in a step |")
    print("|---|---:|---:|---:|---|")
    found = {}
    for precision in cast(tuple[Precision, ...], ("fp32", "bf16")):
        with apply_compute(stage2.model.image_encoder, compute):
            stage2.step(precision, compute)  # the optimiser allocates its moments
            found[precision] = counted(stage2, precision, compute)
        of = found[precision]
        frequent = ", ".join(f"{name} {count}" for name, count in of["frequent"].items())
        print(
            f"| {DTYPES[precision]} | {of['step']} | {of['encoder']} | {of['features']} "
            f"| {frequent} |"
        )
    write_results(arguments, found, baseline_tables)
    return exit_code(arguments, misses(found))


def counted(stage2: Stage2, precision: Precision, compute: Compute) -> dict[str, Any]:
    """Operators of a step, of the encoder's forward and backward pass in it, and of features."""
    encoder = stage2.model.image_encoder.train()

    def encode() -> None:
        encoder.zero_grad()
        with autocast(precision, stage2.device):
            encoded = encoder(stage2.images.pixels)
        encoded.feature.backward(torch.ones_like(encoded.feature), retain_graph=False)

    step = launches(lambda: stage2.step(precision, compute))
    return {
        "step": step.total(),
        "encoder": launches(encode).total(),
        "features": launches(lambda: stage2.features(precision, compute)).total(),
        "frequent": dict(step.most_common(SHOWN)),
    }


def launches(work: Callable[[], object]) -> Counter[str]:
    """The operators of some work."""
    with Launches() as mode:
        work()
    return mode.counts


def misses(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The goals that were missed."""
    count = found["bf16"]["step"]
    return [f"bfloat16: {count} operators in a step, at most {MOST} expected"] * (count > MOST)


def baseline_tables(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Table]:
    """`operators`: a row per precision."""
    rows = [
        {
            "precision": DTYPES[precision],
            "step": of["step"],
            "encoder": of["encoder"],
            "features": of["features"],
            **({"goal": MOST} if precision == "bf16" else {}),
        }
        for precision, of in found.items()
    ]
    return {"operators": Table(rows=rows)}


if __name__ == "__main__":
    sys.exit(main())
