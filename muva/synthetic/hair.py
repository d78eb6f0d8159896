"""Hair and caps: a shell over the scalp, and ellipsoids for hanging hair."""

from __future__ import annotations

import numpy as np

from muva.synthetic.body import PosedBody
from muva.synthetic.clothes import over_body
from muva.synthetic.identity import Identity
from muva.synthetic.mesh import Layer, Material, solid, superellipsoid

Triple = tuple[float, float, float]

# Hanging hair: centre behind (y) and relative to the crown (z), and half sizes, in metres.
_HANGING_HAIR: dict[str, tuple[float, float, Triple]] = {
    "long": (0.085, -0.185, (0.085, 0.05, 0.16)),
    "ponytail": (0.115, -0.16, (0.032, 0.035, 0.13)),
    "bun": (0.11, -0.04, (0.045, 0.045, 0.045)),
    "bob": (0.045, -0.13, (0.098, 0.075, 0.085)),
    "afro": (0.02, -0.065, (0.125, 0.12, 0.105)),
}
_ELLIPSOID, _BOX = 1.0, 0.4
_HIDE_HAIR = ("hood", "headscarf")


def hair_layers(body: PosedBody, person: Identity) -> list[Layer]:
    """Hair, and the cap over it."""
    layers: list[Layer] = []
    crown = float(body.bodies.rest[body.row][:, 2].max()) - float(body.joint("head")[2])
    if person.headwear:
        layers += _headwear(body, person.headwear, crown)
    elif person.cap:
        layers += _cap(body, crown)
    if person.headwear in _HIDE_HAIR:
        return layers
    if person.hair_style != "bald":
        layers.append(_scalp(body))
    if person.hair_style in _HANGING_HAIR:
        behind, below, size = _HANGING_HAIR[person.hair_style]
        place = (0.0, behind, crown + below)
        layers.append(_on_head(body, Material.HAIR, _ELLIPSOID, place, size))
    return layers


def _headwear(body: PosedBody, kind: str, crown: float) -> list[Layer]:
    """What people of the open world wear on their heads."""
    match kind:
        case "cap":
            return _cap(body, crown)
        case "beanie":
            return [_covering(body, below_crown_m=0.10, thickness_m=0.024)]
        case "brimmed hat":
            brim = _on_head(
                body, Material.CAP, _ELLIPSOID, (0, -0.01, crown - 0.075), (0.16, 0.18, 0.012)
            )
            return [_covering(body, below_crown_m=0.09, thickness_m=0.034), brim]
        case _:  # a hood or a headscarf
            return [_wrap(body)]


def _covering(
    body: PosedBody, *, below_crown_m: float, thickness_m: float, tilt: float = 0.0
) -> Layer:
    """Covers the head down to `below_crown_m`; a tilted rim is lower at the nape."""
    bodies, marks = body.bodies, body.bodies.landmarks
    _, y, z = bodies.template.T
    middle = (marks.face_y + marks.nape_y) / 2
    rim = z - (marks.crown - below_crown_m) + tilt * (y - middle)
    keep = np.where(bodies.head > 0.3, rim, -1)
    shell = body.vertices + body.normals * thickness_m
    return over_body(body, Material.CAP, shell, body.normals, keep)


def _wrap(body: PosedBody) -> Layer:
    """Covers the head and the neck but not the face."""
    bodies, marks = body.bodies, body.bodies.landmarks
    x, y, z = bodies.template.T
    off_face = np.maximum(np.abs(x) - 0.058, y - (marks.face_y + 0.07))
    keep = np.maximum(off_face, np.abs(z - (marks.crown - 0.125)) - 0.085)
    keep = np.where((bodies.head > 0.1) & (z > marks.neck - 0.02), keep, -1)
    shell = body.vertices + body.normals * 0.024
    return over_body(body, Material.CAP, shell, body.normals, keep)


def _scalp(body: PosedBody) -> Layer:
    bodies, marks = body.bodies, body.bodies.landmarks
    x, y, z = bodies.template.T
    middle = (marks.face_y + marks.nape_y) / 2
    on_top = z - (marks.crown - 0.062)
    at_the_back = np.minimum(y - (middle - 0.012), z - (marks.crown - 0.20))
    keep = np.where(bodies.head > 0.3, np.maximum(on_top, at_the_back), -1)
    thickness = 0.012 + 0.006 * np.sin(40 * x + 50 * z)
    shell = body.vertices + body.normals * thickness[:, None]
    return over_body(body, Material.HAIR, shell, body.normals, keep)


def _cap(body: PosedBody, crown: float) -> list[Layer]:
    peak = _on_head(body, Material.CAP, _BOX, (0, -0.155, crown - 0.068), (0.07, 0.06, 0.008))
    return [_covering(body, below_crown_m=0.075, thickness_m=0.022, tilt=0.1), peak]


def _on_head(
    body: PosedBody, material: Material, roundness: float, place: Triple, half_size: Triple
) -> Layer:
    """A solid `place` metres from the head's joint that moves with the head."""
    shape, faces = superellipsoid(roundness)
    points = shape * np.array(half_size) + np.array(place) + body.joint("head")
    moved = body.carried_by("head", points.astype(np.float32))
    return solid(material, moved, faces, canonical=shape)
