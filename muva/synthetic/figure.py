"""Figures: a dressed person at one moment, as one mesh that stands on the ground."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from muva.synthetic.bags import bag_layers, umbrella_layer
from muva.synthetic.body import pose, shipped_bodies
from muva.synthetic.clothes import arm_spread_deg, garment_layers, is_loose, skin_layer
from muva.synthetic.gait import Posture, joint_rotations
from muva.synthetic.hair import hair_layers
from muva.synthetic.identity import Identity
from muva.synthetic.mesh import Mesh, join
from muva.synthetic.vehicle import PEDAL_HEIGHT_M

_STANDING = 0.15
"""Share of walks in which the person stands nearly still."""
_ON_THE_PHONE = 0.07
_PUSHING, _RIDING, _UMBRELLA = 0.05, 0.07, 0.03
"""Shares of walks in the open world."""
_OTHER_WAY = 0.35
"""Share of walks in the open world that go the other way."""
_LOOKING_AT_PHONE_DEG = 14.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """How a person passes a camera once; identical for all images of a track."""

    amplitude: float
    """0 standing, 1 walking."""
    arm_spread_deg: float
    phone_side: int
    """1 left, -1 right, 0 for none."""
    pushes: bool = False
    """Whether the person pushes a bicycle, a pram or a trolley; only in the open world, like the
    following."""
    rides: bool = False
    """Whether the person rides a bicycle."""
    umbrella_side: int = 0
    """The hand that holds an umbrella, 0 for none."""
    heading_deg: float
    """Deviation from the direction in which people pass this camera."""


def draw_walk(person: Identity, rng: Generator) -> Walk:
    """A random walk that suits the person's clothes."""
    walks = rng.random() >= _STANDING
    walk = Walk(
        amplitude=rng.uniform(0.7, 1.12) if walks else rng.uniform(0, 0.15),
        arm_spread_deg=rng.uniform(6, 11) + arm_spread_deg(person),
        phone_side=int(rng.choice([-1, 1])) if rng.random() < _ON_THE_PHONE else 0,
        heading_deg=rng.normal(0, 22),
    )
    return walk if person.fabric is None else _other_walk(walk, rng)


def _other_walk(walk: Walk, rng: Generator) -> Walk:
    """What else people do in the open world than walk and stand; they come and go."""
    if rng.random() < _OTHER_WAY:
        walk = replace(walk, heading_deg=walk.heading_deg + 180)
    draw = rng.random()
    if draw < _PUSHING:
        return replace(walk, pushes=True)
    if draw < _PUSHING + _RIDING:
        return replace(walk, rides=True, phone_side=0)
    if draw < _PUSHING + _RIDING + _UMBRELLA:
        return replace(walk, umbrella_side=int(rng.choice([-1, 1])), phone_side=0)
    return walk


def draw_figure(person: Identity, walk: Walk, rng: Generator) -> Mesh:
    """The person at one moment of a walk, facing -y, with the soles at z = 0."""
    on_phone = walk.phone_side != 0
    posture = Posture(
        phase=rng.uniform(),
        amplitude=walk.amplitude,
        arm_spread_deg=walk.arm_spread_deg,
        loose_clothes=is_loose(person),
        phone_side=walk.phone_side,
        carrying_side=person.carrying_side,
        head_tilt_deg=(
            rng.normal(0, 4) + (_LOOKING_AT_PHONE_DEG if on_phone else 1),
            rng.normal(0, 2),
            rng.normal(0, 6 if on_phone else 14),
        ),
        reaching=walk.pushes or walk.rides,
        riding=walk.rides,
        raised_side=walk.umbrella_side,
    )
    bodies = shipped_bodies()
    body = pose(bodies, person.body, joint_rotations(bodies, person.body, posture))
    figure = join(
        [
            skin_layer(body),
            *garment_layers(body, person),
            *hair_layers(body, person),
            *bag_layers(body, person),
            *([umbrella_layer(body, walk.umbrella_side)] if walk.umbrella_side else []),
        ]
    )
    if walk.rides:
        raised = figure.vertices + np.array([0, 0, PEDAL_HEIGHT_M], np.float32)
        return replace(figure, vertices=raised)
    return figure
