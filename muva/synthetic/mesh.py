"""Meshes: the layers of a figure (skin, garments, hair, bags), and basic shapes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np

from muva.compiled import compiled
from muva.synthetic.arrays import Floats, Indices


class Material(IntEnum):
    """The material of a surface; it determines colour and body part (`surface.py`)."""

    SKIN = 0
    TOP = 1
    TROUSERS = 2
    SHOE = 3
    HAIR = 4
    BAG = 5
    SKIRT = 6
    CAP = 7
    UMBRELLA = 8


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One surface of a figure, V vertices."""

    material: Material
    vertices: Floats
    """(V, 3) metres."""
    normals: Floats
    """(V, 3) of unit length."""
    faces: Indices
    keep: Floats
    """(V,) the surface is cut away where the interpolated value is negative (hems, necklines)."""
    canonical: Floats
    """(V, 3) position on the template, or on the object itself."""
    sleeve: Floats
    """(V,) position along the arm, and in `arm` the share of the arm; see `Bodies`."""
    arm: Floats


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """All layers of a figure in one list of triangles."""

    vertices: Floats
    faces: Indices
    keep: Floats
    materials: Indices
    """One per face."""
    attributes: Floats
    """(V, 8): normal, canonical position, sleeve, arm; interpolated for each pixel."""
    body_vertices: int
    """The number of skin vertices, which come first."""


def join(layers: list[Layer]) -> Mesh:
    """The layers as one mesh; the first one must be the skin."""
    starts = np.cumsum([0] + [len(layer.vertices) for layer in layers])
    return Mesh(
        vertices=np.concatenate([layer.vertices for layer in layers]),
        faces=np.concatenate(
            [layer.faces + start for layer, start in zip(layers, starts, strict=False)]
        ).astype(np.int32),
        keep=np.concatenate([layer.keep for layer in layers]),
        materials=np.concatenate(
            [np.full(len(layer.faces), layer.material, np.int32) for layer in layers]
        ),
        attributes=np.concatenate([_attributes(layer) for layer in layers]),
        body_vertices=len(layers[0].vertices),
    )


def _attributes(layer: Layer) -> Floats:
    columns = (layer.normals, layer.canonical, layer.sleeve[:, None], layer.arm[:, None])
    return np.concatenate(columns, axis=1, dtype=np.float32)


def solid(
    material: Material, vertices: Floats, faces: Indices, *, canonical: Floats | None = None
) -> Layer:
    """A layer that is kept completely: a bag, a bun, a skirt."""
    vertices = np.ascontiguousarray(vertices, np.float32)
    zeros = np.zeros(len(vertices), np.float32)
    return Layer(
        material=material,
        vertices=vertices,
        normals=vertex_normals(vertices, faces),
        faces=faces,
        keep=zeros + 1,
        canonical=vertices if canonical is None else canonical.astype(np.float32),
        sleeve=zeros,
        arm=zeros,
    )


@cache
def superellipsoid(roundness: float) -> tuple[Floats, Indices]:
    """A closed surface in the cube -1..1: an ellipsoid at roundness 1, a box towards 0."""
    around, rows = 12, 8
    longitudes = np.linspace(0, 2 * np.pi, around, endpoint=False)
    latitudes = np.linspace(-np.pi / 2, np.pi / 2, rows)
    latitude, longitude = np.meshgrid(latitudes, longitudes, indexing="ij")
    points = np.stack(
        [
            _signed_power(np.cos(latitude), roundness)
            * _signed_power(np.cos(longitude), roundness),
            _signed_power(np.cos(latitude), roundness)
            * _signed_power(np.sin(longitude), roundness),
            _signed_power(np.sin(latitude), roundness),
        ],
        axis=-1,
    )
    return points.reshape(-1, 3).astype(np.float32), tube_faces(rows, around)


def _signed_power(values, exponent: float):
    return np.sign(values) * np.abs(values) ** exponent


@cache
def tube_faces(rings: int, around: int) -> Indices:
    """Triangles of a tube: `rings` rings from bottom to top with `around` points each."""
    faces = []
    for ring in range(rings - 1):
        for point in range(around):
            lower, upper = ring * around, (ring + 1) * around
            following = (point + 1) % around
            a, b, c, d = lower + point, lower + following, upper + point, upper + following
            faces += [(a, b, d), (a, d, c)]
    return np.array(faces, np.int32)


@compiled(fastmath=True)
def vertex_normals(vertices, faces):
    """(V, 3) unit normals: the sum of the adjacent faces' normals, weighted by area."""
    normals = np.zeros_like(vertices)
    for face in range(faces.shape[0]):
        a, b, c = faces[face]
        ux = vertices[b, 0] - vertices[a, 0]
        uy = vertices[b, 1] - vertices[a, 1]
        uz = vertices[b, 2] - vertices[a, 2]
        vx = vertices[c, 0] - vertices[a, 0]
        vy = vertices[c, 1] - vertices[a, 1]
        vz = vertices[c, 2] - vertices[a, 2]
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for corner in (a, b, c):
            normals[corner, 0] += x
            normals[corner, 1] += y
            normals[corner, 2] += z
    for vertex in range(normals.shape[0]):
        x, y, z = normals[vertex]
        length = np.sqrt(x * x + y * y + z * z) + np.float32(1e-12)
        for axis in range(3):
            normals[vertex, axis] /= length
    return normals


@compiled(fastmath=True)
def drape(vertices, base, normals, softness, clearance, edges, rounds):
    """Let cloth hang: smooth it along the normals only, so that prints and hems do not slide.

    vertices, base, normals (V, 3): the cloth, the body below it, the normals of the body. softness
    (V,) in 0..1: how far a vertex follows the mean of its neighbours. clearance (V,): the minimum
    distance from the body in metres. `rounds`: number of passes over the edges (E, 2).
    """
    cloth = vertices.copy()
    for _ in range(rounds):
        total = np.zeros_like(cloth)
        neighbours = np.zeros(cloth.shape[0], np.float32)
        for edge in range(edges.shape[0]):
            p, q = edges[edge]
            neighbours[p] += 1
            neighbours[q] += 1
            for axis in range(3):
                total[p, axis] += cloth[q, axis]
                total[q, axis] += cloth[p, axis]
        for vertex in range(cloth.shape[0]):
            if softness[vertex] > 0 and neighbours[vertex] > 0:
                move = np.float32(0)
                distance = np.float32(0)
                for axis in range(3):
                    mean = total[vertex, axis] / neighbours[vertex]
                    normal = normals[vertex, axis]
                    move += softness[vertex] * (mean - cloth[vertex, axis]) * normal
                    distance += (cloth[vertex, axis] - base[vertex, axis]) * normal
                move = max(move, clearance[vertex] - distance)
                for axis in range(3):
                    cloth[vertex, axis] += move * normals[vertex, axis]
    return cloth
