"""Things in front of or beside people of the open world: bicycles, prams, cars, railings, desks.

They are drawn flat, in the image, because they only have to hide what such things hide.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats
from muva.synthetic.light import Light
from muva.synthetic.places import bicycle


def thing_in_front(light: Light, rng: Generator, *, height: int, width: int) -> Floats:
    """(H, W, 4) premultiplied layer of a random thing, as `crowd.occluder` returns."""
    return _drawn(_THINGS[int(rng.integers(len(_THINGS)))], light, rng, height=height, width=width)


def pushed(light: Light, rng: Generator, *, height: int, width: int) -> Floats:
    """(H, W, 4) layer of what the person pushes: a bicycle, a pram, a trolley."""
    kind = (_bicycle, _bicycle, _pram, _trolley)[int(rng.integers(4))]
    return _drawn(kind, light, rng, height=height, width=width)


def _drawn(
    draw: Callable[[Floats, Generator], None],
    light: Light,
    rng: Generator,
    *,
    height: int,
    width: int,
) -> Floats:
    """A drawing of 256 x 128 pixels at any size; its fourth channel is the coverage."""
    drawing = np.zeros((256, 128, 4), np.float32)
    draw(drawing, rng)
    if rng.random() < 0.5:
        drawing = np.ascontiguousarray(drawing[:, ::-1])
    drawing[..., 3] = np.clip(drawing[..., 3], 0, 1)
    drawing[..., :3] *= drawing[..., 3:] * (light.ambient + light.sun * 0.5)
    return cv2.resize(drawing, (width, height), interpolation=cv2.INTER_AREA)


def _rgba(rng: Generator, low: float = 15, high: float = 225) -> tuple[float, float, float, float]:
    level = rng.uniform(low, high)
    shift = rng.normal(0, 35 if rng.random() < 0.25 else 6, 3)
    red, green, blue = np.clip(level + shift, 5, 245)
    return float(red), float(green), float(blue), 1.0


def _bicycle(drawing: Floats, rng: Generator) -> None:
    radius = rng.uniform(28, 40)
    bicycle(drawing, rng.uniform(-60, 20), rng.uniform(236, 262), radius, _rgba(rng))


def _pram(drawing: Floats, rng: Generator) -> None:
    x, floor, colour = rng.uniform(10, 90), rng.uniform(235, 260), _rgba(rng, 15, 140)
    cv2.ellipse(drawing, (int(x), int(floor - 62)), (34, 30), 0, 150, 360, colour, -1, cv2.LINE_AA)
    cv2.rectangle(
        drawing, (int(x - 30), int(floor - 62)), (int(x + 32), int(floor - 34)), colour, -1
    )
    for wheel in (-24, 24):
        cv2.circle(drawing, (int(x + wheel), int(floor - 12)), 12, (20, 20, 22, 1), 3, cv2.LINE_AA)
    cv2.line(
        drawing, (int(x + 30), int(floor - 60)), (int(x + 58), int(floor - 100)), (40, 40, 42, 1), 3
    )


def _trolley(drawing: Floats, rng: Generator) -> None:
    x, floor, colour = rng.uniform(0, 80), rng.uniform(236, 258), _rgba(rng, 90, 200)
    for row in range(0, 60, 9):
        cv2.line(
            drawing,
            (int(x), int(floor - 90 + row)),
            (int(x + 62), int(floor - 86 + row)),
            colour,
            1,
        )
    for column in range(0, 66, 8):
        cv2.line(
            drawing,
            (int(x + column), int(floor - 90)),
            (int(x + column), int(floor - 30)),
            colour,
            1,
        )
    for wheel in (6, 56):
        cv2.circle(drawing, (int(x + wheel), int(floor - 8)), 7, (25, 25, 25, 1), -1)


def _car(drawing: Floats, rng: Generator) -> None:
    """The roof and bonnet of a parked car, which hides the legs."""
    top, colour = int(rng.uniform(150, 215)), _rgba(rng)
    points = np.array(
        [[-10, 256], [-10, top + 24], [rng.uniform(5, 40), top], [138, top + 6], [138, 256]]
    )
    cv2.fillPoly(drawing, [points.astype(np.int32)], colour)
    glass = tuple(0.3 * channel for channel in colour[:3])
    cv2.rectangle(drawing, (44, top + 6), (126, top + 24), (*glass, 1.0), -1)
    cv2.line(drawing, (-10, top + 34), (138, top + 34), (*(0.7 * c for c in colour[:3]), 1.0), 2)


def _railing(drawing: Floats, rng: Generator) -> None:
    top, colour, pitch = int(rng.uniform(120, 200)), _rgba(rng), int(rng.uniform(10, 26))
    for x in range(int(rng.integers(pitch)), 128, pitch):
        cv2.rectangle(drawing, (x, top), (x + int(rng.integers(1, 4)), 256), colour, -1)
    cv2.rectangle(drawing, (0, top), (128, top + int(rng.integers(3, 8))), colour, -1)


def _desk(drawing: Floats, rng: Generator) -> None:
    """A counter, wall, hedge or planter across a part of the lower image."""
    top, left = int(rng.uniform(140, 225)), int(rng.uniform(-60, 60))
    right = left + int(rng.uniform(60, 190))
    colour = _rgba(rng)
    cv2.rectangle(drawing, (left, top), (right, 256), colour, -1)
    if rng.random() < 0.4:
        for _ in range(160):
            shade = rng.uniform(0.4, 1.5)
            leaf = (*(min(245.0, shade * c) for c in (70.0, 95.0, 55.0)), 1.0)
            place = (int(rng.uniform(left, right)), int(rng.uniform(top - 6, 256)))
            cv2.circle(drawing, place, int(rng.integers(2, 8)), leaf, -1)
    else:
        cv2.rectangle(
            drawing, (left, top), (right, top + 5), (*(1.25 * c for c in colour[:3]), 1.0), -1
        )


def _post(drawing: Floats, rng: Generator) -> None:
    x, wide = int(rng.uniform(-5, 118)), int(rng.uniform(5, 26))
    cv2.rectangle(drawing, (x, 0), (x + wide, 256), _rgba(rng), -1)
    if rng.random() < 0.3:
        y = int(rng.uniform(10, 120))
        cv2.rectangle(drawing, (x - 18, y), (x + wide + 18, y + 34), _rgba(rng), -1)


def _bag_of_others(drawing: Floats, rng: Generator) -> None:
    """The shoulder, arm or bag of somebody who is close to the camera."""
    x = rng.choice([rng.uniform(-25, 10), rng.uniform(118, 150)])
    axes = (int(rng.uniform(18, 42)), int(rng.uniform(50, 130)))
    cv2.ellipse(
        drawing, (int(x), int(rng.uniform(120, 250))), axes, 0, 0, 360, _rgba(rng), -1, cv2.LINE_AA
    )


_THINGS: tuple[Callable[[Floats, Generator], None], ...] = (
    *(_bicycle, _pram, _trolley, _car, _railing, _desk, _desk, _post, _post, _bag_of_others),
)
