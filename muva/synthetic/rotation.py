"""Rotation matrices: about an axis, by a rotation vector, and from one direction to another."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from muva.synthetic.arrays import Floats

Matrix = Floats
Vector = Floats

_TINY = 1e-9


def unit(vector: ArrayLike) -> Vector:
    """`vector` scaled to length 1."""
    vector = np.asarray(vector, np.float64)
    return vector / (np.sqrt(vector @ vector) + _TINY)


def by_vector(vector_rad: ArrayLike) -> Matrix:
    """Rotation about the vector's direction by its length in radians (Rodrigues' formula)."""
    x, y, z = np.asarray(vector_rad, np.float64)
    angle = np.sqrt(x * x + y * y + z * z)
    if angle < _TINY:
        return np.eye(3, dtype=np.float32)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) / angle
    turned = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    return turned.astype(np.float32)


def about_x(degrees: float) -> Matrix:
    """Rotation about the x axis (which points to the body's left)."""
    return by_vector((np.radians(degrees), 0, 0))


def about_y(degrees: float) -> Matrix:
    """Rotation about the y axis (which points backwards)."""
    return by_vector((0, np.radians(degrees), 0))


def about_z(degrees: float) -> Matrix:
    """Rotation about the z axis (which points up)."""
    return by_vector((0, 0, np.radians(degrees)))


def between(start: ArrayLike, end: ArrayLike) -> Matrix:
    """The smallest rotation from the direction `start` to the direction `end`."""
    start, end = unit(start), unit(end)
    axis = np.cross(start, end)
    sine = np.sqrt(axis @ axis)
    return by_vector(axis / (sine + _TINY) * np.arctan2(sine, start @ end))
