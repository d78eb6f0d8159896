"""Fabrics of the open world: prints, lettering, stripes and panels with crisp edges.

A fabric is painted once per person, as pictures of the trunk's front and back and of the sleeves,
and looked up at the position of each point on the template. Looking up does not interpolate, so
that prints stay as crisp as the image allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats
from muva.synthetic.texture import disc, noise, rectangle

Picture = Floats
"""(ROWS, COLUMNS, 3) RGB albedo; row 0 is at the neck."""

ROWS, COLUMNS = 132, 88
PX_PER_M = 200
_LETTERS = "ABCDEFGHIKLMNOPRSTUVXYZ0123456789"


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """What a garment of the upper body, or a dress, looks like."""

    front: Picture
    back: Picture
    sleeves: Picture
    """Rows run from the shoulder to the wrist, columns around the arm."""
    inner: Picture
    """The front of what an open jacket shows."""
    opening_m: float
    """Half the width of that opening at the hem; 0 if the jacket is closed."""
    lower: Picture
    """Trousers or a skirt: row 0 is at the waist."""
    words: str
    """For captions: what is on the upper garment, such as `white stripes and a red print`."""


def draw_fabric(
    base: Floats, accents: Sequence[tuple[str, Floats]], lower: Floats, rng: Generator
) -> Fabric:
    """The fabric of a person with these colours (RGB, 0 to 255); accents have names too."""
    names = [name for name, _ in accents]
    accents_of = [np.asarray(shade, np.float32) for _, shade in accents]
    return _draw(base, names, accents_of, lower, rng)


def _draw(
    base: Floats, names: list[str], accents: list[Floats], lower: Floats, rng: Generator
) -> Fabric:
    weave = _WEAVES[int(rng.choice(len(_WEAVES), p=_WEAVE_SHARES))]
    words = [f"{names[0]} {_WORDS[weave]}"] if weave in _WORDS else []
    front = _cloth(base)
    weave(front, accents, rng)
    back = front.copy()
    if rng.random() < 0.42:
        _graphic(front, accents, rng, size=rng.uniform(0.25, 1.0))
        words.append("a print")
    if rng.random() < 0.25:
        _graphic(back, accents, rng, size=rng.uniform(0.4, 1.0))
    if rng.random() < 0.25:
        _closure(front, accents, rng)
    sleeves = front.copy() if weave is not _nothing else _cloth(base)
    if rng.random() < 0.3:
        sleeves[:] = accents[0]
        words.append(f"{names[0]} sleeves")
    if rng.random() < 0.3:
        _bands(sleeves, accents, rng)
    inner = _cloth(accents[-1])
    if rng.random() < 0.5:
        _WEAVES[int(rng.integers(len(_WEAVES)))](
            inner, [*accents[:-1], np.asarray(base, np.float32)], rng
        )
    if rng.random() < 0.4:
        _graphic(inner, accents, rng, size=rng.uniform(0.3, 0.9))
    legs = _cloth(lower)
    if rng.random() < 0.12:
        _WEAVES[int(rng.integers(1, len(_WEAVES)))](
            legs, [0.75 * np.asarray(lower, np.float32), *accents], rng
        )
    return Fabric(
        front=front,
        back=back,
        sleeves=sleeves,
        inner=inner,
        opening_m=rng.uniform(0.02, 0.13) if rng.random() < 0.6 else 0.0,
        lower=legs,
        words=" and ".join(words),
    )


def look_up(picture: Picture, across_m: Floats, down_m: Floats) -> Floats:
    """(P, 3) colours at positions in metres: across from the middle, and down from row 0."""
    columns = np.clip(across_m * PX_PER_M + COLUMNS / 2, 0, COLUMNS - 1).astype(np.int32)
    rows = np.clip(down_m * PX_PER_M, 0, ROWS - 1).astype(np.int32)
    return picture[rows, columns]


def _cloth(colour: Floats) -> Picture:
    return np.tile(np.asarray(colour, np.float32), (ROWS, COLUMNS, 1))


def _nothing(cloth: Picture, accents: list[Floats], rng: Generator) -> None:
    """One colour."""


def _bands(cloth: Picture, accents: list[Floats], rng: Generator) -> None:
    """A few horizontal bands of different widths, as on sports shirts."""
    for _ in range(int(rng.integers(1, 4))):
        row, tall = rng.uniform(0, ROWS), rng.uniform(3, 26)
        rectangle(cloth, 0, row, COLUMNS, row + tall, accents[int(rng.integers(len(accents)))])


def _stripes(cloth: Picture, accents: list[Floats], rng: Generator) -> None:
    """Regular stripes of one or more colours, from a centimetre to a hand."""
    widths = rng.uniform(2, rng.choice([5, 10, 20]), len(accents) + 1)
    ends = np.cumsum(widths)
    lengthwise = rng.random() < 0.3
    along = np.arange(COLUMNS if lengthwise else ROWS)
    which = np.searchsorted(ends, along % ends[-1], side="right")
    for number, accent in enumerate(accents, start=1):
        chosen = which == number
        cloth[(slice(None), chosen) if lengthwise else chosen] = accent


def _checks(cloth: Picture, accents: list[Floats], rng: Generator) -> None:
    pitch, wide = rng.uniform(7, 26), rng.uniform(0.2, 0.6)
    down, across = np.arange(ROWS) % pitch < wide * pitch, np.arange(COLUMNS) % pitch < wide * pitch
    share = 0.5 * (down[:, None, None].astype(np.float32) + across[None, :, None])
    cloth += (accents[0] - cloth) * share
    if len(accents) > 1:
        fine = (np.arange(ROWS) % pitch < 1.5)[:, None] | (np.arange(COLUMNS) % pitch < 1.5)
        cloth[fine] = accents[1]


def _dots(cloth: Picture, accents: list[Floats], rng: Generator) -> None:
    pitch = rng.uniform(7, 18)
    radius = pitch * rng.uniform(0.15, 0.35)
    for row, y in enumerate(np.arange(0, ROWS, pitch)):
        for x in np.arange((row % 2) * pitch / 2, COLUMNS, pitch):
            disc(cloth, x, y, radius, accents[0])


def _patches(cloth: Picture, accents: list[Floats], rng: Generator) -> None:
    """Camouflage, flowers, batik: irregular patches of all colours."""
    octaves = int(rng.integers(2, 5))
    for accent in accents:
        field = noise(rng, ROWS, COLUMNS, octaves=octaves)
        cloth[field > rng.uniform(0.3, 1.2)] = accent


def _panels(cloth: Picture, accents: list[Floats], rng: Generator) -> None:
    """Two or three large fields: yoke, sides, halves, a sash."""
    kind = int(rng.integers(4))
    if kind == 0:
        cloth[: int(rng.uniform(25, 75))] = accents[0]
    elif kind == 1:
        side = int(rng.uniform(6, 24))
        cloth[:, :side] = cloth[:, -side:] = accents[0]
    elif kind == 2:
        cloth[:, : COLUMNS // 2] = accents[0]
    else:
        rows, columns = np.mgrid[:ROWS, :COLUMNS]
        slope, wide = rng.uniform(-1.2, 1.2), rng.uniform(8, 34)
        cloth[np.abs(rows - 60 - slope * (columns - 44)) < wide] = accents[0]


def _graphic(cloth: Picture, accents: list[Floats], rng: Generator, *, size: float) -> None:
    """A print on the chest: letters, discs, polygons, or a picture of random patches."""
    half = 30 * size
    x, y = COLUMNS / 2 + rng.uniform(-6, 6) + rng.choice([0, 0, -14, 14]), rng.uniform(28, 52)
    for _ in range(int(rng.integers(1, 4))):
        colour = accents[int(rng.integers(len(accents)))]
        kind = int(rng.integers(4))
        if kind == 0:
            _letters(cloth, rng, x, y, half, colour)
        elif kind == 1:
            disc(cloth, x + rng.uniform(-4, 4), y, half * rng.uniform(0.4, 0.9), colour)
        elif kind == 2:
            corners = int(rng.integers(3, 7))
            angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
            reach = half * rng.uniform(0.4, 1.1, corners)
            points = np.column_stack([x + reach * np.cos(angles), y + reach * np.sin(angles)])
            cv2.fillPoly(cloth, [points.astype(np.int32)], tuple(map(float, colour)))
        else:
            tall = half * rng.uniform(0.1, 0.8)
            rectangle(cloth, x - half, y - tall / 2, x + half, y + tall / 2, colour)


def _letters(cloth: Picture, rng: Generator, x: float, y: float, half: float, colour) -> None:
    word = "".join(rng.choice(list(_LETTERS), int(rng.integers(2, 7))))
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    size = max(0.35, 2 * half / (20 * len(word)))
    (wide, tall), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, size, 2)
    start = (int(x - wide / 2), int(y + tall / 2))
    cv2.putText(mask, word, start, cv2.FONT_HERSHEY_SIMPLEX, size, 255, int(rng.integers(2, 5)))
    cloth[mask > 127] = colour


def _closure(cloth: Picture, accents: list[Floats], rng: Generator) -> None:
    """A zip or buttons, and pockets."""
    middle = COLUMNS // 2
    if rng.random() < 0.5:
        cloth[:, middle - 1 : middle + 1] = accents[0]
    else:
        for row in range(8, ROWS, int(rng.integers(9, 18))):
            disc(cloth, middle, row, 1.5, accents[0])
    if rng.random() < 0.5:
        top = int(rng.uniform(24, 80))
        for left in (middle - 30, middle + 12):
            rectangle(cloth, left, top, left + 18, top + 2, 0.6 * accents[0])


_Weave = Callable[[Picture, list[Floats], Generator], None]
_WEAVES: tuple[_Weave, ...] = (_nothing, _stripes, _bands, _checks, _dots, _patches, _panels)
_WEAVE_SHARES = (0.56, 0.12, 0.07, 0.08, 0.03, 0.06, 0.08)
_WORDS: Mapping[_Weave, str] = {
    _stripes: "stripes",
    _bands: "bands",
    _checks: "checks",
    _dots: "dots",
    _patches: "patches",
    _panels: "panels",
}
