"""Backdrops: the vertical surface behind the people, 32 metres wide and 6.7 metres high."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Levels
from muva.synthetic.texture import (
    Canvas,
    any_colour,
    canvas,
    disc,
    dome,
    finished,
    noise,
    rectangle,
)

PX_PER_M = 48
HEIGHT, WIDTH = 320, 1536
"""Pixels; row 0 is the top."""

_BAY_WIDTH_PX = (50, 170)


def paint_backdrop(kind: str, rng: Generator) -> Levels:
    """(320, 1536, 3) RGB albedo of one of BACKDROPS."""
    return finished(BACKDROPS[kind](rng), blur_px=1.2)


def _bays(rng: Generator) -> Iterator[tuple[int, int]]:
    """Left and right edges of consecutive bays across the whole width."""
    left = 0
    while left < WIDTH:
        right = left + int(rng.uniform(*_BAY_WIDTH_PX))
        yield left, right
        left = right


def _facades(
    rng: Generator,
    *,
    plaster: tuple[int, int, int],
    coloured: bool,
    inside: tuple[int, int],
    cars: bool = False,
) -> Canvas:
    """A row of houses or shops; `inside` is the range of brightness behind the windows."""
    base = np.array(plaster)
    painting = canvas(rng, HEIGHT, WIDTH, plaster, mottling=7)
    for left, right in _bays(rng):
        if coloured:
            front = 0.5 * any_colour(rng, 40, 215) + 0.5 * base
        else:
            front = base * rng.uniform(0.75, 1.15)
        rectangle(painting, left, 0, right, HEIGHT, front)
        kind = rng.random()
        if kind < 0.55:
            _shop_window(painting, rng, left, right, inside=any_colour(rng, *inside))
        elif kind < 0.8:
            _upper_windows(painting, rng, left, right)
        if cars and rng.random() < 0.5:
            _parked_car(painting, left, any_colour(rng, 20, 220))
        _sometimes_a_pillar(painting, rng, left)
    return painting


def _shop_window(painting: Canvas, rng: Generator, left: int, right: int, *, inside) -> None:
    sill = 0 if rng.random() < 0.4 else 40
    rectangle(painting, left + 8, HEIGHT - 190, right - 8, HEIGHT - sill, inside)
    for _ in range(int(rng.integers(3, 12))):
        x, y = rng.uniform(left + 8, right - 20), rng.uniform(HEIGHT - 185, HEIGHT - 30)
        far = min(x + rng.uniform(5, 30), right - 8)
        rectangle(painting, x, y, far, y + rng.uniform(8, 45), any_colour(rng, 30, 230))
    sign = any_colour(rng, 30, 230)
    rectangle(painting, left + 8, HEIGHT - 225, right - 8, HEIGHT - 195, sign)


def _upper_windows(painting: Canvas, rng: Generator, left: int, right: int) -> None:
    for column in range(max(1, (right - left) // 42)):
        for row in range(3):
            x, y = left + 10 + 40 * column, 20 + 80 * row
            rectangle(painting, x, y, x + 24, y + 55, any_colour(rng, 30, 120))


def _sometimes_a_pillar(painting: Canvas, rng: Generator, left: int) -> None:
    if rng.random() < 0.3:
        colour = any_colour(rng, 60, 200)
        rectangle(painting, left, 0, left + rng.uniform(8, 22), HEIGHT, colour)


def _parked_car(painting: Canvas, left: int, colour) -> None:
    dome(painting, left + 60, HEIGHT - 45, 80, 32, colour * 0.6)
    rectangle(painting, left - 30, HEIGHT - 48, left + 150, HEIGHT - 18, colour)
    for wheel in (left, left + 115):
        disc(painting, wheel, HEIGHT - 14, 14, (20, 20, 20))


def _trees(rng: Generator) -> Canvas:
    painting = canvas(rng, HEIGHT, WIDTH, (150, 175, 205), mottling=7)
    for _ in range(4):
        _low_building(painting, rng)
    for _ in range(60):
        _tree(painting, rng)
    return painting


def _tree(painting: Canvas, rng: Generator) -> None:
    x, size = rng.uniform(0, WIDTH), rng.uniform(25, 80)
    y = rng.uniform(40, HEIGHT - 60)
    rectangle(painting, x - 5, y, x + 5, HEIGHT, (70, 55, 42))
    for _ in range(25):
        leaf = np.array([58, 80, 48]) * rng.uniform(0.5, 1.4) + rng.normal(0, 8, 3)
        dx, dy = rng.normal(0, 0.6 * size), rng.normal(0, 0.5 * size)
        disc(painting, x + dx, y + dy, rng.uniform(5, 22), np.clip(leaf, 5, 250))


def _low_building(painting: Canvas, rng: Generator) -> None:
    left, width = rng.uniform(0, WIDTH), rng.uniform(120, 260)
    wall = rng.uniform(120, 200) + rng.normal(0, 12, 3)
    rectangle(painting, left, 0.35 * HEIGHT, left + width, HEIGHT, wall)
    for column in range(int(width // 40)):
        for row in range(3):
            x, y = left + 12 + 34 * column, 0.42 * HEIGHT + 60 * row
            rectangle(painting, x, y, x + 18, y + 35, (60, 75, 90))


def _harbour(rng: Generator) -> Canvas:
    """Evening sky and water, stacked containers, masts."""
    sky_top, horizon = np.array([120, 140, 178]), np.array([232, 184, 140])
    down = np.linspace(0, 1, HEIGHT)[:, None, None]
    painting = np.tile(sky_top + (horizon - sky_top) * down, (1, WIDTH, 1)).astype(np.float32)
    painting += 8 * noise(rng, HEIGHT, WIDTH, octaves=7)[..., None]
    water = int(0.62 * HEIGHT)
    ripples = noise(rng, HEIGHT - water, WIDTH, octaves=3)[..., None]
    painting[water:] = np.array([72, 92, 108], np.float32) + 14 * ripples
    for _ in range(7):
        _ship(painting, rng, water)
    for _ in range(9):
        _container_stack(painting, rng)
    quay = HEIGHT - 16
    rectangle(painting, 0, quay, WIDTH, HEIGHT, (96, 90, 84))
    for x in range(0, WIDTH, 96):
        rectangle(painting, x, quay - 36, x + 5, HEIGHT, (70, 66, 62))
    rectangle(painting, 0, quay - 34, WIDTH, quay - 30, (70, 66, 62))
    return painting


def _ship(painting: Canvas, rng: Generator, water: int) -> None:
    left, length = rng.uniform(-60, WIDTH), rng.uniform(90, 260)
    hull_top = water + rng.uniform(-12, 30)
    hull, deck = any_colour(rng, 30, 150), rng.uniform(170, 230) + rng.normal(0, 8, 3)
    cabin = left + length * rng.uniform(0.1, 0.6)
    rectangle(painting, cabin, hull_top - 34, cabin + 0.25 * length, hull_top, deck)
    rectangle(painting, left, hull_top, left + length, hull_top + 28, hull)
    for mast in rng.uniform(left, left + length, 3):
        rectangle(painting, mast, hull_top - rng.uniform(60, 150), mast + 2, hull_top, (60, 56, 54))


def _container_stack(painting: Canvas, rng: Generator) -> None:
    paints = np.array(
        [(150, 60, 45), (45, 80, 125), (180, 130, 60), (70, 105, 80), (140, 140, 140)]
    )
    left, height = rng.uniform(0, WIDTH), 62
    for level in range(int(rng.integers(1, 4))):
        bottom = HEIGHT - 14 - level * height
        paint = paints[rng.integers(len(paints))] * rng.uniform(0.8, 1.15)
        rectangle(painting, left, bottom - height + 2, left + 150, bottom, paint)
        for rib in range(6, 150, 9):
            edge = left + rib
            rectangle(painting, edge, bottom - height + 6, edge + 2, bottom - 4, paint * 0.8)


def _glass(rng: Generator) -> Canvas:
    """A glass facade and the apron behind it: bright sky, aircraft, mullions, dark signs."""
    top, bottom = np.array([206, 220, 232]), np.array([226, 232, 234])
    down = np.linspace(0, 1, HEIGHT)[:, None, None]
    painting = np.tile(top + (bottom - top) * down, (1, WIDTH, 1)).astype(np.float32)
    painting += 5 * noise(rng, HEIGHT, WIDTH, octaves=7)[..., None]
    apron = int(0.7 * HEIGHT)
    rectangle(painting, 0, apron, WIDTH, HEIGHT, (150, 154, 156))
    for _ in range(4):
        _aircraft(painting, rng, apron)
    pane = int(rng.choice([64, 80, 96]))
    for x in range(0, WIDTH, pane):
        rectangle(painting, x, 0, x + 5, HEIGHT, (92, 100, 106))
    for y in (70, 190):
        rectangle(painting, 0, y, WIDTH, y + 4, (92, 100, 106))
    rectangle(painting, 0, HEIGHT - 22, WIDTH, HEIGHT, (118, 124, 128))
    for _ in range(8):
        _hall_furniture(painting, rng)
    return painting


def _aircraft(painting: Canvas, rng: Generator, apron: int) -> None:
    left, length = rng.uniform(-100, WIDTH), rng.uniform(220, 380)
    belly, tail = apron + rng.uniform(0, 24), any_colour(rng, 40, 200)
    rectangle(painting, left, belly - 36, left + length, belly, (222, 224, 228))
    disc(painting, left, belly - 18, 18, (222, 224, 228))
    rectangle(painting, left + length - 44, belly - 105, left + length - 6, belly - 30, tail)
    for window in range(20, int(length) - 50, 14):
        rectangle(painting, left + window, belly - 26, left + window + 5, belly - 19, (90, 98, 110))


def _hall_furniture(painting: Canvas, rng: Generator) -> None:
    """A sign, a column, or a row of seats in front of the glass."""
    left, kind = rng.uniform(0, WIDTH), rng.random()
    if kind < 0.4:
        top = rng.uniform(20, 80)
        rectangle(painting, left, top, left + rng.uniform(90, 190), top + 44, (42, 46, 54))
        rectangle(painting, left + 10, top + 10, left + 34, top + 34, (214, 184, 60))
    elif kind < 0.7:
        shade = rng.uniform(150, 200)
        rectangle(painting, left, 0, left + rng.uniform(24, 44), HEIGHT, (shade, shade, shade))
    else:
        seat = any_colour(rng, 40, 110)
        for place in range(int(rng.integers(3, 7))):
            x = left + 30 * place
            rectangle(painting, x, HEIGHT - 58, x + 24, HEIGHT - 20, seat)


BACKDROPS: dict[str, Callable[[Generator], Canvas]] = {
    "shops": partial(_facades, plaster=(190, 184, 172), coloured=True, inside=(120, 250)),
    "trees": _trees,
    "street": partial(_facades, plaster=(135, 122, 110), coloured=True, inside=(20, 90), cars=True),
    "station": partial(_facades, plaster=(105, 105, 104), coloured=False, inside=(20, 90)),
    "harbour": _harbour,
    "glass": _glass,
}
