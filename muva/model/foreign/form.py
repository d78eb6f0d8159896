"""What a form of checkpoint is, and the translation of its names into ours.

Names after translation are OpenAI's for CLIP (`visual.*`, `transformer.*`, …) and those of
`MuvaModel` for what the method adds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from muva.errors import MuvaError

VISUAL = "visual."
PART_TOKENS = "image_encoder.part_tokens"
MASK_PREDICTOR = "image_encoder.mask_predictor."
BN_NECK = "bn_neck."
CLASSIFIER = "classifier.weight"
CONTEXTS = "contexts"

TOKEN_EMBEDDING = ("token_embedding.weight", "token_ids_used", "token_embedding_rows")
"""The whole one, or the two of a reduced vocabulary."""
TEXT_TOWER = ("transformer.", "positional_embedding", "ln_final.", "text_projection")

_BLOCK = ("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias",
          "ln_1.weight", "ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight",
          "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias")  # fmt: skip
_OUTSIDE_BLOCKS = ("class_embedding", "positional_embedding", "proj", "conv1.weight",
                   "ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias")  # fmt: skip

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a program names the weights that it saves."""

    name: str
    title: str
    names: Mapping[str, str]
    """Their name, or its beginning with a dot at the end -> ours."""
    signature: str
    """The beginning that tells this form from the others."""
    needs: tuple[str, ...]
    """Ours, or beginnings, without which a checkpoint is not of this form."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Their name, or its beginning -> why it has no place here."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """Our name, or its beginning -> what to know of what is taken over."""
    has_parts: bool = False
    fixed_grid: bool = True
    """Whether the position embedding is of the grid that the model was trained on."""
    prepare: Callable[[Weights], tuple[dict[str, Tensor], dict[str, str]]] | None = None
    """Other layouts of the same form -> names that `names` knows, and what each was."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of what became of a checkpoint."""

    what: str
    source: str
    """Names in the file, or where it comes from instead."""
    entries: int
    outcome: Literal["taken", "resized", "filled", "new", "left out"]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A checkpoint under our names."""

    form: Form
    where: str
    """The file, for messages."""
    weights: dict[str, Tensor]
    origins: dict[str, str]
    """Our name -> the name in the file."""
    left_out: dict[str, str]
    """Name in the file -> why it was not taken."""

    def under(self, *beginnings: str) -> dict[str, Tensor]:
        """What begins so, by our names."""
        return {n: value for n, value in self.weights.items() if n.startswith(beginnings)}

    def source(self, *beginnings: str) -> str:
        """How the file names what begins so here."""
        return pattern(self.origins[name] for name in self.under(*beginnings))

    def left_out_rows(self) -> list[Row]:
        """What was not taken, by reason."""
        by_reason = defaultdict(list)
        for name, reason in self.left_out.items():
            by_reason[reason].append(name)
        return [
            Row(what="", source=pattern(names), entries=len(names), outcome="left out", note=reason)
            for reason, names in by_reason.items()
        ]


def translate(weights: Weights, form: Form, *, forms: Iterable[Form], where: str) -> Translation:
    """A checkpoint of a form under our names; `forms` are those that an error may point to.

    Raises MuvaError when what the form cannot do without is missing, or the image encoder is not
    CLIP's vision transformer.
    """
    was = {name: name for name in weights}
    named: Weights = weights
    if form.prepare is not None:
        named, was = form.prepare(weights)
    taken: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name, value in named.items():
        ours, reason = _renamed(name, form.names), _renamed(name, form.left_out, whole=True)
        if reason is None and ours is not None:
            taken[ours], origins[ours] = value, was[name]
        else:
            left_out[was[name]] = reason or "not known to this form"
    translation = Translation(
        form=form, where=where, weights=taken, origins=origins, left_out=left_out
    )
    missing = _missing(translation)
    if missing:
        raise MuvaError(_not_of_this_form(translation, missing, weights, forms))
    return translation


def detect_form(weights: Weights, forms: Iterable[Form], *, where: str) -> Form:
    """The form that a checkpoint has by its names; MuvaError with the closest when it has none."""
    forms = list(forms)
    if "bn_neck.running_mean" in weights and "text_encoder.text_projection" in weights:
        raise MuvaError(
            f"{where}: the weights of a model bundle of muva's own; it needs no import: name the "
            "model, or its address, wherever one is asked for"
        )
    for form in forms:
        if any(name.startswith(form.signature) for name in _prepared(weights, form)):
            return form
    closest = _closest(weights, forms)
    hint = (
        f"Closest is {closest.name} ({closest.title}), which has {closest.signature}*"
        if closest
        else "Expected " + ", ".join(f"{f.signature}* of {f.name} ({f.title})" for f in forms)
    )
    raise MuvaError(f"{where}: of no form that is known here ({_sample_of(weights)}). {hint}")


def pattern(names: Iterable[str]) -> str:
    """Names in short: their first steps, `image_encoder.*, fc.weight`."""
    by_first: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_first[name.split(".")[0]].append(name)
    return ", ".join(
        found[0] if len(found) == 1 else f"{first}.*" for first, found in by_first.items()
    )


def foreign_name(ours: str, form: Form) -> str | None:
    """What a form calls what is this here; None where it has no name for it."""
    for theirs, place in form.names.items():
        within = TEXT_TOWER if place == "" else place if place.endswith(".") else ()
        if ours == place or ours.startswith(within):
            return theirs + ours.removeprefix(place)
    return None


def _layers(weights: Iterable[str], tower: str) -> int:
    """How many blocks a tower of CLIP has by OpenAI's names, at least 1."""
    start = f"{tower}transformer.resblocks."
    numbers = [name.removeprefix(start).split(".")[0] for name in weights if name.startswith(start)]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)


