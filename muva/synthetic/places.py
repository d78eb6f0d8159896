"""Places of the open world: grounds and backdrops full of edges, each composed from a seed.

A ground repeats every 8 metres, a backdrop is 32 metres wide and 6.7 metres high. Unlike those of
the first six named domains, they are not blurred.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats, Levels
from muva.synthetic.backdrop import HEIGHT, WIDTH
from muva.synthetic.texture import Canvas, canvas, disc, dome, finished, noise, rectangle

_GROUND_SIZE = 512
_VIVID = 0.14
"""Share of paints that are not muted."""
_LETTERS = "ABCDEFGHIKLMNOPRSTUVXYZ0123456789&"
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)


def paint_place(rng: Generator, *, indoors: bool) -> Levels:
    """(HEIGHT, WIDTH, 3) RGB albedo of a random backdrop."""
    wall = _paint(rng, 45, 200)
    painting = canvas(rng, HEIGHT, WIDTH, tuple(wall), mottling=rng.uniform(3, 10))
    kinds = _INDOORS if indoors else _OUTDOORS
    chosen = [kinds[int(i)] for i in rng.permutation(len(kinds))[: int(rng.integers(3, 6))]]
    if not indoors and rng.random() < 0.4:
        _sky(painting, rng)
    left = -int(rng.uniform(0, 60))
    while left < WIDTH:
        right = left + int(rng.uniform(50, 240))
        chosen[int(rng.integers(len(chosen)))](painting, rng, left, right)
        if rng.random() < 0.35:
            _post(painting, rng, left)
        left = right
    for _ in range(int(rng.integers(4, 18))):
        _THINGS[int(rng.integers(len(_THINGS)))](painting, rng)
    return finished(painting)


def paint_paving(rng: Generator, *, indoors: bool) -> Levels:
    """(512, 512, 3) RGB albedo of a random ground."""
    base = rng.uniform(45, 185) * np.exp(rng.normal(0, 0.035, 3))
    painting = canvas(rng, _GROUND_SIZE, _GROUND_SIZE, tuple(base), mottling=rng.uniform(4, 12))
    painting += rng.normal(0, rng.uniform(2, 9), (_GROUND_SIZE, _GROUND_SIZE, 1)).astype(np.float32)
    kinds = _FLOORS if indoors else _PAVINGS
    kinds[int(rng.integers(len(kinds)))](painting, rng)
    if rng.random() < 0.5:
        _markings(painting, rng)
    _edges(painting, rng)
    for _ in range(int(rng.integers(0, 12))):  # manholes, stains, leaves
        x, y = rng.uniform(0, _GROUND_SIZE, 2)
        disc(painting, x, y, rng.uniform(4, 34), painting[int(y), int(x)] * rng.uniform(0.6, 1.15))
    if rng.random() < (0.25 if indoors else 0.6):
        _shade(painting, rng)
    return finished(painting)


def _paint(rng: Generator, low: float, high: float) -> Floats:
    """A random RGB colour between two levels: nearly grey, or sometimes vivid."""
    colour = rng.uniform(low, high, 3)
    share = rng.uniform(0.5, 1) if rng.random() < _VIVID else rng.uniform(0.05, 0.3)
    return colour.mean() + share * (colour - colour.mean())


def lettering(painting: Canvas, rng: Generator, x: float, y: float, height: float, colour) -> None:
    """A word of random capital letters with its lower left corner at (x, y)."""
    word = "".join(rng.choice(list(_LETTERS), int(rng.integers(3, 9))))
    font = _FONTS[int(rng.integers(len(_FONTS)))]
    thickness, size = max(1, round(height / 11)), height / 22
    (wide, tall), below = cv2.getTextSize(word, font, size, thickness)
    text = np.zeros((tall + below + thickness, wide + thickness), np.uint8)
    cv2.putText(text, word, (0, tall), font, size, 255, thickness, cv2.LINE_AA)
    top, left = max(0, int(y) - tall), max(0, int(x))
    place = painting[top : top + len(text), left : left + text.shape[1]]
    share = text[: place.shape[0], : place.shape[1], None] / np.float32(255)
    place += (np.asarray(colour, np.float32) - place) * share


# Elements of a backdrop: each fills the columns from `left` to `right`.


def _sky(painting: Canvas, rng: Generator) -> None:
    horizon = int(rng.uniform(0.2, 0.6) * HEIGHT)
    sky = np.array([165, 190, 220]) * rng.uniform(0.8, 1.15) + rng.normal(0, 12, 3)
    painting[:horizon] = sky
    clouds = noise(rng, horizon, WIDTH, octaves=7)[..., None]
    painting[:horizon] += np.clip(clouds, 0, 2) * rng.uniform(5, 40)


def _front(painting: Canvas, rng: Generator, left: int, right: int) -> Floats:
    """A wall in a colour of its own; returns the colour."""
    colour = _paint(rng, 45, 225)
    rectangle(painting, left, 0, right, HEIGHT, colour)
    return colour


def _courses(painting: Canvas, rng: Generator, left: int, right: int) -> None:
    """Bricks, tiles or panels, from 10 cm to 1 m."""
    colour = _front(painting, rng, left, right)
    tall, wide = int(rng.uniform(5, 30)), int(rng.uniform(10, 60))
    joint = colour * rng.choice([0.6, 0.75, 1.2])
    offset = rng.random() < 0.6
    for row, y in enumerate(range(0, HEIGHT, tall)):
        shift = wide // 2 if offset and row % 2 else 0
        for x in range(left - shift, right, wide):
            shade = colour * rng.uniform(0.85, 1.12)
            rectangle(
                painting, max(x, left) + 1, y + 1, min(x + wide, right) - 1, y + tall - 1, shade
            )
        rectangle(painting, left, y, right, y, joint)


def _windows(painting: Canvas, rng: Generator, left: int, right: int) -> None:
    _front(painting, rng, left, right)
    wide, tall = rng.uniform(18, 50), rng.uniform(35, 80)
    frame = _paint(rng, 30, 240)
    for y in np.arange(rng.uniform(5, 30), HEIGHT - 20, tall + rng.uniform(15, 40)):
        for x in np.arange(left + 6, right - wide, wide + rng.uniform(8, 30)):
            rectangle(painting, x - 2, y - 2, x + wide + 2, y + tall + 2, frame)
            rectangle(painting, x, y, x + wide, y + tall, _paint(rng, 15, 150))
            rectangle(painting, x + wide / 2, y, x + wide / 2 + 1, y + tall, frame)
            if rng.random() < 0.4:
                shown = rng.uniform(0.2, 0.8) * tall
                rectangle(painting, x + 1, y, x + wide - 1, y + shown, _paint(rng, 90, 235))


def _shop(painting: Canvas, rng: Generator, left: int, right: int) -> None:
    _front(painting, rng, left, right)
    top = HEIGHT - int(rng.uniform(130, 210))
    inside = _paint(rng, 20, 230)
    rectangle(painting, left + 5, top, right - 5, HEIGHT, inside)
    for _ in range(int((right - left) * rng.uniform(0.1, 0.5))):
        x, y = rng.uniform(left + 5, right - 10), rng.uniform(top, HEIGHT - 8)
        far, low = x + rng.uniform(3, 22), y + rng.uniform(3, 30)
        rectangle(painting, x, y, min(far, right - 5), low, _paint(rng, 10, 250))
    rectangle(painting, left, top - 34, right, top - 2, _paint(rng, 15, 240))
    lettering(painting, rng, left + 8, top - 8, rng.uniform(14, 28), _paint(rng, 10, 250))
    for x in np.arange(left, right, rng.uniform(35, 80)):
        rectangle(painting, x, top, x + 2, HEIGHT, _paint(rng, 20, 200))


def _shelves(painting: Canvas, rng: Generator, left: int, right: int) -> None:
    _front(painting, rng, left, right)
    pitch = int(rng.uniform(16, 44))
    for y in range(int(rng.uniform(20, 90)), HEIGHT, pitch):
        x = float(left)
        while x < right:
            wide = rng.uniform(4, 18)
            top = y + pitch * rng.uniform(0.1, 0.5)
            rectangle(
                painting, x, top, min(x + wide, right) - 1, y + pitch - 3, _paint(rng, 15, 245)
            )
            x += wide
        rectangle(painting, left, y + pitch - 3, right, y + pitch - 1, (60, 58, 56))


def _bars(painting: Canvas, rng: Generator, left: int, right: int) -> None:
    """A railing or fence in front of whatever was painted before, or a shutter."""
    colour = _paint(rng, 20, 235)
    pitch, thickness = rng.uniform(5, 22), rng.uniform(1, 4)
    top = rng.uniform(0, HEIGHT - 50)
    if rng.random() < 0.3:
        for y in np.arange(top, HEIGHT, pitch / 2):
            rectangle(painting, left, y, right, y + pitch / 4, colour * rng.uniform(0.85, 1))
        return
    for x in np.arange(left, right, pitch):
        rectangle(painting, x, top, x + thickness - 1, HEIGHT, colour)
    for y in (top, HEIGHT - 12):
        rectangle(painting, left, y, right, y + 3, colour)


def _foliage(painting: Canvas, rng: Generator, left: int, right: int) -> None:
    """Leaves with gaps, within a ragged outline."""
    left, right = max(0, left), min(WIDTH, right)
    if right <= left:
        return
    green = np.array([70, 92, 52]) * rng.uniform(0.55, 1.35) + rng.normal(0, 12, 3)
    top = max(0, int(rng.uniform(-40, HEIGHT - 90)))
    size = (HEIGHT - top, right - left)
    leaves = noise(rng, *size, octaves=int(rng.integers(2, 4)))
    outline = noise(rng, *size, octaves=6) + np.linspace(-0.6, 2.2, size[0])[:, None]
    shade = np.clip(1 + rng.uniform(0.25, 0.6) * leaves, 0.25, 2.0)[..., None]
    shown = (outline > 0) & (leaves > -rng.uniform(0.8, 2.0))
    place = painting[top:, left:right]
    place[shown] = np.clip(green * shade, 3, 250)[shown]


def _panels(painting: Canvas, rng: Generator, left: int, right: int) -> None:
    """Glass, lockers or doors: large fields with thin frames, and something behind them."""
    colour = _front(painting, rng, left, right)
    pitch = rng.uniform(24, 90)
    for x in np.arange(left, right, pitch):
        field = colour * rng.uniform(0.55, 1.35) + rng.normal(0, 8, 3)
        rectangle(painting, x + 2, rng.uniform(0, 60), min(x + pitch, right) - 2, HEIGHT - 6, field)
        if rng.random() < 0.5:
            slope = int(rng.uniform(-60, 60))
            light = tuple(float(channel) for channel in np.clip(field * 1.35 + 15, 0, 250))
            start = (int(x + pitch / 3), HEIGHT - 20)
            cv2.line(painting, start, (start[0] + slope, 40), light, int(rng.uniform(2, 9)))


def _arcade(painting: Canvas, rng: Generator, left: int, right: int) -> None:
    colour = _front(painting, rng, left, right)
    middle, half = (left + right) / 2, max(8.0, (right - left) / 2 - 10)
    top = HEIGHT - rng.uniform(100, 200)
    dark = _paint(rng, 8, 90)
    dome(painting, middle, top, half, min(half, 60), dark)
    rectangle(painting, middle - half, top, middle + half, HEIGHT, dark)
    rectangle(painting, left, top - 90, right, top - 84, colour * 0.7)


# Things in front of them, anywhere.


def _post(painting: Canvas, rng: Generator, left: int) -> None:
    rectangle(painting, left, 0, left + rng.uniform(3, 26), HEIGHT, _paint(rng, 25, 225))


def _sign(painting: Canvas, rng: Generator) -> None:
    x, y = rng.uniform(0, WIDTH), rng.uniform(10, HEIGHT - 70)
    wide, tall = rng.uniform(20, 120), rng.uniform(18, 70)
    rectangle(painting, x - 2, y - 2, x + wide + 2, y + tall + 2, _paint(rng, 10, 240))
    rectangle(painting, x, y, x + wide, y + tall, _paint(rng, 10, 250))
    lettering(painting, rng, x + 4, y + 0.7 * tall, tall * 0.5, _paint(rng, 5, 250))


def _car(painting: Canvas, rng: Generator) -> None:
    left, colour = rng.uniform(-60, WIDTH), _paint(rng, 15, 240)
    length, tall = rng.uniform(150, 210), rng.uniform(26, 38)
    floor = HEIGHT - 14
    dome(painting, left + length * 0.5, floor - tall, length * 0.34, 30, colour * 0.8)
    dome(painting, left + length * 0.5, floor - tall, length * 0.29, 24, _paint(rng, 15, 110))
    rectangle(painting, left, floor - tall, left + length, floor, colour)
    rectangle(painting, left, floor - tall * 0.55, left + length, floor - tall * 0.5, colour * 0.6)
    for end in (left, left + length - 8):
        rectangle(painting, end, floor - tall + 4, end + 8, floor - tall + 11, (225, 215, 190))
    for wheel in (left + length * 0.2, left + length * 0.8):
        disc(painting, wheel, floor, 14, (18, 18, 20))
        disc(painting, wheel, floor, 7, _paint(rng, 90, 210))


def _parked_bicycle(painting: Canvas, rng: Generator) -> None:
    x, floor = rng.uniform(0, WIDTH), HEIGHT - 4
    bicycle(painting, x, floor, 26.0, _paint(rng, 15, 220))


def bicycle(painting: Canvas, x: float, floor: float, radius: float, colour) -> None:
    """A bicycle in side view: the point where the left wheel stands, and the wheels' radius."""
    rgb = tuple(float(channel) for channel in colour)
    thick = max(1, round(radius / 12))
    dark = (24.0, 24.0, 26.0, *([rgb[3]] if len(rgb) > 3 else []))

    def at(right: float, up: float) -> tuple[int, int]:
        return int(x + right * radius), int(floor - up * radius)

    for right in (0.0, 2.9):
        cv2.circle(painting, at(right, 1), int(radius), dark, max(1, thick), cv2.LINE_AA)
    rear, front, pedals, seat, head = (0.0, 1.0), (2.9, 1.0), (1.2, 0.95), (0.95, 2.1), (2.55, 2.2)
    for a, b in (
        (rear, pedals),
        (rear, seat),
        (pedals, seat),
        (pedals, head),
        (seat, head),
        (front, head),
    ):
        cv2.line(painting, at(*a), at(*b), rgb, thick + 1, cv2.LINE_AA)
    cv2.line(painting, at(0.6, 2.3), at(1.25, 2.3), dark, thick + 2, cv2.LINE_AA)
    cv2.line(painting, at(2.3, 2.5), at(2.8, 2.4), dark, thick + 1, cv2.LINE_AA)


