"""Gait: the joint rotations at one moment of a walk.

Hip, knee and ankle follow tables of normal walking. The arms are aimed in directions, so that they
hang alike in any rest shape, and swing opposite to the legs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muva.synthetic.body import SIDES, Bodies
from muva.synthetic.rotation import Matrix, Vector, about_x, about_y, between, by_vector, unit

# Sagittal joint angles in degrees at 0, 10, .. 100 % of the gait cycle; 0 is the heel strike.
_CYCLE = np.linspace(0, 1, 11)
_HIP = (28, 25, 17, 8, -1, -9, -7, 7, 21, 29, 28)
_KNEE = (4, 15, 17, 11, 6, 8, 30, 58, 55, 25, 4)
_ANKLE = (0, -3, 4, 8, 11, 9, -14, -8, 0, 2, 0)

_HALF_CYCLE = 0.5
_START_OF_CYCLE = {"L": 0.0, "R": _HALF_CYCLE}

_HELD_SWING = 0.35
"""Factor for the swing of an arm that carries something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Posture:
    """One moment: phase of the gait cycle, arms and head. Sides: 1 left, -1 right."""

    phase: float
    """0..1 of the left leg's gait cycle."""
    amplitude: float
    """0 standing, 1 walking, 1.15 brisk."""
    arm_spread_deg: float
    """How far the upper arms stand off; thick clothes push them out."""
    loose_clothes: bool
    """Whether a coat or skirt keeps the forearms away."""
    phone_side: int
    """The hand that holds up a phone, 0 for none."""
    carrying_side: int
    """The hand that carries a bag, 0 for none."""
    head_tilt_deg: tuple[float, float, float]
    """About x (nodding), y (leaning), z (turning)."""
    reaching: bool = False
    """Whether both hands are on a handlebar in front."""
    riding: bool = False
    """Whether the person sits on a saddle, with the feet on pedals."""
    raised_side: int = 0
    """The hand that holds an umbrella, 0 for none."""


def joint_rotations(bodies: Bodies, row: int, posture: Posture) -> dict[int, Matrix]:
    """Rotations by bone index, for `body.pose`."""
    rotations = dict(bodies.hand_rest)
    named: dict[str, Matrix] = _trunk(posture)
    for side in SIDES:
        named |= _leg(side, posture, bodies.phenotypes[row].weight)
        named |= _arm(bodies, row, side, posture)
    rotations.update({bodies.bones[name]: turn for name, turn in named.items()})
    return rotations


def _leg(side: str, posture: Posture, weight: float) -> dict[str, Matrix]:
    phase = posture.phase + _START_OF_CYCLE[side]
    amplitude = posture.amplitude
    if posture.riding:
        up = np.cos(2 * np.pi * phase)
        return {
            f"upperleg01.{side}": about_x(-(52 + 24 * up)) @ about_y(SIDES[side] * 3),
            f"lowerleg01.{side}": about_x(62 + 38 * up),
            f"foot.{side}": about_x(-8.0),
        }
    standing = 1 - min(amplitude, 1)
    # The legs are apart in the rest pose: bring them together, but less for stout bodies.
    adduction = 6.5 - 5 * max(0, weight - 0.5) - 2.5 * standing
    swing = about_x(-amplitude * _at(_HIP, phase))
    return {
        f"upperleg01.{side}": swing @ about_y(SIDES[side] * adduction),
        f"lowerleg01.{side}": about_x(amplitude * _at(_KNEE, phase) + 3 * standing),
        f"foot.{side}": about_x(-amplitude * _at(_ANKLE, phase) - 2 * standing),
    }


def _at(table: tuple[int, ...], phase: float) -> float:
    return float(np.interp(phase % 1, _CYCLE, table))


