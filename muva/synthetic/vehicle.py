"""The bicycles of riders in the open world, drawn as tubes in space.

A vehicle stands in the frame of its rider, who faces -y: the wheels touch the ground at z = 0. It
is projected with the camera of the image, so that it fits the rider from any side.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats
from muva.synthetic.light import Light

PEDAL_HEIGHT_M = 0.14
"""Height of a rider's lower foot above the ground."""

Project = Callable[[Floats], Floats]
"""Points (N, 3) in the rider's frame to x and y in pixels of the image, and depth in metres."""
Tube = tuple[Floats, float, Floats]
"""A line of points (N, 3), its thickness in metres, and its colour (3,)."""

_WHEEL = np.linspace(0, 2 * np.pi, 25)
_RUBBER, _METAL = (22, 22, 24), (120, 122, 126)


def vehicle_layers(
    project: Project,
    rider_depth_m: float,
    light: Light,
    rng: Generator,
    *,
    hip_m: float,
    height: int,
    width: int,
) -> tuple[Floats, Floats]:
    """(H, W, 4) premultiplied layers of a vehicle: what is behind the rider, and in front."""
    far, near = (np.zeros((height, width, 4), np.float32) for _ in range(2))
    brightness = light.ambient + light.sun * np.float32(0.5)
    for points, thickness_m, colour in _bicycle(rng, hip_m):
        placed = project(points.astype(np.float32))
        depth = float(placed[:, 2].mean())
        layer = near if depth < rider_depth_m - 0.12 else far
        paint = (*(float(channel) for channel in colour * brightness), 1.0)
        across = placed[0, :2] - project(points[:1].astype(np.float32) + _UP)[0, :2]
        thickness = max(1, round(float(np.linalg.norm(across)) * thickness_m))
        corners = np.rint(placed[:, :2]).astype(np.int32)
        cv2.polylines(layer, [corners], False, paint, thickness, cv2.LINE_AA)
    return far, near


_UP = np.array([[0, 0, 1]], np.float32)


def _bicycle(rng: Generator, hip_m: float) -> list[Tube]:
    """Wheels, frame, handlebar; sometimes a basket or a child's seat."""
    radius, base = rng.uniform(0.29, 0.35), rng.uniform(0.46, 0.54)
    frame = np.clip(rng.uniform(15, 220) + rng.normal(0, 40, 3), 8, 240)
    rubber, metal = np.array(_RUBBER), np.array(_METAL)
    saddle = np.array([0, 0.12, hip_m - 0.08])
    pedals, head = np.array([0, 0.02, 0.3]), np.array([0, -base + 0.12, hip_m])
    rear, front = np.array([0, base, radius]), np.array([0, -base - 0.05, radius])
    tubes: list[Tube] = [
        (_circle(rear, radius), 0.045, rubber),
        (_circle(front, radius), 0.045, rubber),
    ]
    for start, end in (
        (rear, pedals),
        (rear, saddle),
        (pedals, saddle),
        (pedals, head),
        (saddle + _at(up=-0.08), head + _at(up=-0.08)),
        (front, head + _at(up=0.06)),
    ):
        tubes.append((np.stack([start, end]), 0.035, frame))
    grip = head + _at(back=0.05, up=0.1)
    tubes.append((np.stack([grip + _at(left=-0.27), grip + _at(left=0.27)]), 0.035, metal))
    if rng.random() < 0.35:
        basket = head + _at(back=-0.16, up=-0.1)
        ends = np.stack([basket + _at(left=-0.15), basket + _at(left=0.15)])
        tubes.append((ends, 0.24, metal * 0.8))
    return tubes


def _at(*, left: float = 0.0, back: float = 0.0, up: float = 0.0) -> Floats:
    return np.array([left, back, up])


def _circle(centre: Floats, radius: float) -> Floats:
    ring = np.stack([np.zeros_like(_WHEEL), np.cos(_WHEEL), np.sin(_WHEEL)], axis=1)
    return centre + radius * ring
