"""Importing the checkpoint of another program as a model."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from muva.config import ExperimentConfig, patch_size
from muva.data import formats
from muva.model.checks import check_clip
from muva.model.clip import load_clip
from muva.model.foreign import AUTO, fit_checkpoint
from muva.model.foreign.adopt import adopt, needs_clip
from muva.model.foreign.fit import ImportOptions
from muva.model.foreign.plain_clip import weights_file
from muva.models import IMPORTED, store_bundle
from workflows.progress import track
from workflows.session import Session
from workflows.steps.step import Step, StepResult, run_step

IMPORT_VERSION = 1
"""Incremented whenever the same file becomes a different model."""


def import_model(
    session: Session,
    path: Path,
    config: ExperimentConfig,
    *,
    name: str,
    form: str = AUTO,
    clip: str | None = None,
    grid: tuple[int, int] | None = None,
    quick_gelu: bool | None = None,
) -> StepResult:
    """Import the checkpoint of another program, a file or a folder.

    `clip` names the CLIP whose text encoder is used if the file has none, instead of the recipe's.
    The summary says how the entries of the file were used. Raises MuvaError for files of an unknown
    form, and SettingsError for settings that the file contradicts.
    """
    given = ImportOptions(
        model=config.model, prompts=config.prompts, quick_gelu=quick_gelu, grid=grid
    )
    fitted = fit_checkpoint(path, given, form=None if form == AUTO else form)
    file, form = weights_file(path), fitted.translation.form.name
    filler = clip or config.model.clip
    fills = needs_clip(fitted)
    if fills:
        check_clip(filler)
        if patch_size(filler) in (None, fitted.patch):
            named = fitted.model.model_copy(update={"clip": filler})
            fitted = dataclasses.replace(fitted, model=named)
    model = fitted.model
    content = _sha256(file)
    settings = {
        "file": content,
        "form": form,
        "model": model.model_dump(mode="json", exclude={"clip"}),
        "prompts": fitted.prompts.model_dump(mode="json"),
        "activation": "quick-gelu" if fitted.quick_gelu else "gelu",
        "grid": fitted.file_grid,
        "heads": [fitted.vision_heads, fitted.text_heads],
        "clip": _identity(filler) if fills else None,
        "seed": config.seed,
        "version": IMPORT_VERSION,
    }
    step = Step(
        title=f"import model {name}",
        store=session.store,
        kind="models",
        name=name,
        format_version=formats.BUNDLE,
        settings=settings,
        facts={"seed": config.seed},
    )
    artifact = step.artifact

    def work(_: object) -> dict[str, Any]:
        size = (model.image_height, model.image_width)
        with track(f"import {file.name}"):
            adopted = adopt(
                fitted,
                clip=lambda sizes: load_clip(filler, image_size=size, stride=sizes.stride),
                clip_name=filler,
                seed=config.seed,
            )
            origin = {
                "file": file.name,
                "sha256": content,
                "form": form,
                "rows": [dataclasses.asdict(row) for row in adopted.rows],
                "settings": [dataclasses.asdict(setting) for setting in fitted.settings],
            }
            store_bundle(artifact, adopted.model, metadata={IMPORTED: origin})
        return {
            "identities": adopted.model.identities,
            "feature_dim": adopted.model.feature_dim,
            **origin,
        }

    return run_step(step, session=session, work=work)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _identity(clip: str) -> list[str]:
    """The name of a CLIP; for the user's own files also a hash of the content."""
    path = Path(clip).expanduser()
    if path.is_file():
        return [path.name, _sha256(path)]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return [path.name, *(f"{file.name} {_sha256(file)}" for file in files)]
    return [clip]
