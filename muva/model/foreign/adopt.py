"""Builds a model from a checkpoint of another program, and reports what became of each entry.

If a file lacks the text encoder or its token embedding, CLIP's own is used: the programs whose
forms are known here keep it frozen. Modules of the method that the file lacks are initialised
randomly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import open_clip
import torch
from torch import Tensor

from muva.config import ModelConfig
from muva.errors import MuvaError
from muva.model.clip import build_clip, clip_shape, openai_weights, shape_of
from muva.model.foreign.fit import Fit
from muva.model.foreign.form import (
    BN_NECK,
    CLASSIFIER,
    CONTEXTS,
    MASK_PREDICTOR,
    PART_TOKENS,
    TEXT_TOWER,
    TOKEN_EMBEDDING,
    VISUAL,
    Row,
    foreign_name,
)
from muva.model.muva_model import MuvaModel, build_model

LOGIT_SCALE = "logit_scale"
NOT_NEEDED = "num_batches_tracked"
"""The BN neck's batch counter, which no feature depends on."""

UNTRAINED = (
    "it has seen no batch: this is a checkpoint of stage 1, whose image encoder is CLIP's or "
    "random and cannot be used for retrieval yet"
)

TEXT_TOLERANCE = 1e-3
"""Largest difference of text weights from CLIP's at which its token embedding fits them."""


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """A model built from a checkpoint."""

    model: MuvaModel
    rows: list[Row]
    """What became of each part of the model and of the checkpoint, in this order."""


def needs_clip(fit: Fit) -> bool:
    """Whether the file lacks CLIP's text encoder or its token embedding."""
    weights = fit.translation
    return not (weights.under(*TOKEN_EMBEDDING) and weights.under(*TEXT_TOWER))


def adopt(
    fit: Fit, *, clip: Callable[[ModelConfig], open_clip.CLIP], clip_name: str, seed: int
) -> Adopted:
    """Build the model of a checkpoint.

    Args:
        clip: returns the CLIP that provides a missing text encoder or token embedding.
        clip_name: its name, for the report.
        seed: of the modules that are initialised randomly.

    Raises:
        MuvaError: shapes differ from those of the settings, or the CLIP has other widths.
    """
    rows: list[Row] = []
    filler = clip(fit.model) if needs_clip(fit) else None
    text, text_heads, text_rows = _text_side(fit, filler, clip_name)
    built = _clip(fit, text, text_heads)
    model = build_model(
        built, model=fit.model, prompts=fit.prompts, identities=fit.identities, seed=seed
    )
    rows += _image_rows(fit)
    if fit.translation.form.has_parts:  # parts have separate positions
        own = fit.translation.weights[f"{VISUAL}positional_embedding"]
        model.image_encoder.positional_embedding.data.copy_(own)
    rows += _parts(fit, model)
    rows += _heads(fit, model)
    rows += text_rows
    return Adopted(model=model.eval(), rows=rows + fit.translation.left_out_rows())


def _clip(fit: Fit, text: dict[str, Tensor], text_heads: int | None) -> open_clip.CLIP:
    """The file's image encoder with this text encoder, for the model's image size."""
    translation = fit.translation
    weights = translation.under(VISUAL) | text
    parts = len(fit.model.parts) if translation.form.has_parts else 0
    positions = weights[f"{VISUAL}positional_embedding"]
    weights[f"{VISUAL}positional_embedding"] = torch.cat([positions[:1], positions[1 + parts :]])
    weights[LOGIT_SCALE] = torch.zeros(())
    try:
        shape = clip_shape(
            weights, vision_heads=fit.vision_heads, text_heads=fit.text_heads or text_heads
        )
        width = weights[f"{VISUAL}proj"].shape[1]
        if width != shape.embed_dim:
            raise MuvaError(
                f"its image features are {width} wide, but the text features {shape.embed_dim}: "
                "name the CLIP that it was made from with --clip"
            )
        return build_clip(
            weights,
            image_size=(fit.model.image_height, fit.model.image_width),
            stride=fit.model.stride,
            pretrained_grid=fit.file_grid,
            shape=replace(shape, quick_gelu=fit.quick_gelu),
        )
    except MuvaError as error:
        raise MuvaError(f"{translation.where}: {error}") from error


