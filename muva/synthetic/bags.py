"""Bags: backpacks on the back, handbags in the hand, suitcases pulled behind."""

from __future__ import annotations

import numpy as np

from muva.synthetic.arrays import Floats
from muva.synthetic.body import PosedBody
from muva.synthetic.clothes import TOPS
from muva.synthetic.identity import Identity
from muva.synthetic.mesh import Layer, Material, solid, superellipsoid

Triple = tuple[float, float, float]

_BOX = 0.4
_AVERAGE_STATURE_M = 1.72


def bag_layers(body: PosedBody, person: Identity) -> list[Layer]:
    """What the person carries; bags do not belong to any body part."""
    match person.bag:
        case "backpack":
            return [_backpack(body, person)]
        case "handbag":
            return [_handbag(body, person)]
        case "suitcase":
            return _suitcase(body, person)
        case "shoulder bag":
            return [_shoulder_bag(body, person)]
        case _:
            return []


def _backpack(body: PosedBody, person: Identity) -> Layer:
    """Fits the back of this body; its size scales with the stature."""
    rest, joint = body.bodies.rest[body.row], body.joint("spine01")
    scale = person.phenotype.stature_m / _AVERAGE_STATURE_M
    between_shoulders = (
        body.bodies.torso
        & (np.abs(rest[:, 0]) < 0.1)
        & (np.abs(rest[:, 2] - joint[2] + 0.04) < 0.15)
    )
    back = float(rest[between_shoulders, 1].max())
    behind = back - joint[1] + TOPS[person.top].ease_m + 0.072 * scale
    shape, faces = superellipsoid(_BOX)
    half_size = scale * np.array([0.14, 0.085, 0.205])
    points = shape * half_size + joint + np.array([0, behind, -0.04 * scale])
    moved = body.carried_by("spine01", points.astype(np.float32))
    return solid(Material.BAG, moved, faces, canonical=shape)


def _handbag(body: PosedBody, person: Identity) -> Layer:
    hand = _hand(body, person.bag_side)
    place = hand + np.array([0.01 * person.bag_side, 0, -0.13], np.float32)
    return _box(place, (0.055, 0.15, 0.12))


def _shoulder_bag(body: PosedBody, person: Identity) -> Layer:
    """At the hip, on a strap across the trunk, which is painted on the clothes."""
    shape, faces = superellipsoid(_BOX)
    hip = body.joint(f"upperleg01.{'L' if person.bag_side > 0 else 'R'}")
    place = hip + np.array([0.13 * person.bag_side, 0, 0.03], np.float32)
    points = shape * np.array((0.05, 0.14, 0.11), np.float32) + place
    return solid(Material.BAG, points, faces, canonical=shape)


def umbrella_layer(body: PosedBody, side: int) -> Layer:
    """An open umbrella above the head, held up by the hand of that side."""
    shape, faces = superellipsoid(1.0)
    dome = shape * np.array((0.52, 0.52, 0.2), np.float32)
    dome[:, 2] = np.where(shape[:, 2] < 0, -0.12 * np.abs(shape[:, 2]), dome[:, 2])
    crown = float(body.vertices[:, 2].max())
    place = np.array([0.12 * side, -0.12, crown + 0.16], np.float32)
    return solid(Material.UMBRELLA, dome + place, faces, canonical=shape)


def _suitcase(body: PosedBody, person: Identity) -> list[Layer]:
    """An upright suitcase behind the hand, and its handle."""
    hand = _hand(body, person.bag_side)
    outward = 0.06 * person.bag_side
    case = np.array([hand[0] + outward, hand[1] + 0.20, 0.31], np.float32)
    handle = np.array([hand[0] + outward / 2, hand[1] + 0.09, (hand[2] + 0.58) / 2], np.float32)
    handle_height = max(0.03, abs(float(hand[2]) - 0.58) / 2 + 0.03)
    return [_box(case, (0.13, 0.19, 0.29)), _box(handle, (0.05, 0.02, handle_height))]


def _hand(body: PosedBody, side: int) -> Floats:
    """The base of the middle finger."""
    suffix = "L" if side > 0 else "R"
    return body.carried_by(f"wrist.{suffix}", body.joint(f"finger3-1.{suffix}"))


def _box(place: Floats, half_size: Triple) -> Layer:
    shape, faces = superellipsoid(_BOX)
    points = shape * np.array(half_size, np.float32) + place
    return solid(Material.BAG, points, faces, canonical=shape)
