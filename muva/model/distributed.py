"""Collective operations that give each worker what a single process would see."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Shaped
from torch import Tensor


def world_size() -> int:
    """The number of workers; 1 if torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The rank of this worker; 0 if torch.distributed is not initialised."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_batch(share: Shaped[Tensor, " share *rest"]) -> Shaped[Tensor, " batch *rest"]:
    """Gather all workers' equal shares of a batch in rank order; differentiable."""
    return _GatherBatch.apply(share) if world_size() > 1 else share


class _GatherBatch(torch.autograd.Function):
    """All-gather whose gradient is summed over workers: each worker's loss depends on all shares.

    It runs on both gloo and NCCL, whereas SyncBatchNorm does not support CPU tensors.
    """

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        shares = [torch.empty_like(share) for _ in range(world_size())]
        dist.all_gather(shares, share.contiguous())
        return torch.cat(shares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def on_any_worker(condition: Bool[Tensor, ""]) -> bool:
    """Whether a condition holds on at least one worker. All workers get the same answer."""
    if world_size() == 1:
        return bool(condition)
    somewhere = condition.to(torch.int32)
    dist.all_reduce(somewhere, op=dist.ReduceOp.MAX)
    return bool(somewhere)


def mean_over_workers(values: Sequence[float]) -> list[float]:
    """The mean of each value over all workers."""
    if world_size() == 1:
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    summed = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return (summed / world_size()).tolist()
