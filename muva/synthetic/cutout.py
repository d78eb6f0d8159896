"""Cut-outs: a lit person without background, as one camera sees one moment of a walk."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Flags, Floats, Indices, Levels
from muva.synthetic.body import Landmarks, shipped_bodies
from muva.synthetic.camera import Window, frame
from muva.synthetic.figure import Walk, draw_figure
from muva.synthetic.identity import Identity
from muva.synthetic.light import ShadowMap, cast_shadow
from muva.synthetic.mesh import Material, Mesh
from muva.synthetic.raster import rasterise
from muva.synthetic.rotation import Matrix, about_z
from muva.synthetic.site import Site
from muva.synthetic.surface import NO_PART, Points, surface_colours, surface_parts
from muva.synthetic.vehicle import vehicle_layers

_SUPERSAMPLING = 2
"""Rays per pixel along each axis."""
_MAX_LATERAL_OFFSET_M = 2.2
"""Maximum distance of people from the camera's axis."""
_HIP_SHARE = 0.6
"""Height of a rider's hip above the ground, as a share of the stature."""
_WRINKLES = {Material.TOP: 0.13, Material.TROUSERS: 0.13, Material.SKIRT: 0.04}
_OTHER_WRINKLES = 0.02
"""How far wrinkles tilt the normals of cloth, and of everything else."""
_WRINKLE_TILT = (0.3, 0.2, 0.8)
"""Wrinkles run mostly across the body."""


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """A person without background."""

    layer: Floats
    """(H, W, 4) light, premultiplied by the fourth channel, which is the coverage in 0..1."""
    part_map: Levels
    """(H, W) values of `surface.PART_VALUES`."""
    window: Window
    shadow: ShadowMap


def cut_out(
    person: Identity,
    walk: Walk,
    site: Site,
    rng: Generator,
    *,
    height: int,
    width: int,
    loosely: bool = False,
) -> Cutout:
    """The person at one moment of `walk`, framed (see `camera.frame`) and lit."""
    figure = draw_figure(person, walk, rng)
    turn, place = _placed(walk, site, rng)
    mesh = _moved(figure, turn, place)
    projected = site.camera.project(mesh.vertices)
    rows, columns = height * _SUPERSAMPLING, width * _SUPERSAMPLING
    window = frame(mesh, projected, rng, height=rows, width=columns, loosely=loosely)
    face_at, depth, attributes = rasterise(
        window.pixels(projected), mesh.faces, mesh.keep, mesh.attributes, rows, columns, True
    )
    hit = face_at >= 0
    points = _points(mesh.materials[face_at[hit]], attributes[hit])
    positions = _world_positions(hit, depth, window, site)
    shadow = cast_shadow(mesh, site.light)
    light = site.light.on_surface(
        _wrinkled_normals(points, person), positions[:, 2], shadow.lights(positions)
    )
    marks = shipped_bodies().landmarks
    layer = np.zeros((rows, columns, 4), np.float32)
    layer[hit, :3] = surface_colours(points, person, marks) * light
    layer[hit, 3] = 1
    part_map = _part_map(hit, points, marks)
    if walk.rides:

        def project(points: Floats) -> Floats:
            return window.pixels(site.camera.project(points @ turn.T + place))

        far, near = vehicle_layers(
            project,
            float(projected[:, 2].mean()),
            site.light,
            rng,
            hip_m=_HIP_SHARE * person.phenotype.stature_m,
            height=rows,
            width=columns,
        )
        layer = over(over(far, layer), near)
        part_map[near[::_SUPERSAMPLING, ::_SUPERSAMPLING, 3] > 0.5] = NO_PART
    return Cutout(
        layer=cv2.resize(layer, (width, height), interpolation=cv2.INTER_AREA),
        part_map=part_map,
        window=window.coarser(_SUPERSAMPLING),
        shadow=shadow,
    )


def over(below: Floats, above: Floats) -> Floats:
    """Composite a premultiplied layer (H, W, 4) over an image (H, W, 3) or another layer."""
    return below * (1 - above[..., 3:]) + above[..., : below.shape[2]]


def _placed(walk: Walk, site: Site, rng: Generator) -> tuple[Matrix, Floats]:
    """The rotation to the figure's heading, and where it is in front of the camera."""
    turn = about_z(site.camera.heading_deg + walk.heading_deg)
    place = (
        rng.uniform(-_MAX_LATERAL_OFFSET_M, _MAX_LATERAL_OFFSET_M),
        rng.uniform(*site.camera.distance_m),
        0,
    )
    return turn, np.array(place, np.float32)


def _moved(mesh: Mesh, turn: Matrix, place: Floats) -> Mesh:
    attributes = mesh.attributes.copy()
    attributes[:, :3] = attributes[:, :3] @ turn.T
    vertices = mesh.vertices @ turn.T + place
    return replace(mesh, vertices=vertices, attributes=attributes)


def _world_positions(hit: Flags, depth: Floats, window: Window, site: Site) -> Floats:
    """(P, 3) world positions of the surface points."""
    rows, columns = np.nonzero(hit)
    plane_x, plane_y = window.plane(columns.astype(np.float32), rows.astype(np.float32))
    return np.stack(site.camera.unproject(plane_x, plane_y, depth[hit]), axis=1)


def _points(materials: Indices, attributes: Floats) -> Points:
    """The surface points hit by the rays, from the interpolated `Mesh.attributes`."""
    return Points(
        material=materials,
        normal=attributes[:, :3],
        canonical=attributes[:, 3:6],
        sleeve=attributes[:, 6],
        arm=attributes[:, 7],
    )


def _wrinkled_normals(points: Points, person: Identity) -> Floats:
    """(P, 3) normals, tilted by the wrinkles of the cloth."""
    lengths = np.linalg.norm(points.normal, axis=1, keepdims=True)
    x, y, z = points.canonical.T
    phases = person.details.fold_phases.astype(np.float32)
    depths = np.array(
        [_WRINKLES.get(material, _OTHER_WRINKLES) for material in Material], np.float32
    )
    waves = np.sin(26 * z + 34 * x + phases[5] + 2.2 * np.sin(19 * x - 13 * z + phases[7]))
    waves += np.sin(43 * z - 47 * x + 1.7 * np.sin(23 * z + 11 * y) + phases[6])
    tilt = (depths[points.material] * waves)[:, None] * np.array(_WRINKLE_TILT, np.float32)
    return points.normal / (lengths + 1e-9) + tilt


def _part_map(hit: Flags, points: Points, marks: Landmarks) -> Levels:
    """(H, W) parts at the central ray of each pixel."""
    parts = np.zeros(hit.shape, np.uint8)
    parts[hit] = surface_parts(points, marks)
    middle = _SUPERSAMPLING // 2
    return np.ascontiguousarray(parts[middle::_SUPERSAMPLING, middle::_SUPERSAMPLING])