def _text_side(
    fit: Fit, filler: open_clip.CLIP | None, clip_name: str
) -> tuple[dict[str, Tensor], int | None, list[Row]]:
    """The text encoder in OpenAI's layout, its number of heads if it is CLIP's, and report rows."""
    translation = fit.translation
    embedding, tower = translation.under(*TOKEN_EMBEDDING), translation.under(*TEXT_TOWER)
    taken = [
        Row(what=what, source=pattern, entries=len(found), outcome="taken")
        for what, found, pattern in (
            ("text transformer", tower, translation.source(*TEXT_TOWER)),
            ("token embedding", embedding, translation.source(*TOKEN_EMBEDDING)),
        )
        if found
    ]
    if filler is None:
        return tower | embedding, None, taken
    own = openai_weights(filler)
    own_embedding = {name: v for name, v in own.items() if name in TOKEN_EMBEDDING}
    own_tower = {name: v for name, v in own.items() if name.startswith(TEXT_TOWER)}
    if not tower:
        left = "its token embedding is not used without a text transformer" if embedding else ""
        row = Row(
            what="text side",
            source=clip_name,
            entries=len(own_tower) + len(own_embedding),
            outcome="filled",
            note=f"missing from the file; {left}".rstrip("; "),
        )
        return own_tower | own_embedding, shape_of(filler).text_heads, [row]
    _check_same_shapes(fit, tower, own_tower, clip_name)
    apart = max(
        float((tower[name].float() - own_tower[name].float()).abs().max()) for name in own_tower
    )
    note = (
        f"matches {clip_name}"
        if apart <= TEXT_TOLERANCE
        else f"differs from {clip_name} by up to {apart:.2g}: its token embedding may not fit"
    )
    filled = Row(
        what="token embedding",
        source=clip_name,
        entries=len(own_embedding),
        outcome="filled",
        note="missing from the file",
    )
    return (
        tower | own_embedding,
        shape_of(filler).text_heads,
        [replace(taken[0], note=note), filled],
    )


def _check_same_shapes(
    fit: Fit, tower: dict[str, Tensor], own: dict[str, Tensor], clip_name: str
) -> None:
    names = sorted(tower.keys() | own.keys())
    differing = [
        name
        for name in names
        if name not in tower or name not in own or tower[name].shape != own[name].shape
    ]
    if differing:
        name = differing[0]
        found, expected = (
            tuple(side[name].shape) if name in side else "absent" for side in (tower, own)
        )
        raise MuvaError(
            f"{fit.translation.where}: its text transformer differs from {clip_name} ({name}: "
            f"{found} in the file, {expected} in {clip_name}): name the CLIP that it was made from "
            f"with --clip"
        )


def _image_rows(fit: Fit) -> list[Row]:
    translation = fit.translation
    position = f"{VISUAL}positional_embedding"
    others = [name for name in translation.under(VISUAL) if name != position]
    rows, columns = fit.grid
    note = f"{rows} x {columns} patches"
    resized = fit.file_grid != fit.grid
    if resized:
        note = f"from {fit.file_grid[0]} x {fit.file_grid[1]} to {note}, bilinearly"
    return [
        Row(
            what="image encoder",
            source=translation.source(VISUAL),
            entries=len(others),
            outcome="taken",
            note=f"{fit.model.image_height} x {fit.model.image_width} pixels",
        ),
        Row(
            what="position embedding",
            source=translation.origins[position],
            entries=1,
            outcome="resized" if resized else "taken",
            note=note,
        ),
    ]


