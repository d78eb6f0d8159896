"""Cameras: position, projection, and the window of the image that is the crop of a person.

World axes: metres, z up. The camera is at (0, 0, height) and looks along +y, pitched down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats
from muva.synthetic.domain import View
from muva.synthetic.mesh import Mesh

_HEADINGS_DEG = (0, 180, 90, 270, 45, 135)
"""The first camera sees people from the front, the second from behind, the others from the
sides."""

_TARGET_HEIGHT_M = 0.9
"""Height of the point that a camera is aimed at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """The geometry of one camera."""

    height_m: float
    pitch_rad: float
    distance_m: tuple[float, float]
    heading_deg: float
    """0: people walk towards the camera; 180: they walk away from it."""

    def project(self, points: Floats) -> Floats:
        """World points (N, 3) to x (right) and y (down) at focal length 1, and depth in metres."""
        cosine, sine = np.cos(self.pitch_rad), np.sin(self.pitch_rad)
        x, y, z = points[:, 0], points[:, 1], points[:, 2] - self.height_m
        depth = cosine * y - sine * z
        up = sine * y + cosine * z
        return np.stack([x / depth, -up / depth, depth], axis=1).astype(np.float32)

    def unproject(
        self, x: Floats, y: Floats, depth: Floats | float = 1.0
    ) -> tuple[Floats, Floats, Floats]:
        """World x, y and z of the points seen at (x, y) at `depth` metres."""
        cosine, sine = np.cos(self.pitch_rad), np.sin(self.pitch_rad)
        right, up = x * depth, -y * depth
        return right, cosine * depth + sine * up, self.height_m - sine * depth + cosine * up


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A rectangle of the image plane: pixel = (point - corner) * scale."""

    left: float
    top: float
    scale: float
    """Pixels per unit of the image plane."""

    def pixels(self, projected: Floats) -> Floats:
        """Projected points (N, 3) to x and y in pixels, and depth."""
        corner = np.array([self.left, self.top, 0], np.float32)
        return (projected - corner) * np.array([self.scale, self.scale, 1], np.float32)

    def plane(self, columns: Floats, rows: Floats) -> tuple[Floats, Floats]:
        """Positions of pixel centres on the image plane."""
        return self.left + (columns + 0.5) / self.scale, self.top + (rows + 0.5) / self.scale

    def coarser(self, factor: int) -> Window:
        """The same rectangle with pixels that are `factor` times as large."""
        return Window(left=self.left, top=self.top, scale=self.scale / factor)


def draw_camera(view: View, camid: int, rng: Generator) -> Camera:
    """Camera `camid` (from 1) of a network."""
    height = rng.uniform(*view.height_m)
    nominal = _HEADINGS_DEG[(camid - 1) % len(_HEADINGS_DEG)]
    distance = sum(view.distance_m) / 2
    return Camera(
        height_m=height,
        pitch_rad=np.arctan2(height - _TARGET_HEIGHT_M, distance) + rng.normal(0, 0.03),
        distance_m=view.distance_m,
        heading_deg=nominal + rng.uniform(-20, 20),
    )


def frame(mesh: Mesh, projected: Floats, rng: Generator, *, height: int, width: int) -> Window:
    """The crop that a person detector would return: not quite centred, with some margin."""
    shown = np.zeros(len(projected), bool)
    shown[mesh.faces[(mesh.keep[mesh.faces] > 0).all(axis=1)]] = True
    low = projected[shown, :2].min(axis=0)
    high = projected[shown, :2].max(axis=0)
    scale = height / ((high[1] - low[1]) * rng.uniform(1.03, 1.18))
    plane_width, plane_height = width / scale, height / scale
    middle = (low + high) / 2
    return Window(
        left=float(middle[0] + (rng.normal(0, 0.035) - 0.5) * plane_width),
        top=float(middle[1] + (rng.normal(0, 0.02) - 0.5) * plane_height),
        scale=float(scale),
    )
