"""Cameras: position, projection, and the window of the image that is the crop of a person.

World axes: metres, z up. The camera is at (0, 0, height) and looks along +y, pitched down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats
from muva.synthetic.domain import View
from muva.synthetic.mesh import Material, Mesh

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
    stretch: float = 1.0
    """How much wider the image is than it would be with square pixels."""

    def pixels(self, projected: Floats) -> Floats:
        """Projected points (N, 3) to x and y in pixels, and depth."""
        corner = np.array([self.left, self.top, 0], np.float32)
        return (projected - corner) * np.array(
            [self.scale * self.stretch, self.scale, 1], np.float32
        )

    def plane(self, columns: Floats, rows: Floats) -> tuple[Floats, Floats]:
        """Positions of pixel centres on the image plane."""
        across = self.left + (columns + 0.5) / (self.scale * self.stretch)
        return across, self.top + (rows + 0.5) / self.scale

    def horizon(self, camera: Camera) -> float:
        """The row of the horizon, which may be outside the image."""
        return float((-np.tan(camera.pitch_rad) - self.top) * self.scale)

    def coarser(self, factor: int) -> Window:
        """The same rectangle with pixels that are `factor` times as large."""
        return replace(self, scale=self.scale / factor)


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


def frame(
    mesh: Mesh,
    projected: Floats,
    rng: Generator,
    *,
    height: int,
    width: int,
    loosely: bool = False,
) -> Window:
    """The crop that a person detector would return: not quite centred, with some margin.

    loosely: as real detectors and annotators do: tight, shifted, of any shape, or cut off.
    """
    shown = np.zeros(len(projected), bool)
    framed = (mesh.keep[mesh.faces] > 0).all(axis=1) & (mesh.materials != Material.UMBRELLA)
    shown[mesh.faces[framed]] = True
    low = projected[shown, :2].min(axis=0)
    high = projected[shown, :2].max(axis=0)
    if loosely:
        return _loose_window(low, high, rng, height=height, width=width)
    scale = height / ((high[1] - low[1]) * rng.uniform(1.03, 1.18))
    plane_width, plane_height = width / scale, height / scale
    middle = (low + high) / 2
    return Window(
        left=float(middle[0] + (rng.normal(0, 0.035) - 0.5) * plane_width),
        top=float(middle[1] + (rng.normal(0, 0.02) - 0.5) * plane_height),
        scale=float(scale),
    )


_CUT_OFF = 0.16
"""Share of loose crops that miss a part of the person."""


def _loose_window(low: Floats, high: Floats, rng: Generator, *, height: int, width: int) -> Window:
    extent_x, extent_y = high - low
    margins = rng.normal(0.03, 0.045, 4) * (extent_y * np.array([0.6, 1, 0.6, 1]))
    left, top = low[0] - margins[0], low[1] - margins[1]
    right, bottom = high[0] + margins[2], high[1] + margins[3]
    if rng.random() < _CUT_OFF:
        side, share = int(rng.integers(4)), rng.uniform(0.08, 0.42)
        if side in (0, 1):  # mostly the legs, as behind cars, desks and the edge of the image
            bottom -= share * extent_y
        elif side == 2:
            top += 0.35 * share * extent_y
        elif rng.random() < 0.5:
            left += 0.7 * share * extent_x
        else:
            right -= 0.7 * share * extent_x
    tall = max(bottom - top, 0.3 * extent_y)
    wide = right - left
    # Narrow people get a box of at least a usual shape; the rest is stretched to the image's.
    aspect = max(wide / tall, rng.uniform(0.36, 0.52))
    middle = (left + right) / 2
    return Window(
        left=float(middle - aspect * tall / 2),
        top=float(top),
        scale=float(height / tall),
        stretch=float(width / height / aspect),
    )