def _blocks(weights: Iterable[str], tower: str) -> list[str]:
    steps = range(_layers(weights, tower))
    return [f"{tower}transformer.resblocks.{step}.{name}" for step in steps for name in _BLOCK]


def _text_names(weights: Iterable[str]) -> list[str]:
    around = ("positional_embedding", "ln_final.weight", "ln_final.bias", "text_projection")
    return [*around, *_blocks(weights, "")]


def _missing(translation: Translation) -> list[str]:
    weights, where = translation.weights, translation.where
    if any(name.startswith(f"{VISUAL}layer1.") for name in weights):
        raise MuvaError(
            f"{where}: its image encoder is a ResNet ({translation.source(VISUAL)}): expected a "
            "CLIP vision transformer, which has patches to mask"
        )
    whole = [*(VISUAL + name for name in _OUTSIDE_BLOCKS), *_blocks(weights, VISUAL)]
    missing = [name for name in whole if name not in weights]
    unknown = sorted(set(translation.under(VISUAL)) - set(whole))
    if unknown and not missing:
        raise MuvaError(
            f"{where}: its image encoder has {len(unknown)} entries that CLIP's has not, such as "
            f"{translation.origins[unknown[0]]}: what it computes with them is not known here, so "
            "its features would be others. Expected CLIP's vision transformer as it is"
        )
    if translation.under(*TEXT_TOWER):  # none is filled from CLIP, a part is a damage
        missing += [name for name in _text_names(weights) if name not in weights]
    return missing + [
        name
        for name in translation.form.needs
        if not any(ours == name or ours.startswith(name) for ours in weights)
    ]


def _not_of_this_form(
    translation: Translation, missing: list[str], weights: Weights, forms: Iterable[Form]
) -> str:
    form = translation.form
    theirs = [foreign_name(name, form) or name for name in missing]
    text = (
        f"{translation.where}: not of the form {form.name} ({form.title}): {len(missing)} entries "
        f"are missing, first {', '.join(theirs[:3])}; it has {_sample_of(weights)}"
    )
    others = [f for f in forms if f is not form]
    fitting = [f for f in others if any(n.startswith(f.signature) for n in _prepared(weights, f))]
    if fitting:
        return f"{text}. Its names are those of {fitting[0].title}: --form {fitting[0].name}"
    return f"{text}. Is it whole?"


def _closest(weights: Weights, forms: Iterable[Form]) -> Form | None:
    """The form that knows most of these names, if it knows a tenth of them."""

    def known(form: Form) -> float:
        named = _prepared(weights, form)
        ways = {**form.names, **form.left_out}
        return sum(_renamed(name, ways) is not None for name in named) / max(1, len(named))

    best = max(forms, key=known)
    return best if known(best) >= 0.1 else None


def _prepared(weights: Weights, form: Form) -> Weights:
    return form.prepare(weights)[0] if form.prepare is not None else weights


def _renamed(name: str, names: Mapping[str, str], *, whole: bool = False) -> str | None:
    """The name with its beginning replaced as the table says, or what the table says (`whole`)."""
    for theirs, ours in names.items():
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            return ours if whole else ours + name.removeprefix(theirs)
    return None


def _sample_of(weights: Weights) -> str:
    return f"{len(weights)} entries, such as {', '.join(list(weights)[:3])}"