def _bin(painting: Canvas, rng: Generator) -> None:
    x, tall, colour = rng.uniform(0, WIDTH), rng.uniform(40, 75), _paint(rng, 25, 200)
    rectangle(painting, x, HEIGHT - tall, x + rng.uniform(22, 60), HEIGHT - 4, colour)
    rectangle(painting, x - 2, HEIGHT - tall, x + 40, HEIGHT - tall + 5, colour * 0.6)


def _figure(painting: Canvas, rng: Generator) -> None:
    """Somebody at the wall: only a few strokes, as they are small in the image."""
    x, tall = rng.uniform(0, WIDTH), rng.uniform(70, 86)
    floor = HEIGHT - 3
    head = floor - tall
    for side in (-1, 1):
        rectangle(
            painting, x + 6 * side - 4, floor - 0.48 * tall, x + 6 * side + 3, floor, _cloth(rng)
        )
    rectangle(painting, x - 11, head + 13, x + 11, floor - 0.44 * tall, _cloth(rng))
    disc(painting, x, head + 6, 6, rng.choice([(220, 180, 150), (150, 105, 80), (90, 60, 45)]))
    dome(painting, x, head + 4, 6, 6, _paint(rng, 15, 90))


def _cloth(rng: Generator) -> Floats:
    return _paint(rng, 15, 225 if rng.random() < 0.3 else 100)


