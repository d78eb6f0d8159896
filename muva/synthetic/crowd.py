"""The crowd: people who pass behind or in front of the person, and objects in front.

Passers-by are strangers, a fixed set per camera. Their cut-outs depend only on (domain, camid,
number) and are cached, which saves time and never changes an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats
from muva.synthetic.camera import Window
from muva.synthetic.cutout import cut_out
from muva.synthetic.domain import find_domain
from muva.synthetic.figure import draw_walk
from muva.synthetic.identity import stranger
from muva.synthetic.light import Light
from muva.synthetic.props import thing_in_front
from muva.synthetic.seeds import generator
from muva.synthetic.site import site

STRANGERS, STRANGERS_IN_OPEN_WORLD = 10, 6
"""Number of different passers-by per camera."""

_COUNTS_BEHIND, _COUNT_SHARES = (0, 1, 2, 3, 5), (0.35, 0.3, 0.2, 0.1, 0.05)
"""How many people are in the background in the open world."""
_FEET = 0.95
"""Where the feet are in a stranger's cut-out, as a share of its height."""
_BEHIND_SHARE = 0.35
"""Share of images with a passer-by in the background."""
_BEHIND_SCALE, _IN_FRONT_SCALE = (0.5, 0.85), (0.95, 1.2)
"""Their size relative to the person."""
_OFFSET = (0.38, 0.62)
"""Their horizontal distance from the person, in image widths."""
_PASSER_BY_SHARE = 0.5
"""Share of occluders that are passers-by; the others are objects."""


def passer_by_behind(
    domain: str, camid: int, rng: Generator, *, height: int, width: int
) -> Floats | None:
    """(H, W, 4) layer of a passer-by in the background, or None."""
    if rng.random() >= _BEHIND_SHARE:
        return None
    down = 0.1
    return _passer_by(domain, camid, rng, _BEHIND_SCALE, down, height=height, width=width)


def people_behind(
    domain: str, camid: int, window: Window, rng: Generator, *, height: int, width: int
) -> Iterator[Floats]:
    """(H, W, 4) layers of people of the open world in the background, the farthest first.

    They stand on the same ground as the person, at any distance up to five times as far.
    """
    count = int(rng.choice(_COUNTS_BEHIND, p=_COUNT_SHARES))
    horizon = window.horizon(site(domain, camid).camera)
    for scale in np.sort(np.exp(rng.uniform(np.log(0.2), np.log(0.9), count))):
        number = int(rng.integers(STRANGERS_IN_OPEN_WORLD))
        layer = _stranger(domain, camid, number, height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        layer = cv2.resize(layer, size, interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            layer = layer[:, ::-1]
        feet = horizon + scale * (_FEET * height - horizon)
        across = rng.uniform(-0.1, 1.1) * width - size[0] / 2
        moved = np.array([[1, 0, across], [0, 1, feet - _FEET * size[1]]])
        yield cv2.warpAffine(layer, moved, (width, height), flags=cv2.INTER_LINEAR)


def occluder(domain: str, camid: int, rng: Generator, *, height: int, width: int) -> Floats:
    """(H, W, 4) layer of whatever occludes the person."""
    if rng.random() < _PASSER_BY_SHARE:
        down = rng.uniform(0, 0.12)
        return _passer_by(domain, camid, rng, _IN_FRONT_SCALE, down, height=height, width=width)
    light = site(domain, camid).light
    if find_domain(domain).open_world:
        return thing_in_front(light, rng, height=height, width=width)
    thing = _box if rng.random() < 0.5 else _pole
    return thing(light, rng, height=height, width=width)


def _passer_by(
    domain: str,
    camid: int,
    rng: Generator,
    scales: tuple[float, float],
    down: float,
    *,
    height: int,
    width: int,
) -> Floats:
    """The cut-out of a stranger, scaled, perhaps mirrored, shifted sideways and down."""
    known = STRANGERS_IN_OPEN_WORLD if find_domain(domain).open_world else STRANGERS
    layer = _stranger(domain, camid, int(rng.integers(known)), height, width)
    scale, mirrored = rng.uniform(*scales), rng.random() < 0.5
    offset = rng.choice([-1, 1]) * rng.uniform(*_OFFSET)
    # Scale about the image's middle, then shift; mirrored by a negative scale in x.
    x_scale = -scale if mirrored else scale
    moved = np.array(
        [
            [x_scale, 0, width * (0.5 + offset) - x_scale * width / 2],
            [0, scale, height * (0.5 + down) - scale * height / 2],
        ]
    )
    return cv2.warpAffine(layer, moved, (width, height), flags=cv2.INTER_LINEAR)


@lru_cache(maxsize=64)
def _stranger(domain: str, camid: int, number: int, height: int, width: int) -> Floats:
    person = stranger(domain, camid, number)
    rng = generator("stranger's walk", domain, camid, number)
    walk = draw_walk(person, rng)
    return cut_out(person, walk, site(domain, camid), rng, height=height, width=width).layer


def _box(light: Light, rng: Generator, *, height: int, width: int) -> Floats:
    """A bench, bin or planter that hides the lower part, with a brighter upper edge."""
    top, left = int(height * rng.uniform(0.6, 0.85)), int(width * rng.uniform(-0.3, 0.6))
    right = left + int(width * rng.uniform(0.4, 0.9))
    columns = np.arange(width)
    shade = 1 + 0.06 * np.sin(columns / width * 26)
    layer = np.zeros((height, width, 4), np.float32)
    inside = slice(max(0, left), max(0, right))
    layer[top:, inside, :3] = (shade[:, None] * _paint(light, rng))[inside]
    layer[top : top + max(1, height // 64), inside, :3] *= 1.35
    layer[top:, inside, 3] = 1
    return layer


def _pole(light: Light, rng: Generator, *, height: int, width: int) -> Floats:
    """A round lamp post or column from top to bottom."""
    left = width * rng.uniform(0, 0.85)
    thickness = max(2.0, width * rng.uniform(0.08, 0.2))
    across = (np.arange(width) + 0.5 - left) / thickness
    inside = (across >= 0) & (across < 1)
    roundness = 0.65 + 0.35 * np.sin(np.pi * np.clip(across * 0.8 + 0.25, 0, 1))
    layer = np.zeros((height, width, 4), np.float32)
    layer[:, inside, :3] = (roundness[:, None] * _paint(light, rng))[inside]
    layer[:, inside, 3] = 1
    return layer


def _paint(light: Light, rng: Generator) -> Floats:
    """The muted colour of street furniture under this light."""
    colour = rng.uniform(40, 170) + rng.normal(0, 18, 3)
    return np.clip(colour, 15, 220) * (light.ambient + light.sun * 0.5)
