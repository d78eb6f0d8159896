"""Bodies: a table of 600 rest shapes on one rig, and their posing.

Axes: metres, z up, the face looks towards -y, the body's left side is +x, rest pose is an A-pose.
The *template* is one average body. Every vertex keeps its template position in any shape and pose;
clothes, prints and the boundaries of body parts are defined in these canonical coordinates.
`bodies.npz` is written by `bake.py`; LICENSE-bodies.md names the source of its shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from muva.compiled import compiled
from muva.synthetic.arrays import Flags, Floats, Indices
from muva.synthetic.mesh import vertex_normals
from muva.synthetic.rotation import Matrix, between, by_vector, unit

BODIES_FILE = Path(__file__).with_name("bodies.npz")

SIDES = {"L": 1, "R": -1}
"""Suffix of a bone's name -> sign of its x."""

_ARM_BONES = ("upperarm", "lowerarm", "wrist", "finger", "metacarpal")
_HEAD_BONES = ("head", "eye", "neck03")
_LEG_BONES = ("upperleg", "lowerleg", "foot", "toe")


@dataclass(frozen=True, slots=True)
class Phenotype:
    """Attributes of a rest shape."""

    stature_m: float
    age_years: float
    """The age that the shape was generated for."""
    weight: float
    """From 0 (thin) to 1 (stout)."""


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Heights on the template, in metres above its origin."""

    sole: float
    ankle: float
    knee: float
    hip: float
    neck: float
    crown: float
    face_y: float
    """Extent of the head to the front (-y); `nape_y` is its extent to the back."""
    nape_y: float


@dataclass(frozen=True, kw_only=True)
class Bodies:
    """The table: n shapes with V vertices and J bones. Even rows are male, odd rows female."""

    rest: Floats
    """(n, V, 3) rest positions."""
    joints: Floats
    """(n, J, 3) positions of the bone heads at rest."""
    faces: Indices
    """(F, 3)"""
    edges: Indices
    """(E, 2)"""
    trunk_edges: Indices
    """Edges of everything except the arms, for skirts to hang around."""
    parents: Indices
    """(J,) parent of each bone, -1 for the root; parents precede their children."""
    bones: Mapping[str, int]
    skin_bones: Indices
    """(V, 4) the bones that move each vertex; `skin_weights` are their weights."""
    skin_weights: Floats
    template: Floats
    """(V, 3)"""
    landmarks: Landmarks
    arm: Floats
    """(V,) share of arm bones in the weights of a vertex, as `head` and `leg` for those bones."""
    head: Floats
    leg: Floats
    sleeve: Floats
    """(V,) position along the arm: 0 at the shoulder, 1 at the wrist, larger on the hand."""
    torso: Flags
    hand_rest: Mapping[int, Matrix]
    """Rotations that relax the hands: fingers together and slightly curled."""
    phenotypes: tuple[Phenotype, ...]

    def is_female(self, body: int) -> bool:
        """Whether row `body` is a female shape."""
        return body % 2 == 1


@dataclass(frozen=True, kw_only=True)
class PosedBody:
    """One body in one pose, standing on z = 0, without clothes."""

    bodies: Bodies
    row: int
    vertices: Floats
    normals: Floats
    transforms: Floats
    """(J, 3, 4) transforms from the rest pose to this pose."""

    def joint(self, bone: str) -> Floats:
        """Rest position of the head of a bone."""
        return self.bodies.joints[self.row, self.bodies.bones[bone]]

    def carried_by(self, bone: str, rest_points: Floats) -> Floats:
        """`rest_points` (..., 3), moved as if attached to `bone`."""
        transform = self.transforms[self.bodies.bones[bone]]
        return (rest_points @ transform[:, :3].T + transform[:, 3]).astype(np.float32)


def pose(bodies: Bodies, row: int, rotations: Mapping[int, Matrix]) -> PosedBody:
    """Pose row `row`; `rotations`, about world axes at the bones' heads, compose along the rig."""
    turns = np.tile(np.eye(3, dtype=np.float32), (len(bodies.parents), 1, 1))
    for bone, turn in rotations.items():
        turns[bone] = turn
    transforms = _forward_kinematics(bodies.joints[row], bodies.parents, turns)
    vertices = _skin(bodies.rest[row], transforms, bodies.skin_bones, bodies.skin_weights)
    ground = vertices[:, 2].min()
    vertices[:, 2] -= ground
    transforms[:, 2, 3] -= ground
    return PosedBody(
        bodies=bodies,
        row=row,
        vertices=vertices,
        normals=vertex_normals(vertices, bodies.faces),
        transforms=transforms,
    )


