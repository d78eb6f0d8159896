"""Rendered people for pre-training: networks of the open world, kept in a folder.

One file per network, so that an interrupted rendering continues where it stopped, and several
trainings share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muva.synthetic import render
from muva.synthetic.caption import caption
from muva.synthetic.domain import find_domain
from muva.synthetic.identity import identity
from muva.synthetic.seeds import generator
from muva.synthetic.world import WORLD_VERSION, network_name

HEIGHT, WIDTH = 128, 64


@dataclass(frozen=True)
class Crowd:
    """P people of several networks, V views of each."""

    images: NDArray[np.uint8]
    """(P, V, H, W, 3), each view by another camera as long as the network has more."""
    captions: list[str]
    networks: NDArray[np.int64]
    """(P,) the number of each person's network."""


def rendered_crowd(
    networks: Iterable[int],
    *,
    people: int,
    views: int,
    folder: Path,
    processes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Crowd:
    """The first `people` people of each network; networks already in the folder are read from it.

    `progress` is called with (networks done, networks in total).
    """
    numbers = list(networks)
    folder.mkdir(parents=True, exist_ok=True)
    render_one = partial(_render_network, people=people, views=views, folder=folder)
    missing = [n for n in numbers if not _file(folder, n, people, views).exists()]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(render_one, missing), start=len(numbers) - len(missing)):
            progress(done + 1, len(numbers))
    return Crowd(
        images=np.concatenate([np.load(_file(folder, n, people, views)) for n in numbers]),
        captions=[
            caption(identity(network_name(n), pid)) for n in numbers for pid in range(1, people + 1)
        ],
        networks=np.repeat(np.array(numbers, np.int64), people),
    )


def _file(folder: Path, number: int, people: int, views: int) -> Path:
    return folder / f"{network_name(number)}-v{WORLD_VERSION}-{people}x{views}.npy"


def _render_network(number: int, *, people: int, views: int, folder: Path) -> None:
    name = network_name(number)
    cameras = find_domain(name).cameras
    images = np.empty((people, views, HEIGHT, WIDTH, 3), np.uint8)
    for pid in range(1, people + 1):
        order = generator("views", name, pid).permutation(cameras) + 1
        for view in range(views):
            index, turn = divmod(view, cameras)
            shot = render(
                name, pid=pid, camid=int(order[turn]), index=index, height=HEIGHT, width=WIDTH
            )
            images[pid - 1, view] = shot.image
    path = _file(folder, number, people, views)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, images)
    part.replace(path)