def _arm(bodies: Bodies, row: int, side: str, posture: Posture) -> dict[str, Matrix]:
    sign = SIDES[side]
    joints, bones = bodies.joints[row], bodies.bones

    def bone_vector(start: str, end: str) -> Vector:
        vector = joints[bones[f"{end}.{side}"]] - joints[bones[f"{start}.{side}"]]
        return vector.astype(np.float64)

    upper_to, fore_to = _arm_directions(side, posture, bodies.phenotypes[row].weight)
    upper = between(bone_vector("upperarm01", "lowerarm01"), upper_to)
    forearm_now = upper @ bone_vector("lowerarm01", "wrist")
    fore = between(forearm_now, fore_to) @ upper

    # Twist the forearm until the palm faces the thigh, or the face when it holds a phone.
    on_phone = posture.phone_side == sign
    palm_to = np.array([sign * 0.9, 0.2, -0.4] if on_phone else [sign * 0.45, 0.9, 0])
    palm_now = fore @ bone_vector("finger2-1", "finger5-1")
    palm_now, palm_to = _across(palm_now, fore_to), _across(palm_to, fore_to)
    twist = np.arctan2(np.cross(palm_now, palm_to) @ fore_to, palm_now @ palm_to)
    half_twisted = by_vector(fore_to * twist / 2) @ fore
    twisted = by_vector(fore_to * twist) @ fore

    hand_now = twisted @ bone_vector("wrist", "finger3-1")
    hand = between(hand_now, fore_to + 0.15 * unit(hand_now)) @ twisted
    return {
        f"upperarm01.{side}": upper,
        f"lowerarm01.{side}": upper.T @ fore,
        f"lowerarm02.{side}": fore.T @ half_twisted,
        f"wrist.{side}": half_twisted.T @ hand,
    }


def _arm_directions(side: str, posture: Posture, weight: float) -> tuple[Vector, Vector]:
    """Unit directions of the upper arm and the forearm."""
    sign = SIDES[side]
    carries = posture.carrying_side == sign
    opposite_leg = posture.phase + _START_OF_CYCLE[side] + _HALF_CYCLE
    swing = posture.amplitude * np.cos(2 * np.pi * opposite_leg) * (_HELD_SWING if carries else 1)
    forward = 19 * swing - 3 * posture.amplitude
    outward = posture.arm_spread_deg + 8 * max(0, weight - 0.45)
    forearm_outward = outward * (0.7 if posture.loose_clothes else 0.25)
    if posture.reaching and not carries:
        forward, elbow, forearm_outward = 34.0, 38.0, -4.0
    elif posture.raised_side == sign:
        forward, elbow, forearm_outward = 20.0, 110.0, -6.0
    elif carries:
        elbow = 6.0
    elif posture.phone_side == sign:
        forward, elbow, forearm_outward = 22.0, 92.0, -18.0
    else:
        elbow = 10 + 8 * posture.amplitude + 11 * max(0, swing)
    return (
        _hanging(sign, forward, outward),
        _hanging(sign, forward + elbow, forearm_outward),
    )


def _hanging(sign: int, forward_deg: float, outward_deg: float) -> Vector:
    """Downwards, rotated outwards and then forwards."""
    outward = np.radians(outward_deg)
    return about_x(-forward_deg) @ np.array([sign * np.sin(outward), 0, -np.cos(outward)])


def _across(vector: Vector, axis: Vector) -> Vector:
    """The direction of the component of `vector` that is orthogonal to `axis`."""
    return unit(vector - (vector @ axis) * axis)


def _trunk(posture: Posture) -> dict[str, Matrix]:
    turn = posture.amplitude * np.cos(2 * np.pi * posture.phase)
    nod, lean, look = posture.head_tilt_deg
    bend = 1.5 + 2.5 * posture.amplitude + (14 if posture.riding else 0)
    return {
        "spine05": by_vector(np.radians([bend, 0, 3 * turn])),
        "spine01": by_vector(np.radians([0, 0, -8 * turn])),
        "head": by_vector(np.radians([nod, lean, look + 5 * turn])),
    }
