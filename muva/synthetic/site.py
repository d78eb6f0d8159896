"""Sites: the surroundings of one camera: its light, its sensor, and the empty scene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator

from muva.errors import MuvaError
from muva.synthetic import backdrop, ground
from muva.synthetic.arrays import Floats, Levels
from muva.synthetic.camera import Camera, Window, draw_camera
from muva.synthetic.domain import Domain, find_domain
from muva.synthetic.light import Light, ShadowMap, draw_light
from muva.synthetic.optics import Optics, draw_optics, photograph, typical_optics
from muva.synthetic.places import paint_paving, paint_place
from muva.synthetic.seeds import generator
from muva.synthetic.sensor import Sensor, draw_sensor, expose

_BEYOND = 1e9
"""Distance of the ground for a ray that does not hit it."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Everything that all images of one camera share."""

    camera: Camera
    light: Light
    sensor: Sensor | Optics
    ground: Levels
    backdrop: Levels
    backdrop_distance_m: float

    def expose(self, light: Floats, rng: Generator) -> Levels:
        """(H, W, 3) uint8: the image that the camera delivers of light (H, W, 3)."""
        if isinstance(self.sensor, Optics):
            return photograph(light, self.sensor, rng)
        return expose(light, self.sensor, rng)

    def background(self, window: Window, shadow: ShadowMap, *, height: int, width: int) -> Floats:
        """(H, W, 3) light from ground and backdrop, with the shadow of the person."""
        x, y, z, is_ground = self._seen(window, height, width)
        paving = _look_up(self.ground, x * ground.PX_PER_M, y * ground.PX_PER_M)
        above = backdrop.HEIGHT - 1 - z * backdrop.PX_PER_M
        wall = _look_up(
            self.backdrop, x * backdrop.PX_PER_M, np.clip(above, 0, backdrop.HEIGHT - 1)
        )
        paving = paving * self._ground_shadow(shadow, x, y)[..., None]
        return np.where(
            is_ground[..., None], paving * self.light.on_ground, wall * self.light.on_walls
        )

    def _seen(self, window: Window, height: int, width: int) -> tuple[Floats, ...]:
        """(H, W) world x, y, z of what each pixel sees, and whether it is the ground."""
        columns = np.arange(width, dtype=np.float32)[None]
        rows = np.arange(height, dtype=np.float32)[:, None]
        right, forward, up = self.camera.unproject(*window.plane(columns, rows))
        up = up - self.camera.height_m
        down = np.minimum(up, -1e-4)
        to_ground = np.where(up < -1e-4, -self.camera.height_m / down, _BEYOND)
        to_wall = self.backdrop_distance_m / forward
        is_ground = to_ground < to_wall
        distance = np.where(is_ground, to_ground, to_wall)
        z = self.camera.height_m + up * distance
        shape = (height, width)
        x, y, z = (
            np.broadcast_to(values, shape).astype(np.float32)
            for values in (right * distance, forward * distance, z)
        )
        return x, y, z, np.broadcast_to(is_ground, shape)

    def _ground_shadow(self, shadow: ShadowMap, x: Floats, y: Floats) -> Floats:
        """(H, W) remaining share of the light: the cast shadow, and a soft one around the feet."""
        strength = 0.85 * self.light.sun[0] / (self.light.sun[0] + self.light.ambient[0])
        cast = cv2.GaussianBlur(shadow.on_ground(x, y), (0, 0), 1.5)
        feet_x, feet_y = shadow.centre[0], shadow.centre[1]
        around_feet = np.exp(-((x - feet_x) ** 2 + (y - feet_y) ** 2) / 0.12)
        return (1 - strength * cast) * (1 - 0.45 * around_feet)


@lru_cache(maxsize=32)
def site(domain: str, camid: int) -> Site:
    """Camera `camid` (from 1) of a domain."""
    settings = find_domain(domain)
    if not 1 <= camid <= settings.cameras:
        raise MuvaError(f"{domain}: expected a camera from 1 to {settings.cameras}, found {camid}")
    rng = generator("site", domain, camid)
    if settings.open_world:
        return _place(settings, camid, rng)
    return Site(
        camera=draw_camera(settings.view, camid, rng),
        light=draw_light(settings.light, rng),
        sensor=draw_sensor(settings.sensor, rng),
        ground=ground.paint_ground(settings.scene.ground, rng),
        backdrop=backdrop.paint_backdrop(settings.scene.backdrop, rng),
        backdrop_distance_m=rng.uniform(*settings.scene.backdrop_distance_m),
    )


def _place(settings: Domain, camid: int, rng: Generator) -> Site:
    """A camera of the open world."""
    indoors = settings.scene.backdrop == "indoors"
    dark = rng.uniform(0.62, 0.88) if settings.typical else rng.uniform(0.45, 1.15)
    relief = rng.uniform(0.85, 1.05) if settings.typical else rng.uniform(0.8, 1.2)
    camera = draw_camera(settings.view, camid, rng)
    return Site(
        camera=replace(camera, heading_deg=rng.uniform(0, 360)),
        light=draw_light(settings.light, rng),
        sensor=typical_optics(rng) if settings.typical else draw_optics(rng),
        ground=_darkened(paint_paving(rng, indoors=indoors), dark * relief),
        backdrop=_darkened(paint_place(rng, indoors=indoors), dark),
        backdrop_distance_m=max(settings.view.distance_m) + rng.uniform(0.5, 12),
    )


def _darkened(texture: Levels, factor: float) -> Levels:
    return np.clip(texture * np.float32(factor), 0, 255).astype(np.uint8)


def _look_up(texture: Levels, columns: Floats, rows: Floats) -> Levels:
    """(H, W, 3) colours of a repeating texture at positions in pixels."""
    height, width = texture.shape[:2]
    return cv2.remap(texture, columns % (width - 1), rows % (height - 1), cv2.INTER_LINEAR)
