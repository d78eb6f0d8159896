"""The open world: an endless series of camera networks, each a function of its number.

A network has clothes of one season and one region, light of one place and time of day, places of
its own behind each camera, and cameras of any make. Nothing is shared between networks but the
bodies, so that a model cannot learn any of them by heart.
"""

from __future__ import annotations

import re
from functools import lru_cache

from numpy.random import Generator

from muva.synthetic.clothes import BOTTOM_EASE_M, TOPS
from muva.synthetic.domain import ANY_SENSOR, Domain, Lighting, Scene, View, Wardrobe
from muva.synthetic.palette import CLOTH
from muva.synthetic.seeds import generator

WORLD = "syn-world"
"""The name of the open world; network 7 is `syn-world-0007`."""
_NAME = re.compile(rf"{WORLD}-([0-9]{{4,}})")
_RANGE = re.compile(rf"{WORLD}-([0-9]+)-([0-9]+)")

_NEUTRAL = ("black", "black", "black", "dark grey", "grey", "navy", "white", "beige", "brown")
_WARM_TOPS = ("t-shirt", "t-shirt", "tank top", "shirt", "t-shirt", "blazer")
_MILD_TOPS = ("t-shirt", "shirt", "hoodie", "sweater", "jacket", "blazer")
_COLD_TOPS = ("coat", "puffer jacket", "jacket", "hoodie", "sweater", "jacket")
WORLD_VERSION = 1
"""Incremented whenever an image of the open world changes."""


def is_world(name: str) -> bool:
    """Whether this is the name of a network of the open world."""
    return _NAME.fullmatch(name) is not None


def networks_of(name: str) -> tuple[str, ...]:
    """The networks of a data set: `syn-world-0-19` has the first twenty.

    Empty if the name is not that of a data set of the open world.
    """
    found = _RANGE.fullmatch(name)
    if found is None:
        return ()
    return tuple(network_name(n) for n in range(int(found[1]), int(found[2]) + 1))


def network_name(number: int) -> str:
    """The name of a network, from 0."""
    return f"{WORLD}-{number:04d}"


@lru_cache(maxsize=64)
def network(name: str) -> Domain:
    """The camera network of this name, for which `is_world` holds."""
    found = _NAME.fullmatch(name)
    assert found is not None, name
    rng = generator("network", WORLD, int(found[1]))
    indoors = bool(rng.random() < 0.35)
    night = bool(rng.random() < 0.15)
    return Domain(
        name=name,
        summary=f"network {int(found[1])} of the open world",
        wardrobe=_wardrobe(rng),
        light=_light(rng, indoors=indoors, night=night),
        view=_view(rng),
        scene=Scene(
            ground="", backdrop="indoors" if indoors else "outdoors", backdrop_distance_m=(4, 26)
        ),
        sensor=ANY_SENSOR,
        occluded=rng.uniform(0.1, 0.4),
        cameras=int(rng.integers(4, 9)),
        open_world=True,
    )


def _wardrobe(rng: Generator) -> Wardrobe:
    season = rng.random()
    tops = _WARM_TOPS if season < 0.35 else _MILD_TOPS if season < 0.7 else _COLD_TOPS
    bottoms = ["jeans", "jeans", "trousers", "trousers", "leggings", "skirt", "dress"]
    if season < 0.45:
        bottoms += ["shorts", "shorts"]
    bright = rng.choice(list(CLOTH), 7, replace=False)
    return Wardrobe(
        tops=(*map(str, rng.choice(tops, 5)), str(rng.choice(list(TOPS)))),
        bottoms=tuple(b for b in bottoms if b in BOTTOM_EASE_M),
        top_colours=tuple(map(str, (*rng.choice(_NEUTRAL, 8), *bright))),
        bottom_colours=tuple(
            map(str, (*rng.choice(_NEUTRAL[:-3], 5), "denim", "denim", *bright[:2]))
        ),
        bags={
            "backpack": rng.uniform(0.1, 0.4),
            "handbag": rng.uniform(0.05, 0.25),
            "shoulder bag": rng.uniform(0.05, 0.2),
            "suitcase": rng.uniform(0, 0.08),
        },
        caps=rng.uniform(0.05, 0.4),
    )


def _light(rng: Generator, *, indoors: bool, night: bool) -> Lighting:
    warmth = rng.normal(0, 0.05)
    ambient = rng.uniform(0.5, 0.95) * (0.7 if night else 1)
    sun = rng.uniform(0.1, 0.5) if indoors else rng.uniform(0.05, 1.1)
    return Lighting(
        ambient=(ambient * (1 + warmth), ambient, ambient * (1 - warmth)),
        sun=(sun * (1 + 0.6 * warmth + 0.04), sun, sun * (1 - 0.6 * warmth - 0.04)),
        sun_elevation_deg=(50, 88) if indoors else (15, 80),
    )


def _view(rng: Generator) -> View:
    low = rng.uniform(1.4, 4.5)
    near = rng.uniform(3, 8)
    return View(height_m=(low, low + rng.uniform(0.3, 2.0)), distance_m=(near, near * 2))
