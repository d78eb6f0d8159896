"""Bodies stand on the ground in any pose, and rotations are rotations."""

import numpy as np
import pytest

from muva.synthetic.body import pose, shipped_bodies
from muva.synthetic.gait import Posture, joint_rotations
from muva.synthetic.mesh import superellipsoid, vertex_normals
from muva.synthetic.raster import rasterise
from muva.synthetic.rotation import about_z, between, by_vector, unit

BODIES = shipped_bodies()


def walking(phase: float, amplitude: float = 1.0) -> Posture:
    return Posture(
        phase=phase,
        amplitude=amplitude,
        arm_spread_deg=8,
        loose_clothes=False,
        phone_side=0,
        carrying_side=0,
        head_tilt_deg=(0, 0, 0),
    )


def posed(row: int, phase: float, amplitude: float = 1.0):
    return pose(BODIES, row, joint_rotations(BODIES, row, walking(phase, amplitude)))


def test_without_rotations_a_body_is_its_rest_shape_on_the_ground():
    body = pose(BODIES, 7, {})
    rest = BODIES.rest[7]
    np.testing.assert_allclose(body.vertices, rest - [0, 0, rest[:, 2].min()], atol=1e-4)


@pytest.mark.parametrize("phase", [0, 0.25, 0.5, 0.75])
def test_a_walking_body_keeps_its_bones_lengths(phase):
    body = posed(12, phase)
    for side in ("L", "R"):
        knee, ankle = body.joint(f"lowerleg01.{side}"), body.joint(f"foot.{side}")
        carried = body.carried_by(f"lowerleg01.{side}", np.stack([knee, ankle]))
        assert np.linalg.norm(carried[1] - carried[0]) == pytest.approx(
            np.linalg.norm(ankle - knee), rel=1e-3
        )


def test_half_a_cycle_later_the_other_leg_is_in_front():
    def forward_of_left_foot(phase: float) -> float:
        body = posed(20, phase)
        left, right = (
            body.carried_by(f"foot.{side}", body.joint(f"foot.{side}")) for side in ("L", "R")
        )
        return float(right[1] - left[1])

    first, second = forward_of_left_foot(0.0), forward_of_left_foot(0.5)
    assert first * second < 0
    assert first == pytest.approx(-second, rel=0.15)


def test_arms_hang_beside_the_body():
    body = posed(3, 0.0, amplitude=0.0)
    for side, sign in (("L", 1), ("R", -1)):
        hand = body.carried_by(f"wrist.{side}", body.joint(f"finger3-1.{side}"))
        shoulder = body.carried_by(f"upperarm01.{side}", body.joint(f"upperarm01.{side}"))
        assert hand[2] < shoulder[2] - 0.4
        assert sign * hand[0] > 0.1


def test_rotations_keep_lengths_and_do_what_they_say():
    rng = np.random.default_rng(0)
    for start, end in rng.normal(size=(20, 2, 3)):
        turn = between(start, end)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-5)
        np.testing.assert_allclose(turn @ unit(start), unit(end), atol=1e-5)
    np.testing.assert_allclose(about_z(90) @ [1, 0, 0], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(by_vector([0, 0, 0]), np.eye(3))


def test_normals_of_an_ellipsoid_point_outwards():
    points, faces = superellipsoid(1.0)
    normals = vertex_normals(points, faces)
    assert ((normals * points).sum(axis=1) > 0.9).all()


def test_the_nearer_triangle_hides_the_farther_one():
    square = np.array([[0, 0], [8, 0], [8, 8], [0, 8]], np.float32)
    near = np.column_stack([square, np.full(4, 1, np.float32)])
    far = np.column_stack([square, np.full(4, 2, np.float32)])
    points = np.concatenate([far, near]).astype(np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], np.int32)
    keep = np.ones(8, np.float32)
    keep[4:] = [1, 1, -1, -1]  # the near square is cut away below its middle
    value = np.repeat([[10.0], [20.0]], 4, axis=0).astype(np.float32)
    face_at, depth, values = rasterise(points, faces, keep, value, 8, 8, False)
    assert (face_at >= 0).all()
    np.testing.assert_allclose(values[:4, :, 0], 20, rtol=1e-5)
    np.testing.assert_allclose(values[4:, :, 0], 10, rtol=1e-5)
    np.testing.assert_allclose(depth[:4], 1, rtol=1e-5)
