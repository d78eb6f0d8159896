"""Clothes: garments as layers around a posed body.

A garment is the surface of the body, moved outwards along its normals, draped, and cut off at hems
that are planes on the template. Skirts, dresses and coat tails are tubes around both legs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from muva.synthetic.arrays import Floats
from muva.synthetic.body import PosedBody
from muva.synthetic.identity import Identity
from muva.synthetic.mesh import Layer, Material, drape, solid, tube_faces, vertex_normals


class TopCut(NamedTuple):
    """The cut of an upper garment."""

    sleeve_end: float
    """Along the arm: 0 at the shoulder, 1 at the wrist; negative without sleeves."""
    ease_m: float
    """Distance of the cloth from the body."""
    hem_shift_m: float
    """Height of the hem relative to the hip."""
    opens: bool
    """Whether it opens in front."""
    collar_m: float = 0.0
    """Height of the collar."""


TOPS: dict[str, TopCut] = {
    "tank top": TopCut(-0.12, 0.006, 0.005, opens=False),
    "t-shirt": TopCut(0.38, 0.010, 0.0, opens=False),
    "shirt": TopCut(0.93, 0.012, -0.02, opens=False),
    "sweater": TopCut(0.95, 0.018, -0.01, opens=False),
    "hoodie": TopCut(0.96, 0.024, -0.03, opens=False, collar_m=0.02),
    "jacket": TopCut(0.96, 0.026, -0.02, opens=True),
    "puffer jacket": TopCut(0.97, 0.042, -0.03, opens=True, collar_m=0.02),
    "blazer": TopCut(0.95, 0.018, -0.08, opens=True),
    "coat": TopCut(0.96, 0.030, -0.05, opens=True, collar_m=0.02),
}

BOTTOM_EASE_M: dict[str, float] = {
    "jeans": 0.010,
    "trousers": 0.018,
    "leggings": 0.003,
    "shorts": 0.018,
    "skirt": 0.0,
    "dress": 0.0,
}

ARM_SPREAD_DEG: dict[str, float] = {"puffer jacket": 6, "coat": 5, "jacket": 3, "hoodie": 2}
"""How far thick clothes push the arms out."""

_SKIRT_ARM_SPREAD_DEG = 4
"""The same for a skirt or dress with a thin top."""

_TUBE_RINGS, _TUBE_POINTS = 10, 28
_CANONICAL_HIP_RADII_M = (0.17, 0.12)


def is_loose(person: Identity) -> bool:
    """Whether the clothes keep the forearms away from the hips."""
    return person.top in ("coat", "puffer jacket") or person.in_skirts


def arm_spread_deg(person: Identity) -> float:
    """How far the clothes push the arms out."""
    return ARM_SPREAD_DEG.get(person.top, _SKIRT_ARM_SPREAD_DEG if is_loose(person) else 0)


def skin_layer(body: PosedBody) -> Layer:
    """The body itself."""
    return over_body(body, Material.SKIN, body.vertices, body.normals, np.ones(len(body.vertices)))


def garment_layers(body: PosedBody, person: Identity) -> list[Layer]:
    """All garments between neck and soles."""
    layers = [_shoes(body, person), _top(body, person)]
    if not person.in_skirts:
        layers.append(_trousers(body, person))
    else:
        layers.append(_skirt(body, person))
    if person.top == "coat":
        layers.append(_coat_tail(body, person))
    return layers


def _trousers(body: PosedBody, person: Identity) -> Layer:
    bodies, marks = body.bodies, body.bodies.landmarks
    x, y, z = bodies.template.T
    ease = BOTTOM_EASE_M[person.bottom]
    width = np.full(len(z), ease)
    if person.bottom == "trousers":  # they widen below the knee
        width += 0.8 * ease * np.clip((marks.knee + 0.2 - z) / 0.5, 0, 1)
    tight = person.bottom == "leggings"
    folds = np.zeros(len(z))
    if not tight:
        waves = np.sin(33 * z + 25 * x + person.details.fold_phases[0]) + np.sin(21 * z - 31 * y)
        at_joints = np.exp(-(((z - marks.knee) / 0.12) ** 2)) + np.exp(
            -(((z - marks.ankle) / 0.1) ** 2)
        )
        folds = 0.0022 * waves * (0.4 + at_joints)
    cloth = _draped(
        body,
        distance=width + folds + 0.003,
        clearance=0.003 + 0.6 * width,
        softness=np.full(len(z), 0.25 if tight else 0.6),
        rounds=3,
    )
    lowest = {"shorts": marks.knee + 0.06, "leggings": marks.ankle + 0.03}.get(
        person.bottom, marks.ankle - 0.02
    )
    waistband = marks.hip + 0.12
    keep = np.minimum(np.minimum(z - lowest, waistband - z), 0.5 - bodies.arm)
    return over_body(body, Material.TROUSERS, cloth, vertex_normals(cloth, bodies.faces), keep)


def _shoes(body: PosedBody, person: Identity) -> Layer:
    marks, z = body.bodies.landmarks, body.bodies.template[:, 2]
    sole = z < marks.sole + 0.03
    thickness = 0.012 + 0.006 * sole
    if person.boots_m:
        thickness = thickness + 0.024 * (z > marks.ankle)  # over the trousers
    cloth = body.vertices + body.normals * thickness[:, None]
    top = marks.ankle + 0.01 + person.boots_m
    return over_body(body, Material.SHOE, cloth, body.normals, top - z)


def _top(body: PosedBody, person: Identity) -> Layer:
    bodies, marks = body.bodies, body.bodies.landmarks
    z, on_arm = bodies.template[:, 2], bodies.arm > 0.5
    distance = np.where(on_arm, _sleeve_distance(body, person), _trunk_distance(body, person))
    distance = distance + _top_folds(body, person) + 0.004
    softness = np.where(on_arm, 0.3, np.where(z < marks.neck - 0.02, 0.7, 0))
    cloth = _draped(
        body,
        distance=distance,
        clearance=np.where(z < marks.hip + 0.15, distance, 0.5 * distance),
        softness=softness,
        rounds=5,
    )
    keep = _top_outline(body, person)
    return over_body(body, Material.TOP, cloth, vertex_normals(cloth, bodies.faces), keep)


def _sleeve_distance(body: PosedBody, person: Identity) -> Floats:
    ease = TOPS[person.top].ease_m
    phase = person.details.fold_phases[3]
    return 0.75 * ease + 0.15 * ease * np.sin(30 * body.bodies.sleeve + phase)


def _trunk_distance(body: PosedBody, person: Identity) -> Floats:
    """Increases towards the hem, and always clears the waistband of the trousers."""
    marks, z = body.bodies.landmarks, body.bodies.template[:, 2]
    below_waist = np.clip((marks.hip + 0.1 - z) / 0.2, 0, 1)
    widening = TOPS[person.top].ease_m * (1 + 0.7 * below_waist)
    over_waistband = np.clip((marks.hip + 0.19 - z) / 0.06, 0, 1)
    return np.maximum(widening, (BOTTOM_EASE_M[person.bottom] + 0.014) * over_waistband)


def _top_folds(body: PosedBody, person: Identity) -> Floats:
    x, y, z = body.bodies.template.T
    phases = person.details.fold_phases
    waves = np.sin(31 * z + 28 * x + phases[1]) + np.sin(23 * z - 33 * x + 9 * y + phases[2])
    folds = 0.09 * TOPS[person.top].ease_m * waves
    if person.top == "puffer jacket":
        folds = folds + 0.010 * np.abs(np.sin(42 * z))  # quilting
    return folds


def _top_outline(body: PosedBody, person: Identity) -> Floats:
    """The boundary of the garment: hem, neckline, sleeves, and the shoulders of a tank top."""
    bodies, marks, cut = body.bodies, body.bodies.landmarks, TOPS[person.top]
    x, y, z = bodies.template.T
    if person.in_skirts and person.top != "coat":
        hem = marks.hip + 0.08  # tucked in
    else:
        hem = marks.hip + cut.hem_shift_m
    hem += person.details.hem_shift_m
    neckline = marks.neck - 0.005 + cut.collar_m
    lower_in_front = 0.25 * np.clip(y + 0.02, -0.05, 0.05)
    on_trunk = np.minimum(z - hem, neckline - z + lower_in_front)
    if cut.sleeve_end < 0:
        on_trunk = np.minimum(on_trunk, 0.155 - np.abs(x))
    on_arm = np.minimum(0.5 * (cut.sleeve_end - bodies.sleeve), 1)
    outline = np.where(bodies.arm > 0.5, on_arm, on_trunk)
    below_hem_on_leg = (bodies.leg >= 0.9) & (z <= hem)
    return np.where(below_hem_on_leg, -1, outline)


def _skirt(body: PosedBody, person: Identity) -> Layer:
    under_top = TOPS[person.top].ease_m if person.top != "coat" else 0
    return _tube(
        body,
        person,
        Material.SKIRT,
        above_hip_m=0.13,
        below_hip_m=0.12 + 0.40 * person.details.skirt_length,
        ease_m=under_top + 0.014,
        first_ring_ease=0.8,
        flare_m=person.details.flare_m + 0.02,
    )


def _coat_tail(body: PosedBody, person: Identity) -> Layer:
    return _tube(
        body,
        person,
        Material.TOP,
        above_hip_m=0.08,
        below_hip_m=0.10 + 0.30 * person.details.skirt_length,
        ease_m=TOPS[person.top].ease_m + 0.017,
        first_ring_ease=0.25,
        flare_m=0.7 * person.details.flare_m + 0.02,
    )


def _tube(
    body: PosedBody,
    person: Identity,
    material: Material,
    *,
    above_hip_m: float,
    below_hip_m: float,
    ease_m: float,
    first_ring_ease: float,
    flare_m: float,
) -> Layer:
    """A tube around both legs: each ring is the convex outline of a body slice, plus ease."""
    bodies, marks = body.bodies, body.bodies.landmarks
    at_hip = (np.abs(bodies.template[:, 2] - marks.hip) < 0.03) & (bodies.arm < 0.5)
    hip = float(body.vertices[at_hip, 2].mean())
    angles = np.linspace(0, 2 * np.pi, _TUBE_POINTS, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ends = body.vertices[bodies.trunk_edges]
    rings, canonical = [], []
    centre, radii = np.zeros(2), np.full(_TUBE_POINTS, 0.15)
    for ring, height in enumerate(np.linspace(hip + above_hip_m, hip - below_hip_m, _TUBE_RINGS)):
        outline = _slice(ends, height)
        if len(outline) >= 6:
            centre = (outline.min(axis=0) + outline.max(axis=0)) / 2
            radii = ((outline - centre) @ directions.T).max(axis=0)
        radii = (radii + 0.5 * (np.roll(radii, 1) + np.roll(radii, -1))) / 2
        eased = ease_m * min(1, first_ring_ease + 0.4 * ring)
        radii = radii + eased + flare_m * ring / (_TUBE_RINGS - 1)
        waves = np.sin(7 * angles + person.details.fold_phases[4])
        wavy = radii * (1 + 0.05 * ring / _TUBE_RINGS * waves)
        level = np.full(_TUBE_POINTS, height)
        rings.append(np.column_stack([centre + wavy[:, None] * directions, level]))
        on_template = directions * _CANONICAL_HIP_RADII_M
        canonical.append(np.column_stack([on_template, level - hip + marks.hip]))
    return solid(
        material,
        np.concatenate(rings[::-1]).astype(np.float32),
        tube_faces(_TUBE_RINGS, _TUBE_POINTS),
        canonical=np.concatenate(canonical[::-1]),
    )


def _slice(ends: Floats, height: float) -> Floats:
    """(n, 2) points where the edges `ends` (E, 2, 3) cross a horizontal plane."""
    start, end = ends[:, 0], ends[:, 1]
    along = (height - start[:, 2]) / (end[:, 2] - start[:, 2] + 1e-9)
    crosses = (along >= 0) & (along <= 1)
    start, end, along = start[crosses, :2], end[crosses, :2], along[crosses, None]
    return start + along * (end - start)


def _draped(
    body: PosedBody, *, distance: Floats, clearance: Floats, softness: Floats, rounds: int
) -> Floats:
    cloth = (body.vertices + body.normals * distance[:, None]).astype(np.float32)
    return drape(
        cloth,
        body.vertices,
        body.normals,
        softness.astype(np.float32),
        clearance.astype(np.float32),
        body.bodies.edges,
        rounds,
    )


def over_body(
    body: PosedBody, material: Material, vertices: Floats, normals: Floats, keep: Floats
) -> Layer:
    """A layer with the topology of the body."""
    return Layer(
        material=material,
        vertices=vertices.astype(np.float32),
        normals=normals,
        faces=body.bodies.faces,
        keep=keep.astype(np.float32),
        canonical=body.bodies.template,
        sleeve=body.bodies.sleeve,
        arm=body.bodies.arm,
    )
