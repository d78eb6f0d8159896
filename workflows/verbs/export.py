"""`muva export`: a model as a file that programs without muva load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import muva
from muva.errors import SettingsError
from muva.model.export_formats import SUFFIXES
from workflows.progress import track
from workflows.verb import json_option, print_result, session_options

if TYPE_CHECKING:
    from muva.model.export_formats import Form, InputFormat
    from workflows.session import Session

BOXMOT = "boxmot"
_BOXMOT_SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript"}
"""BoxMOT tells forms by these alone."""


def boxmot_metadata(height: int, width: int) -> dict[str, Any]:
    """What BoxMOT 25 reads beside a file, `FILE.metadata.json`: the size that it cuts people to.

    Of TorchScript it would take 256 x 128 otherwise. A model's name keeps it from guessing one.
    """
    return {
        "schema_version": 1,
        "model_name": "muva",
        "preprocess": "resize",
        "model_kwargs_schema_version": 1,
        "model_kwargs": {"img_size": [height, width]},
    }


@click.command("export")
@click.argument("model")
@click.option(
    "--format", "form", required=True, type=click.Choice(list(SUFFIXES)), help="What to write."
)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file."
)
@click.option("--half", is_flag=True, help="The image encoder in float16: half the size.")
@click.option(
    "--with-preprocessing",
    "prepares",
    is_flag=True,
    help="The graph takes uint8 images of the model's size, as decoded.",
)
@click.option(
    "--layout",
    type=click.Choice(["hwc", "chw"]),
    help="Of these uint8 images: colours last or first. [hwc]",
)
@click.option(
    "--for",
    "reader",
    type=click.Choice([BOXMOT]),
    help="Take images as this program normalises them.",
)
@json_option
@session_options
def export_verb(
    model: str,
    form: Form,
    out: Path,
    half: bool,
    prepares: bool,
    layout: str | None,
    reader: str | None,
    as_json: bool,
    session: Session,
) -> None:
    """Write MODEL as a file, and beside it OUT.json, which says how images are prepared for it.

    The file is compared with PyTorch before it gets its name. Batches may be of any length.

    \b
    muva export muva --format onnx --out muva.onnx
    muva export muva --format onnx --out muva-uint8.onnx --with-preprocessing
    muva export muva --format onnx --out muva-boxmot.onnx --for boxmot
    """
    from muva.model.export import export
    from muva.models import find_model

    takes = _takes(prepares, layout, reader)
    if reader == BOXMOT:
        _check_for_boxmot(form, out, half)
    found = find_model(session.store, model)
    bundle = muva.load(found.uri)
    beside = {}
    if reader == BOXMOT:
        beside = {".metadata.json": boxmot_metadata(bundle.image_height, bundle.image_width)}
    with track(f"export {found.name} as {form}, and compare"):
        done = export(
            bundle, out, form=form, model=found.address, takes=takes, half=half, beside=beside
        )
    size = done.file.stat().st_size
    result = {
        "file": f"{done.file}",
        "sidecar": f"{done.sidecar}",
        "model": found.uri,
        "bytes": size,
        "largest_difference": done.largest_difference,
        "least_cosine": done.least_cosine,
        "images_compared": done.images,
    }
    text = (
        f"{done.file}: {size / 1e6:.1f} MB; {done.sidecar} says how images are prepared\n"
        f"on {done.images} rendered people its features differ from PyTorch's by up to "
        f"{done.largest_difference:.1e} (least cosine {done.least_cosine:.6f})"
    )
    print_result(result, as_json=as_json, text=text)


def _takes(prepares: bool, layout: str | None, reader: str | None) -> InputFormat:
    if prepares and reader:
        raise click.UsageError(
            f"--for {reader} and --with-preprocessing contradict each other: {reader} prepares "
            "images itself, and the graph undoes it."
        )
    if layout and not prepares:
        raise click.UsageError("--layout is of --with-preprocessing.")
    if reader == BOXMOT:
        return "imagenet"
    if not prepares:
        return "normalised"
    return "chw" if layout == "chw" else "hwc"


def _check_for_boxmot(form: Form, out: Path, half: bool) -> None:
    expected = _BOXMOT_SUFFIXES.get(form)
    if expected is None or out.suffix != expected:
        raise SettingsError(
            f"--format {form} --out {out}: expected onnx with a name that ends in .onnx, or "
            "torchscript with one that ends in .torchscript, for BoxMOT tells them by it"
        )
    if half and form == "torchscript":
        raise SettingsError(
            "--half: BoxMOT turns all of a TorchScript file into one precision, which this model's "
            "masks do not survive; expected --format onnx for half precision"
        )
