"""Forms of checkpoints, and the translation of their names into ours.

Translated names are OpenAI's for CLIP (`visual.*`, `transformer.*`, …) and those of `MuvaModel` for
the modules that the method adds.
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
"""The full embedding, or the two entries of a reduced vocabulary."""
TEXT_TOWER = ("transformer.", "positional_embedding", "ln_final.", "text_projection")

_BLOCK = ("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias",
          "ln_1.weight", "ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight",
          "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias")  # fmt: skip
_OUTSIDE_BLOCKS = ("class_embedding", "positional_embedding", "proj", "conv1.weight",
                   "ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias")  # fmt: skip

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a program names the weights in its checkpoints."""

    name: str
    title: str
    names: Mapping[str, str]
    """Their name, or a prefix of it that ends in a dot -> ours."""
    signature: str
    """The prefix that identifies this form."""
    needs: tuple[str, ...]
    """Our names, or prefixes of them, that every checkpoint of this form has."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Their name, or a prefix of it -> why it is not imported."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """Our name, or a prefix of it -> a remark for the report."""
    has_parts: bool = False
    fixed_grid: bool = True
    """Whether the position embedding has the patch grid of the training."""
    prepare: Callable[[Weights], tuple[dict[str, Tensor], dict[str, str]]] | None = None
    """Converts other layouts to the names in `names`; also returns the original name of each."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the report on what became of a checkpoint."""

    what: str
    source: str
    """Names in the file, or where the weights come from instead."""
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
        """The entries with these prefixes, by our names."""
        return {n: value for n, value in self.weights.items() if n.startswith(beginnings)}

    def source(self, *beginnings: str) -> str:
        """The file's names of the entries with these prefixes."""
        return pattern(self.origins[name] for name in self.under(*beginnings))

    def left_out_rows(self) -> list[Row]:
        """A row for each reason why entries were not imported."""
        by_reason = defaultdict(list)
        for name, reason in self.left_out.items():
            by_reason[reason].append(name)
        return [
            Row(what="", source=pattern(names), entries=len(names), outcome="left out", note=reason)
            for reason, names in by_reason.items()
        ]


def translate(weights: Weights, form: Form, *, forms: Iterable[Form], where: str) -> Translation:
    """Rename a checkpoint's entries; `forms` are those that an error message may suggest.

    Raises:
        MuvaError: entries that the form needs are missing, or the image encoder is not CLIP's
            vision transformer.
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
            left_out[was[name]] = reason or "unknown in this form"
    translation = Translation(
        form=form, where=where, weights=taken, origins=origins, left_out=left_out
    )
    missing = _missing(translation)
    if missing:
        raise MuvaError(_not_of_this_form(translation, missing, weights, forms))
    return translation


def detect_form(weights: Weights, forms: Iterable[Form], *, where: str) -> Form:
    """Detect a checkpoint's form by its names.

    Raises:
        MuvaError: it has none of the forms; the message names the closest.
    """
    forms = list(forms)
    if "bn_neck.running_mean" in weights and "text_encoder.text_projection" in weights:
        raise MuvaError(
            f"{where}: these are the weights of a muva model bundle, which needs no import: use "
            "the model's name or address directly"
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
    raise MuvaError(f"{where}: not a known checkpoint form ({_sample_of(weights)}). {hint}")


def pattern(names: Iterable[str]) -> str:
    """Abbreviate names by their first component: `image_encoder.*, fc.weight`."""
    by_first: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_first[name.split(".")[0]].append(name)
    return ", ".join(
        found[0] if len(found) == 1 else f"{first}.*" for first, found in by_first.items()
    )


def foreign_name(ours: str, form: Form) -> str | None:
    """A form's name for one of ours; None if it has none."""
    for theirs, place in form.names.items():
        within = TEXT_TOWER if place == "" else place if place.endswith(".") else ()
        if ours == place or ours.startswith(within):
            return theirs + ours.removeprefix(place)
    return None


def _layers(weights: Iterable[str], tower: str) -> int:
    """The number of blocks in a tower of CLIP by OpenAI's names, at least 1."""
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
            f"{where}: its image encoder is a ResNet ({translation.source(VISUAL)}): expected "
            "CLIP's vision transformer, which has patches to mask"
        )
    whole = [*(VISUAL + name for name in _OUTSIDE_BLOCKS), *_blocks(weights, VISUAL)]
    missing = [name for name in whole if name not in weights]
    unknown = sorted(set(translation.under(VISUAL)) - set(whole))
    if unknown and not missing:
        raise MuvaError(
            f"{where}: its image encoder has {len(unknown)} entries that CLIP's lacks, such as "
            f"{translation.origins[unknown[0]]}: without knowing how they are used, its features "
            "would be wrong. Expected CLIP's unmodified vision transformer"
        )
    if translation.under(
        *TEXT_TOWER
    ):  # a missing text encoder is taken from CLIP, an incomplete one is an error
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
        f"are missing, such as {', '.join(theirs[:3])}; it has {_sample_of(weights)}"
    )
    others = [f for f in forms if f is not form]
    fitting = [f for f in others if any(n.startswith(f.signature) for n in _prepared(weights, f))]
    if fitting:
        return f"{text}. Its names are those of {fitting[0].title}: use --form {fitting[0].name}"
    return f"{text}. Check that the file is complete"


def _closest(weights: Weights, forms: Iterable[Form]) -> Form | None:
    """The form that knows most of these names, if it knows at least a tenth of them."""

    def known(form: Form) -> float:
        named = _prepared(weights, form)
        ways = {**form.names, **form.left_out}
        return sum(_renamed(name, ways) is not None for name in named) / max(1, len(named))

    best = max(forms, key=known)
    return best if known(best) >= 0.1 else None


def _prepared(weights: Weights, form: Form) -> Weights:
    return form.prepare(weights)[0] if form.prepare is not None else weights


def _renamed(name: str, names: Mapping[str, str], *, whole: bool = False) -> str | None:
    """Replace the prefix of a name by the table's value; with `whole`, the value itself."""
    for theirs, ours in names.items():
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            return ours if whole else ours + name.removeprefix(theirs)
    return None


def _sample_of(weights: Weights) -> str:
    return f"{len(weights)} entries, such as {', '.join(list(weights)[:3])}"