# Grounds.


def _grid(painting: Canvas, rng: Generator) -> None:
    pitch_x, pitch_y = int(rng.uniform(10, 90)), int(rng.uniform(10, 90))
    rows, columns = np.mgrid[:_GROUND_SIZE, :_GROUND_SIZE]
    if rng.random() < 0.5:  # in bond
        columns = columns + (rows // pitch_y % 2) * (pitch_x // 2)
    tints = rng.uniform(0.84, 1.14, (_GROUND_SIZE // pitch_y + 1, 2 * _GROUND_SIZE // pitch_x + 2))
    painting *= tints[rows // pitch_y, columns // pitch_x][..., None].astype(np.float32)
    width = max(1, int(rng.uniform(1, 4)))
    painting[(rows % pitch_y < width) | (columns % pitch_x < width)] *= rng.choice([0.6, 0.75, 1.2])


def _stones(painting: Canvas, rng: Generator) -> None:
    chips = noise(rng, _GROUND_SIZE, _GROUND_SIZE, octaves=int(rng.integers(1, 3)))[..., None]
    painting *= 1 + np.clip(rng.uniform(0.04, 0.2) * chips, -0.35, 0.35)


def _lawn(painting: Canvas, rng: Generator) -> None:
    green = np.array([95, 108, 68]) * rng.uniform(0.75, 1.2)
    blades = noise(rng, _GROUND_SIZE, _GROUND_SIZE, octaves=3)[..., None]
    edge = int(rng.uniform(200, 900))
    painting[:, :edge] = (green * (1 + 0.16 * blades[:, :edge])).astype(np.float32)
    rectangle(painting, edge, 0, edge + rng.uniform(4, 14), _GROUND_SIZE, _paint(rng, 90, 200))


def _boards(painting: Canvas, rng: Generator) -> None:
    wide = int(rng.uniform(8, 26))
    columns = np.arange(_GROUND_SIZE)
    tints = rng.uniform(0.75, 1.15, _GROUND_SIZE // wide + 1).astype(np.float32)
    painting *= tints[columns // wide][None, :, None]
    painting[:, columns % wide < 2] *= 0.5


def _plain(painting: Canvas, rng: Generator) -> None:
    rows = np.arange(_GROUND_SIZE)
    painting[rows % int(rng.uniform(150, 600)) < 3] *= rng.uniform(0.6, 0.85)


def _edges(painting: Canvas, rng: Generator) -> None:
    """Kerbs, gutters, mats, and stretches of another ground."""
    for _ in range(int(rng.integers(0, 4))):
        start, wide = int(rng.uniform(0, _GROUND_SIZE)), int(rng.uniform(20, 260))
        colour, kerb = _paint(rng, 40, 200), _paint(rng, 40, 220)
        across = rng.random() < 0.5
        for low, high, paint in (
            (start, start + wide, colour),
            (max(0, start - int(rng.uniform(3, 10))), start + 1, kerb),
        ):
            stretch = painting[low:high] if across else painting[:, low:high]
            stretch += paint.astype(np.float32) - stretch.mean(axis=(0, 1))


def _shade(painting: Canvas, rng: Generator) -> None:
    """Shadows of trees or buildings, or the pools of light of lamps."""
    octaves = int(rng.integers(5, 9))
    shape = noise(rng, _GROUND_SIZE, _GROUND_SIZE, octaves=octaves)
    soft = 1 / (1 + np.exp(-rng.uniform(2, 12) * (shape + rng.uniform(-0.6, 0.6))))
    painting *= (1 - rng.uniform(0.3, 0.65) * soft)[..., None].astype(np.float32)


def _markings(painting: Canvas, rng: Generator) -> None:
    """Lines, crossings, tactile paving, kerbs."""
    paint = np.array([215, 212, 205]) if rng.random() < 0.6 else _paint(rng, 60, 230)
    pitch, wide = int(rng.uniform(40, 500)), int(rng.uniform(5, 60))
    along = rng.random() < 0.5
    dash = int(rng.uniform(60, 1500))
    rows, columns = np.mgrid[:_GROUND_SIZE, :_GROUND_SIZE]
    if along:
        rows, columns = columns, rows
    painting[(columns % pitch < wide) & (rows % dash < 0.6 * dash)] = paint * rng.uniform(0.7, 1)


_Element = Callable[[Canvas, Generator, int, int], None]
_OUTDOORS: tuple[_Element, ...] = (
    *(_courses, _windows, _shop, _bars, _foliage, _foliage, _panels, _arcade),
)
_INDOORS: tuple[_Element, ...] = (_courses, _shop, _shop, _shelves, _shelves, _panels, _bars)
_THINGS: tuple[Callable[[Canvas, Generator], None], ...] = (
    *(_sign, _sign, _car, _parked_bicycle, _bin, _figure, _figure, _figure),
)
_FLOORS: tuple[Callable[[Canvas, Generator], None], ...] = (
    *(_grid, _grid, _grid, _stones, _boards, _plain),
)
_PAVINGS: tuple[Callable[[Canvas, Generator], None], ...] = (
    *(_grid, _grid, _grid, _stones, _lawn, _boards, _plain),
)
