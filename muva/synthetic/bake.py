"""Bakes `bodies.npz`: `python -m muva.synthetic.bake --out bodies.npz`.

Only needed to change the body shapes. It requires the package anny 0.6.2 (`pip install
anny==0.6.2`), which is not a dependency of this project: it pulls in warp-lang and builds a cache
of 0.6 to 1 GB on first use (under ANNY_CACHE_DIR; delete it afterwards). Only rest shapes are
stored, because bodies are posed at rendering time. LICENSE-bodies.md names the source of the data
and describes the arrays.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muva.errors import MuvaError
from muva.synthetic.arrays import Floats, Indices

ANNY_VERSION = "0.6.2"
TOPOLOGY = "notoes_collapse10pc"
"""The coarse mesh that comes with the package. The topologies `smpl` and `smplx` are not offered
because they download data for non-commercial use only."""

UNIT_M = 1e-4
"""Metres per stored unit; rounding moves a vertex by at most 0.05 mm."""

KNOBS = ("gender", "age", "muscle", "weight", "height", "proportions")
"""anny's phenotype parameters, 0 to 1."""

TEMPLATE = {
    "gender": 0.5,
    "age": 0.67,
    "muscle": 0.5,
    "weight": 0.5,
    "height": 0.35,
    "proportions": 0.5,
}

PART_BONES = {
    "head": ("neck", "head", "eye"),
    "hair": (),
    "torso": ("root", "pelvis", "spine", "clavicle", "shoulder"),
    "arm": ("upperarm", "lowerarm"),
    "hand": ("wrist", "finger", "metacarpal"),
    "leg": ("upperleg", "lowerleg"),
    "foot": ("foot", "toe"),
}
"""A vertex belongs to the part whose bones have the largest weight; hair is the scalp of the
head."""

Phenotype = dict[str, float]
Shaper = Callable[[list[Phenotype]], tuple[Floats, Floats]]
"""Phenotypes to rest vertices (n, V, 3) and bone heads (n, J, 3) in metres."""

_FEMALE = 1
"""Row number modulo 2 of female bodies; the others are male."""


def main() -> None:
    """Bake and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="npz file to write")
    parser.add_argument("--bodies", type=int, default=600, help="even rows male, odd rows female")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        arrays = bake(bodies=arguments.bodies, seed=arguments.seed)
    except MuvaError as error:
        parser.exit(1, f"{error}\n")
    np.savez_compressed(arguments.out, **arrays)
    print(
        f"{arguments.out}: {arguments.bodies} bodies, {arguments.out.stat().st_size / 1e6:.2f} MB"
    )


def bake(*, bodies: int, seed: int) -> dict[str, Any]:
    """All arrays of `bodies.npz`."""
    model = _anny_model()
    shape = _shaper(model)
    phenotypes, statures_m = draw_phenotypes(bodies, seed)
    _solve_heights(phenotypes, statures_m, shape)
    rest, heads = shape(phenotypes)
    for phenotype, stature in zip(phenotypes, _statures_m(rest), strict=True):
        phenotype["stature"] = float(stature)
    template, template_heads = (of_one[0] for of_one in shape([TEMPLATE]))
    bones, weights = _strongest_four(
        model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy().astype(np.float32)
    )
    labels = [str(label) for label in model.bone_labels]
    source = {
        "model": "anny",
        "version": ANNY_VERSION,
        "topology": TOPOLOGY,
        "n": bodies,
        "seed": seed,
        "licence": "shape and rig data CC0-1.0 (MakeHuman/MPFB2); mesh topology file and code "
        "Apache-2.0 (NAVER)",
    }
    return {
        "rest": _steps(rest),
        "heads": _steps(heads),
        "unit": np.float32(UNIT_M),
        "faces": model.faces.numpy().astype(np.uint16),
        "wi": bones.astype(np.uint8),
        "ww": weights.astype(np.float16),
        "parents": np.array(model.bone_parents, np.int16),
        "labels": np.array(labels),
        "tv": template.astype(np.float32),
        "th": template_heads.astype(np.float32),
        "vpart": vertex_parts(template, bones, weights, labels).astype(np.uint8),
        "vpart_names": np.array(list(PART_BONES)),
        "pheno": np.array([json.dumps(_rounded(phenotype)) for phenotype in phenotypes]),
        "source": np.array(json.dumps(source)),
    }


def draw_phenotypes(bodies: int, seed: int) -> tuple[list[Phenotype], list[float]]:
    """Phenotypes without a height, and the target statures in metres."""
    rng = np.random.default_rng(seed)
    phenotypes, statures_m = [], []
    for row in range(bodies):
        female = row % 2 == _FEMALE
        years, age, stature_m = _draw_age(rng, female)
        weight = float(np.clip(rng.normal(0.47 + 0.07 * (years > 35), 0.17), 0.1, 0.97))
        phenotypes.append(
            {
                "gender": float(np.clip(rng.normal(0.93 if female else 0.07, 0.05), 0, 1)),
                "age": age,
                "muscle": float(np.clip(rng.normal(0.48 if female else 0.58, 0.13), 0.2, 0.9)),
                "weight": weight,
                "proportions": float(np.clip(rng.normal(0.55, 0.15), 0.2, 0.9)),
                "years": years,
            }
        )
        statures_m.append(float(np.clip(stature_m, 1.25, 2.0)))
    return phenotypes, statures_m


def _draw_age(rng: np.random.Generator, female: bool) -> tuple[float, float, float]:
    """Age in years, the value of anny's age parameter, and a stature in metres."""
    kind = rng.random()
    if kind < 0.06:
        years = float(rng.uniform(9, 16))
        knob = np.interp(years, [8, 12, 16, 25], [0.40, 0.50, 0.60, 2 / 3])
        growth_m = [1.34, 1.50, 1.60 if female else 1.64, 1.62 if female else 1.72]
        return years, float(knob), np.interp(years, [9, 12, 14, 16], growth_m) + rng.normal(0, 0.05)
    if kind < 0.16:
        years = float(rng.uniform(60, 80))
        knob = np.interp(years, [55, 85], [0.86, 1.0])
        return years, float(knob), rng.normal(1.60 if female else 1.725, 0.06)
    years = float(rng.uniform(17, 60))
    knob = np.interp(years, [17, 25, 60], [0.63, 2 / 3, 0.88])
    return years, float(knob), rng.normal(1.645 if female else 1.765, 0.065)


