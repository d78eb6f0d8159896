"""Grounds: square textures that repeat every 16 metres."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Indices, Levels
from muva.synthetic.texture import Canvas, canvas, finished, noise

PX_PER_M = 64
_SIZE = 1024


def paint_ground(kind: str, rng: Generator) -> Levels:
    """(1024, 1024, 3) RGB albedo of one of GROUNDS."""
    return finished(GROUNDS[kind](rng))


def _rows_and_columns() -> tuple[Indices, Indices]:
    rows, columns = np.mgrid[:_SIZE, :_SIZE]
    return rows, columns


def _rough(rng: Generator, colour: tuple[float, float, float], mottling: float) -> Canvas:
    painting = canvas(rng, _SIZE, _SIZE, colour, mottling=mottling)
    return painting + rng.normal(0, 5, (_SIZE, _SIZE, 1)).astype(np.float32)


def _tiles(rng: Generator) -> Canvas:
    painting = _rough(rng, (178, 170, 158), 6)
    rows, columns = _rows_and_columns()
    pitch = int(rng.choice([32, 43, 64]))
    painting[(rows % pitch < 2) | (columns % pitch < 2)] *= 0.72
    painting[(rows // pitch + columns // pitch) % 2 == 0] *= rng.uniform(0.88, 0.98)
    return painting


def _grass(rng: Generator) -> Canvas:
    painting = _rough(rng, (98, 110, 74), 11)
    path = slice(330, 700)
    gravel = np.array([150, 142, 130], np.float32)
    painting[:, path] = gravel + 7 * noise(rng, _SIZE, _SIZE, octaves=6)[:, path, None]
    return painting


def _asphalt(rng: Generator) -> Canvas:
    """A road with dashed lines, and a paved pavement beside it."""
    painting = _rough(rng, (98, 98, 100), 11)
    rows, columns = _rows_and_columns()
    painting[(columns % 340 < 10) & (rows % 200 < 120)] = 205
    walk = columns >= 700
    painting[walk] = painting[walk] * 0.5 + 75
    painting[walk & ((rows % 40 < 2) | (columns % 40 < 2))] *= 0.8
    return painting


def _concrete(rng: Generator) -> Canvas:
    """Slabs with the yellow line of a platform."""
    painting = _rough(rng, (120, 118, 112), 11)
    rows, columns = _rows_and_columns()
    painting[(rows % 128 < 3) | (columns % 128 < 3)] *= 0.7
    painting[columns % 512 > 470] = (190, 165, 60)
    return painting


def _planks(rng: Generator) -> Canvas:
    """Weathered boards in different greys, with dark gaps."""
    painting = _rough(rng, (148, 124, 98), 9)
    rows, columns = _rows_and_columns()
    board_width, board_length = 16, 256
    board = columns // board_width
    shift = rng.integers(0, board_length, _SIZE // board_width)
    piece = (rows + shift[board]) % _SIZE // board_length
    tints = rng.uniform(0.78, 1.1, (_SIZE // board_width, _SIZE // board_length))
    painting *= tints[board, piece][..., None].astype(np.float32)
    gap = (columns % board_width < 2) | ((rows + shift[board]) % board_length < 2)
    painting[gap] *= 0.5
    return painting


def _terrazzo(rng: Generator) -> Canvas:
    """Polished stone: chips in different greys, wide joints, a darker band."""
    painting = _rough(rng, (186, 190, 190), 5)
    rows, columns = _rows_and_columns()
    chips = noise(rng, _SIZE, _SIZE, octaves=1)
    painting[chips > 1.3] *= 0.87
    painting[chips < -1.5] = np.minimum(painting[chips < -1.5] * 1.1, 230)
    painting[(rows % 205 < 3) | (columns % 205 < 3)] *= 0.78
    painting[columns % 1024 > 860] *= 0.66
    return painting


GROUNDS: dict[str, Callable[[Generator], Canvas]] = {
    "tiles": _tiles,
    "grass": _grass,
    "asphalt": _asphalt,
    "concrete": _concrete,
    "planks": _planks,
    "terrazzo": _terrazzo,
}
