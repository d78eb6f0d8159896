"""Loads batches ahead of time, in a thread or in worker processes.

The content of a batch depends only on its draw, which the training makes from (seed, epoch). So the
batches and their order are the same for any number of processes.
"""

from __future__ import annotations

import multiprocessing.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from muva.config import AugmentationConfig
from muva.data.draw import Draw
from muva.errors import MuvaError
from muva.short_folders import short_folder

Batch = tuple[Tensor, Tensor | None]
"""Normalised images (B, 3, H, W), and part masks (B, R, L) if the model has parts."""

_PRELOADED = ["torch", "pyarrow.parquet", "PIL.Image"]
"""Modules that the fork server imports once for all loader processes.

None of this project's: the fork server does not know where a Ray job has put its code, and would
import another copy that happens to be installed.
"""
_LOADER_SOCKET = "/pymp-12345678/listener-12345678"
"""The path of multiprocessing's sockets below the temporary folder."""
_PREFETCHED = 2
"""Batches that each process loads in advance."""


@runtime_checkable
class TrainingImages(Protocol):
    """Pooled training images: M of them, with identity labels and, if there are parts, masks."""

    @property
    def labels(self) -> np.ndarray:
        """Identity labels (M,), int64, 0 to N - 1, each of which occurs."""
        ...

    @property
    def image_ids(self) -> Sequence[str]:
        """The M unique names of the images, used in error messages."""
        ...

    @property
    def augmentation(self) -> AugmentationConfig:
        """What is done to images whose draw has seeds."""
        ...

    def batch(self, draw: Draw) -> Batch:
        """Normalised images (B, 3, H, W) and part masks (B, R, L), altered as the draw says."""
        ...


@runtime_checkable
class CompactImages(Protocol):
    """Training images that can be sent between processes in a compact form."""

    def uint8_batch(self, draw: Draw) -> Batch:
        """Images and part masks as `batch` gives them, the images in that form."""
        ...

    def normalise(self, pixels: Tensor) -> Tensor:
        """The normalised images (B, 3, H, W) of a compact batch, on the device that it is on."""
        ...


class Loader:
    """Loads the batches of a set of images, one list of draws at a time.

    With `processes`, so many worker processes load the batches and live as long as the loader; they
    send images as bytes, which are normalised on `device`. With 0, a thread loads them, which is
    enough if images are decoded faster than the model consumes them.
    """

    def __init__(
        self, images: TrainingImages, *, processes: int = 0, device: torch.device | None = None
    ):
        self._images = images
        self._device = device
        self._draws: list[Draw] = []
        self._processes: DataLoader[Batch | MuvaError] | None = None
        self.waited_s = 0.0
        """Seconds that the consumer has waited for batches so far."""
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
                # A separate generator: the default one belongs to the training.
                generator=torch.Generator(),
            )

    def batches(self, draws: Sequence[Draw]) -> Iterator[Batch]:
        """The batches of these draws, in order. Finish one list before starting the next."""
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
        return self._images.normalise(pixels.to(self._device, non_blocking=True)), masks


def _by_thread(make: Callable[[Draw], Batch], draws: Sequence[Draw]) -> Iterator[Batch]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(make, draw) for draw in draws[:1]]
        for following in draws[1:]:
            ready = coming.pop().result()
            coming.append(pool.submit(make, following))
            yield ready
        for last in coming:
            yield last.result()


def _forkserver() -> Any:
    _shorten_socket_paths()
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _shorten_socket_paths() -> None:
    """Let multiprocessing put its sockets into a folder with a short path.

    It makes one folder per process, below TMPDIR, whose path may be too long. Python 3.14 looks for
    a shorter one by itself (python/cpython issue 93852).
    """
    default = tempfile.gettempdir()
    folder = short_folder(len(_LOADER_SOCKET), preferred=default, variable="TMPDIR")
    if folder != default:
        tempfile.tempdir = folder
        try:
            multiprocessing.util.get_temp_dir()
        finally:
            tempfile.tempdir = default


def _unchanged(made: Any) -> Any:
    return made


class _DrawnBatches(Dataset[Batch | MuvaError]):
    """Maps a draw to its batch, as the data set of a DataLoader.

    A MuvaError is returned, not raised: a DataLoader would bury its message in tracebacks.
    """

    def __init__(self, images: TrainingImages):
        self._make = images.uint8_batch if isinstance(images, CompactImages) else images.batch

    def __getitem__(self, draw: Draw) -> Batch | MuvaError:
        try:
            return self._make(draw)
        except MuvaError as mistake:
            return mistake


class _DrawSampler:
    """Samples the draws that the list holds when a DataLoader starts an epoch."""

    def __init__(self, draws: list[Draw]):
        self._draws = draws

    def __iter__(self) -> Iterator[Draw]:
        return iter(list(self._draws))

    def __len__(self) -> int:
        return len(self._draws)
