"""Batches made while the one before is computed on: by a thread, or by processes.

What is in a batch depends on its indices and flips alone, which the training draws from (seed,
epoch): the batches are the same for any number of processes, and come in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from muva.errors import MuvaError

Batch = tuple[Tensor, Tensor | None]
"""Normalised images (B, 3, H, W), and part masks (B, R, L) where there are parts."""
Draw = tuple[np.ndarray, Tensor | None]
"""Which images a batch has, and which of them are mirrored."""

_PRELOADED = ["torch", "pyarrow.parquet", "PIL.Image"]
"""What the process that loader processes are forked from imports once for all of them.

Nothing of this project: that process does not know where a job has put its code, and would
take another copy that is installed there.
"""
_PREFETCHED = 2
"""Batches that each process makes ahead."""


@runtime_checkable
class TrainingImages(Protocol):
    """Pooled training images: M of them, with dense labels and, if there are parts, masks."""

    @property
    def labels(self) -> np.ndarray:
        """Identities (M,), int64, 0 to N - 1, each present."""
        ...

    @property
    def image_ids(self) -> Sequence[str]:
        """The images' names, M of them, each once: errors name images by them."""
        ...

    def batch(self, indices: np.ndarray, flips: Tensor | None) -> Batch:
        """Normalised images (B, 3, H, W) and part masks (B, R, L), mirrored where told."""
        ...


@runtime_checkable
class CompactImages(Protocol):
    """Training images whose batches have a smaller form, for the way between processes."""

    def compact(self, indices: np.ndarray, flips: Tensor | None) -> Batch:
        """Images and part masks as `batch` gives them, the images in that form."""
        ...

    def expanded(self, pixels: Tensor) -> Tensor:
        """The normalised images (B, 3, H, W) of a compact batch, on the device that it is on."""
        ...


class Loader:
    """Makes the batches of some images, one list of draws after the other.

    `processes`: so many make them, and live until the loader is no longer used; 0: a thread does,
    which is enough where images are decoded faster than they are computed on. What processes make
    is sent as bytes and normalised on `device`.
    """

    def __init__(
        self, images: TrainingImages, *, processes: int = 0, device: torch.device | None = None
    ):
        self._images = images
        self._device = device
        self._draws: list[Draw] = []
        self._processes: DataLoader[Batch | MuvaError] | None = None
        self.waited_s = 0.0
        """Seconds that whoever takes the batches has waited for them so far."""
        if processes:
            self._processes = DataLoader(
                _DrawnBatches(images),
                batch_size=None,
                collate_fn=_unchanged,
                sampler=_DrawSampler(self._draws),
                num_workers=processes,
                prefetch_factor=_PREFETCHED,
                persistent_workers=True,
                # Fork would copy threads' locks; spawn imports everything in each process.
                multiprocessing_context=_forkserver(),
                # Of its own: the default one belongs to the training.
                generator=torch.Generator(),
            )

    def batches(self, draws: Sequence[Draw]) -> Iterator[Batch]:
        """The batches in order. One list of draws at a time."""
        if self._processes is None:
            made: Iterator[Batch | MuvaError] = _by_thread(self._images.batch, draws)
        else:
            self._draws[:] = draws
            made = iter(self._processes)
        while True:
            started_at = time.perf_counter()
            batch = next(made, None)
            self.waited_s += time.perf_counter() - started_at
            if batch is None:
                return
            if isinstance(batch, MuvaError):
                raise batch
            yield batch if self._processes is None else self._expanded(batch)

    def _expanded(self, batch: Batch) -> Batch:
        if not isinstance(self._images, CompactImages):
            return batch
        pixels, masks = batch
        return self._images.expanded(pixels.to(self._device, non_blocking=True)), masks


def _by_thread(make: Callable[..., Batch], draws: Sequence[Draw]) -> Iterator[Batch]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(make, *draw) for draw in draws[:1]]
        for following in draws[1:]:
            ready = coming.pop().result()
            coming.append(pool.submit(make, *following))
            yield ready
        for last in coming:
            yield last.result()


def _forkserver() -> Any:
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _unchanged(made: Any) -> Any:
    return made


class _DrawnBatches(Dataset[Batch | MuvaError]):
    """Batches by their draws, in the form that a DataLoader asks.

    A person's mistake comes as a value: a DataLoader would make its message one of tracebacks.
    """

    def __init__(self, images: TrainingImages):
        self._make = images.compact if isinstance(images, CompactImages) else images.batch

    def __getitem__(self, draw: Draw) -> Batch | MuvaError:
        try:
            return self._make(*draw)
        except MuvaError as mistake:
            return mistake


class _DrawSampler:
    """The draws of the list as it stands when a DataLoader begins."""

    def __init__(self, draws: list[Draw]):
        self._draws = draws

    def __iter__(self) -> Iterator[Draw]:
        return iter(list(self._draws))

    def __len__(self) -> int:
        return len(self._draws)
