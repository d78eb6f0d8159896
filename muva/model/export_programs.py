"""Programs that load exported models by rules of their own: what each of them needs of a file.

Apart from `muva.model.export` for the same reason as `muva.model.export_formats`: a help text names
them and needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from muva.errors import SettingsError
from muva.model.export_formats import Form, InputFormat

JsonFiles = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a program that uses exported models expects of them."""

    title: str
    takes: InputFormat
    """How the program prepares the images that it gives to a model."""
    suffixes: Mapping[Form, str]
    """The forms that it loads without losing anything, each with the suffix that it knows."""
    reason: str
    """Why other forms or suffixes are refused, as the end of a sentence."""
    half: Mapping[Form, str] = field(default_factory=dict)
    """Forms that it cannot use in half precision -> why."""
    beside: Callable[[int, int], JsonFiles] = lambda height, width: {}
    """For the model's input size: the JSON files that it reads beside the model."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """What it reads in the metadata of an ONNX file."""


def check_for_program(program: Program, *, form: Form, file: str, half: bool) -> None:
    """Raise SettingsError if the program could not use this file."""
    expected = program.suffixes.get(form)
    if expected is None or not file.endswith(expected):
        usable = ", or ".join(
            f"{form} and a name that ends in {suffix}" for form, suffix in program.suffixes.items()
        )
        raise SettingsError(
            f"--format {form} --out {file}: expected {usable}, because {program.reason}"
        )
    if half and form in program.half:
        raise SettingsError(f"--half: {program.half[form]}")


def _boxmot_metadata(height: int, width: int) -> JsonFiles:
    """`FILE.metadata.json`, from which BoxMOT 25 reads the size of its crops.

    Without it, BoxMOT assumes 256 x 128 for TorchScript. With a model's name in it, BoxMOT guesses
    none.
    """
    return {
        ".metadata.json": {
            "schema_version": 1,
            "model_name": "muva",
            "preprocess": "resize",
            "model_kwargs_schema_version": 1,
            "model_kwargs": {"img_size": [height, width]},
        }
    }


PROGRAMS: Mapping[str, Program] = {
    "boxmot": Program(
        title="BoxMOT",
        takes="imagenet",
        suffixes={"onnx": ".onnx", "torchscript": ".torchscript"},
        reason="BoxMOT recognises formats by their suffix",
        half={
            "torchscript": "BoxMOT converts a whole TorchScript file to one precision, which "
            "breaks this model's masks; expected --format onnx for half precision"
        },
        beside=_boxmot_metadata,
    ),
    # ultralytics/trackers/utils/reid.py of 8.4.190: `.pt` is opened as a YOLO checkpoint, a pickle
    # of Ultralytics' own classes; all else by AutoBackend, with square crops of 224 x 224 unless
    # the input of an ONNX session says another size.
    "ultralytics": Program(
        title="Ultralytics",
        takes="unit",
        suffixes={"onnx": ".onnx"},
        reason="Ultralytics reads the size of its crops from ONNX alone, and gives every other "
        "format squares of 224 x 224",
        properties={
            # AutoBackend takes a file with any metadata for one of a fixed batch of 1, unless its
            # `args` say otherwise, and then encodes one person at a time. It parses the values as
            # Python literals.
            "args": "{'dynamic': True}",
            "names": "{0: 'person'}",
        },
    ),
}
"""`--for NAME` -> what that program expects."""
