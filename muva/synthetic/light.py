"""Light: ambient light and sun of one camera, and the shadows cast by a figure."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats
from muva.synthetic.domain import Lighting
from muva.synthetic.mesh import Mesh
from muva.synthetic.raster import FAR, rasterise
from muva.synthetic.rotation import unit

_MAP_SIZE = 160
_MAP_PX_PER_M = 60
_BIAS_M = 0.06
"""A surface this close behind the first surface that the light hits is lit too."""

_SHADED = 0.25
"""Share of the sun that remains in a figure's own shadow: light reflected by cloth and ground."""


@dataclass(frozen=True, kw_only=True)
class Light:
    """The light at one camera."""

    direction: Floats
    """(3,) towards the sun."""
    ambient: Floats
    """(3,) RGB."""
    sun: Floats
    """(3,) RGB."""

    @property
    def on_ground(self) -> Floats:
        """(3,) light received by open, level ground."""
        return self.ambient + self.sun * max(0.15, float(self.direction[2]))

    @property
    def on_walls(self) -> Floats:
        """(3,) light received by a vertical surface, on average."""
        return self.ambient + self.sun * 0.45

    def on_surface(self, normals: Floats, heights_m: Floats, lit: Floats) -> Floats:
        """(P, 3) light on points with normals (P, 3); `lit` is 0 in shadow and 1 in the sun."""
        from_sky = 0.72 + 0.28 * normals[:, 2]
        near_ground = 0.75 + 0.25 * np.clip(heights_m / 0.5, 0, 1)
        wrapped = np.clip((normals @ self.direction + 0.15) / 1.15, 0, 1)
        from_sun = wrapped * (_SHADED + (1 - _SHADED) * lit)
        return (from_sky * near_ground)[:, None] * self.ambient + from_sun[:, None] * self.sun


def draw_light(lighting: Lighting, rng: Generator) -> Light:
    """A random variation of the domain's lighting for one camera."""
    elevation = np.radians(rng.uniform(*lighting.sun_elevation_deg))
    azimuth = rng.uniform(0, 2 * np.pi)
    level = np.cos(elevation)
    direction = (level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation))
    brightness = rng.uniform(0.88, 1.12) * rng.uniform(0.96, 1.04, 3)
    return Light(
        direction=np.array(direction, np.float32),
        ambient=(np.array(lighting.ambient) * brightness).astype(np.float32),
        sun=(np.array(lighting.sun) * rng.uniform(0.8, 1.2)).astype(np.float32),
    )


@dataclass(frozen=True, kw_only=True)
class ShadowMap:
    """The depth map of a figure, seen from the light."""

    depth: Floats
    """(size, size) metres along the light from the centre, FAR where the light passes."""
    centre: Floats
    axes: Floats
    """(3, 3) rows: x of the map, y of the map, and the direction away from the light."""

    def lights(self, points: Floats) -> Floats:
        """(P,) 1 if the light reaches a point (P, 3) of the figure, otherwise 0."""
        x, y, depth = _seen_from_light(points, self.centre, self.axes).T
        column = np.clip(x.astype(np.int32), 0, _MAP_SIZE - 1)
        row = np.clip(y.astype(np.int32), 0, _MAP_SIZE - 1)
        return (depth < self.depth[row, column] + _BIAS_M).astype(np.float32)

    def on_ground(self, x: Floats, y: Floats) -> Floats:
        """(H, W) in 0..1: how much of the sun the figure blocks at the ground position (x, y)."""
        points = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
        place = _seen_from_light(points, self.centre, self.axes).reshape(*x.shape, 3)
        taken = (self.depth < FAR / 10).astype(np.float32)
        map_x, map_y = np.ascontiguousarray(place[..., 0]), np.ascontiguousarray(place[..., 1])
        return cv2.remap(taken, map_x, map_y, cv2.INTER_LINEAR)


def cast_shadow(mesh: Mesh, light: Light) -> ShadowMap:
    """The shadow map of a figure."""
    across = unit(np.cross(light.direction, [0, 0, 1.0]))
    along = np.cross(light.direction, across)
    axes = np.stack([across, along, -light.direction]).astype(np.float32)
    centre = mesh.vertices[: mesh.body_vertices].mean(axis=0)
    corners = _seen_from_light(mesh.vertices, centre, axes)
    nothing = np.empty((len(corners), 0), np.float32)
    _, depth, _ = rasterise(corners, mesh.faces, mesh.keep, nothing, _MAP_SIZE, _MAP_SIZE, False)
    return ShadowMap(depth=depth, centre=centre, axes=axes)


def _seen_from_light(points: Floats, centre: Floats, axes: Floats) -> Floats:
    """(P, 3) column and row in the shadow map, and depth in metres."""
    place = (points - centre) @ axes.T
    place[:, :2] = place[:, :2] * _MAP_PX_PER_M + _MAP_SIZE / 2
    return place.astype(np.float32)