def _parts(fit: Fit, model: MuvaModel) -> list[Row]:
    """Take part tokens and mask predictor from the file, or keep the new ones."""
    translation = fit.translation
    predictor = [name for name in model.state_dict() if name.startswith(MASK_PREDICTOR)]
    if not fit.model.parts:
        return []
    if not translation.form.has_parts:
        note = "initialised randomly: train the model before using it for retrieval"
        return [
            Row(what="parts", source="", entries=1 + len(predictor), outcome="new", note=note),
        ]
    tokens = Row(
        what="part tokens",
        source=translation.source(PART_TOKENS),
        entries=1,
        outcome="taken",
        note=", ".join(fit.model.parts),
    )
    if fit.model.part_token_init == "patch_avg":
        note = "unused zeros: part tokens are means of patches"
        tokens = replace(tokens, outcome="left out", note=note)
    else:
        _take(fit, model, [PART_TOKENS])
    unknown = translation.under(MASK_PREDICTOR).keys() - set(predictor)
    if unknown:
        raise MuvaError(
            f"{translation.where}: its mask predictor has {len(unknown)} entries that a model with "
            f"these settings lacks, such as {translation.origins[min(unknown)]}"
        )
    _take(fit, model, predictor)
    masks = Row(
        what="mask predictor",
        source=translation.source(MASK_PREDICTOR),
        entries=len(predictor),
        outcome="taken",
        note=f"for {fit.grid[0]} x {fit.grid[1]} patches; the recipe sets its number of heads",
    )
    return [tokens, masks]


def _heads(fit: Fit, model: MuvaModel) -> list[Row]:
    """Take neck, classifier and contexts from the file if they fit, or keep the new ones."""
    neck = [name for name in model.state_dict() if name.startswith(BN_NECK)]
    people = f"{fit.identities} identities" if fit.identities else "no identities"
    batches = fit.translation.weights.get(f"{BN_NECK}{NOT_NEEDED}")
    untrained = "" if batches is None or batches else UNTRAINED
    return [
        _taken_or_new(
            fit, model, "BN neck", neck, note=untrained, new="mean 0, variance 1, weights 1"
        ),
        _taken_or_new(fit, model, "classifier", [CLASSIFIER], note=people, new=people),
        _taken_or_new(fit, model, "contexts", [CONTEXTS], note=people, new=people),
    ]


def _take(fit: Fit, model: MuvaModel, names: Sequence[str]) -> None:
    """Copy entries into the model.

    Raises:
        MuvaError: an entry is missing or has another shape.
    """
    problem = _problem(fit, model, names)
    if problem:
        raise MuvaError(
            f"{fit.translation.where}: {problem}. Check that the file is complete and that the "
            "settings are those of its training"
        )
    weights = fit.translation.weights
    model.load_state_dict({n: weights[n] for n in names if n in weights}, strict=False)


def _taken_or_new(
    fit: Fit, model: MuvaModel, what: str, names: Sequence[str], *, new: str, note: str = ""
) -> Row:
    """Copy entries into the model if they exist and fit, or keep the model's new ones."""
    translation = fit.translation
    problem = _problem(fit, model, names)
    if problem:
        return Row(what=what, source="", entries=0, outcome="new", note=f"{new}; {problem}")
    _take(fit, model, names)
    remarks = [
        remark for ours, remark in translation.form.remarks.items() if names[0].startswith(ours)
    ]
    return Row(
        what=what,
        source=translation.source(*names),
        entries=sum(name in translation.weights for name in names),
        outcome="taken",
        note="; ".join(filter(None, [note, *remarks])),
    )


def _problem(fit: Fit, model: MuvaModel, names: Sequence[str]) -> str:
    """Why these entries cannot be copied into the model; empty if they can."""
    translation, ours = fit.translation, model.state_dict()
    for name in names:
        value = translation.weights.get(name)
        if value is None:
            if name.endswith(NOT_NEEDED):
                continue
            theirs = foreign_name(name, translation.form)
            return "missing from the file" if theirs is None else f"the file has no {theirs}"
        if value.shape != ours[name].shape:
            return (
                f"{translation.origins[name]} has the shape {tuple(value.shape)}, but a model with "
                f"these settings has {tuple(ours[name].shape)}"
            )
    return ""