def vertex_parts(template: Floats, bones: Indices, weights: Floats, labels: list[str]) -> Indices:
    """(V,) index into PART_BONES."""
    total = np.stack(
        [
            (weights * np.isin(bones, _bones_named(labels, prefixes))).sum(axis=1)
            for prefixes in PART_BONES.values()
        ],
        axis=1,
    )
    names = list(PART_BONES)
    part = total.argmax(axis=1)
    is_head = part == names.index("head")
    y, z, crown = template[:, 1], template[:, 2], template[:, 2].max()
    middle = (y[is_head].min() + y[is_head].max()) / 2
    on_top = z - (crown - 0.062)
    at_the_back = np.minimum(y - (middle - 0.012), z - (crown - 0.20))
    part[is_head & (np.maximum(on_top, at_the_back) > 0)] = names.index("hair")
    return part


def _bones_named(labels: list[str], prefixes: tuple[str, ...]) -> list[int]:
    return [index for index, label in enumerate(labels) if label.startswith(prefixes)]


def _anny_model() -> Any:
    """anny's model; imported by name, since it is not a dependency."""
    try:
        anny = importlib.import_module("anny")
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise MuvaError(
            f"baking body shapes needs the package anny, which is not installed here ({error}): "
            f"run `pip install anny=={ANNY_VERSION}` in a separate environment"
        ) from error
    if anny.__version__ != ANNY_VERSION:
        raise MuvaError(
            f"baking body shapes: expected anny {ANNY_VERSION}, found {anny.__version__}. "
            f"Run `pip install anny=={ANNY_VERSION}`"
        )
    return anny.Anny(local_changes="none", topology=TOPOLOGY).to(dtype=torch.float32)


def _shaper(model: Any, batch: int = 50) -> Shaper:
    torch = importlib.import_module("torch")

    def shape(phenotypes: list[Phenotype]) -> tuple[Floats, Floats]:
        vertices, heads = [], []
        for start in range(0, len(phenotypes), batch):
            some = phenotypes[start : start + batch]
            knobs = {knob: torch.tensor([each[knob] for each in some]) for knob in KNOBS}
            with torch.no_grad():
                output = model(phenotype_kwargs=knobs)
            vertices.append(output["rest_vertices"].numpy())
            heads.append(output["rest_bone_heads"].numpy())
        return np.concatenate(vertices), np.concatenate(heads)

    return shape


def _solve_heights(phenotypes: list[Phenotype], statures_m: list[float], shape: Shaper) -> None:
    """Set anny's height parameter so that each body reaches its stature."""
    knots = np.linspace(0, 1, 11)
    reached = np.stack(
        [
            _statures_m(
                shape([{**phenotype, "height": float(knot)} for phenotype in phenotypes])[0]
            )
            for knot in knots
        ],
        axis=1,
    )
    for phenotype, stature, curve in zip(phenotypes, statures_m, reached, strict=True):
        phenotype["height"] = float(np.interp(stature, curve, knots))


def _statures_m(rest: Floats) -> Floats:
    return rest[..., 2].max(axis=1) - rest[..., 2].min(axis=1)


def _strongest_four(bones: Indices, weights: Floats) -> tuple[Indices, Floats]:
    strongest = np.argsort(-weights, axis=1)[:, :4]
    bones = np.take_along_axis(bones, strongest, axis=1)
    weights = np.take_along_axis(weights, strongest, axis=1)
    return bones, weights / weights.sum(axis=1, keepdims=True)


def _steps(metres: Floats) -> NDArray[np.int16]:
    steps = np.round(metres / UNIT_M)
    if np.abs(steps).max() > np.iinfo(np.int16).max:
        raise MuvaError(
            f"a body reaches {np.abs(metres).max():.2f} m; int16 units allow at most 3.2 m"
        )
    return steps.astype(np.int16)


def _rounded(phenotype: Phenotype) -> Phenotype:
    return {name: round(value, 4) for name, value in phenotype.items()}


if __name__ == "__main__":
    main()