@lru_cache(maxsize=1)
def shipped_bodies() -> Bodies:
    """The table that comes with the package; loaded once."""
    with np.load(BODIES_FILE) as file:
        arrays = {name: file[name] for name in file.files}
    unit_m = np.float32(arrays["unit"])
    faces = arrays["faces"].astype(np.int32)
    bones = {str(name): index for index, name in enumerate(arrays["labels"])}
    skin_bones = arrays["wi"].astype(np.int32)
    skin_weights = arrays["ww"].astype(np.float32)
    skin_weights /= skin_weights.sum(axis=1, keepdims=True)
    template, template_joints = arrays["tv"].astype(np.float32), arrays["th"].astype(np.float32)

    def share(prefixes: tuple[str, ...]) -> Floats:
        chosen = [index for name, index in bones.items() if name.startswith(prefixes)]
        return (skin_weights * np.isin(skin_bones, chosen)).sum(axis=1).astype(np.float32)

    def joint(name: str) -> Floats:
        return template_joints[bones[name]]

    arm, head = share(_ARM_BONES), share(_HEAD_BONES)
    edges = _edges(faces)
    skull = template[head > 0.6]
    on_left = template[:, 0] > 0
    sleeve = np.where(on_left, *(_along_the_arm(template, joint, side) for side in SIDES))
    return Bodies(
        rest=arrays["rest"] * unit_m,
        joints=arrays["heads"] * unit_m,
        faces=faces,
        edges=edges,
        trunk_edges=edges[(arm[edges] < 0.4).all(axis=1)],
        parents=arrays["parents"].astype(np.int32),
        bones=bones,
        skin_bones=skin_bones,
        skin_weights=skin_weights,
        template=template,
        landmarks=Landmarks(
            sole=float(template[:, 2].min()),
            ankle=float(joint("foot.L")[2]),
            knee=float(joint("lowerleg01.L")[2]),
            hip=float(joint("upperleg01.L")[2]),
            neck=float(joint("neck01")[2]),
            crown=float(template[:, 2].max()),
            face_y=float(skull[:, 1].min()),
            nape_y=float(skull[:, 1].max()),
        ),
        arm=arm,
        head=head,
        leg=share(_LEG_BONES),
        sleeve=sleeve.astype(np.float32),
        torso=arrays["vpart"] == list(arrays["vpart_names"]).index("torso"),
        hand_rest=_relaxed_hands(bones, joint),
        phenotypes=tuple(_phenotype(text) for text in arrays["pheno"]),
    )


def _phenotype(text: str) -> Phenotype:
    knobs = json.loads(text)
    return Phenotype(knobs["stature"], knobs["years"], knobs["weight"])


def _edges(faces: Indices) -> Indices:
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(sides, axis=1), axis=0)


def _along_the_arm(template: Floats, joint: Callable[[str], Floats], side: str) -> Floats:
    """Distance along upper arm and forearm, relative to the length of the arm."""
    shoulder, elbow = joint(f"upperarm01.{side}"), joint(f"lowerarm01.{side}")
    wrist = joint(f"wrist.{side}")
    upper, lower = np.linalg.norm(elbow - shoulder), np.linalg.norm(wrist - elbow)
    on_upper = (template - shoulder) @ ((elbow - shoulder) / upper)
    on_lower = (template - elbow) @ ((wrist - elbow) / lower)
    along = np.where(on_lower > 0, upper + on_lower, np.minimum(on_upper, upper))
    return along / (upper + lower)


def _relaxed_hands(bones: Mapping[str, int], joint: Callable[[str], Floats]) -> dict[int, Matrix]:
    """The fingers are spread in the rest pose: bring them together and curl every joint."""
    rotations: dict[int, Matrix] = {}
    for side, sign in SIDES.items():
        across = sign * unit(joint(f"finger5-1.{side}") - joint(f"finger2-1.{side}"))
        pointing = {
            finger: unit(joint(f"finger{finger}-2.{side}") - joint(f"finger{finger}-1.{side}"))
            for finger in range(1, 6)
        }
        middle = unit(sum(pointing[finger] for finger in range(2, 6)))
        curl = {1: 16, 2: 26, 3: 16}  # degrees per joint
        for finger in range(2, 6):
            closing = between(pointing[finger], 0.15 * pointing[finger] + 0.85 * middle)
            for number, degrees in curl.items():
                turn = by_vector(across * np.radians(degrees))
                bone = bones[f"finger{finger}-{number}.{side}"]
                rotations[bone] = turn @ closing if number == 1 else turn
        thumb = between(pointing[1], 0.55 * pointing[1] + 0.45 * middle)
        rotations[bones[f"finger1-1.{side}"]] = thumb
    return rotations


@compiled(fastmath=True)
def _forward_kinematics(joints, parents, turns):
    """(J, 3, 4) transforms from bone positions (J, 3), parents (J,) and rotations (J, 3, 3)."""
    count = len(parents)
    transforms = np.zeros((count, 3, 4), np.float32)
    for bone in range(count):
        turn = turns[bone]
        shift = joints[bone] - turn @ joints[bone]
        parent = parents[bone]
        if parent < 0:
            transforms[bone, :, :3] = turn
            transforms[bone, :, 3] = shift
        else:
            above = np.ascontiguousarray(transforms[parent, :, :3])
            transforms[bone, :, :3] = above @ turn
            transforms[bone, :, 3] = above @ shift + transforms[parent, :, 3]
    return transforms


@compiled(fastmath=True)
def _skin(rest, transforms, bones, weights):
    """Linear blend skinning: (V, 3) rest positions moved by the weighted mean of their bones."""
    moved = np.zeros_like(rest)
    for vertex in range(rest.shape[0]):
        x, y, z = rest[vertex]
        for slot in range(bones.shape[1]):
            weight = weights[vertex, slot]
            if weight > 1e-4:
                matrix = transforms[bones[vertex, slot]]
                for axis in range(3):
                    row = matrix[axis]
                    moved[vertex, axis] += weight * (row[0] * x + row[1] * y + row[2] * z + row[3])
    return moved
