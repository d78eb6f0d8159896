"""`muva export`: a model as a file that programs can load without muva."""

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
"""BoxMOT recognises formats by these suffixes alone."""


def boxmot_metadata(height: int, width: int) -> dict[str, Any]:
    """The contents of `FILE.metadata.json`, from which BoxMOT 25 reads the size of its crops.

    Without it, BoxMOT assumes 256 x 128 for TorchScript. With a model's name in it, BoxMOT guesses
    none.
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
    "--format", "form", required=True, type=click.Choice(list(SUFFIXES)), help="The file format."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write.",
)
@click.option("--half", is_flag=True, help="Store the image encoder in float16: half the size.")
@click.option(
    "--with-preprocessing",
    is_flag=True,
    help="Include preprocessing: the graph takes decoded uint8 images of the model's size.",
)
@click.option(
    "--layout",
    type=click.Choice(["hwc", "chw"]),
    help="For --with-preprocessing: channels last or first. [hwc]",
)
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier export.")
@click.option(
    "--for",
    "program",
    type=click.Choice([BOXMOT]),
    help="Expect images as this program normalises them.",
)
@json_option
@session_options
def export_verb(
    model: str,
    form: Form,
    out: Path,
    half: bool,
    with_preprocessing: bool,
    layout: str | None,
    overwrite: bool,
    program: str | None,
    as_json: bool,
    session: Session,
) -> None:
    """Write MODEL to a file, and beside it OUT.json, which describes the preprocessing of images.

    The features of the exported model are compared with PyTorch's before the file is put in place,
    and it is opened again there. Batches may have any size. The weights of an ONNX graph above 1.5
    GiB are in a second file, OUT.data. No file is replaced without --overwrite.

    \b
    muva export muva --format onnx --out muva.onnx
    muva export muva --format onnx --out muva-uint8.onnx --with-preprocessing
    muva export muva --format onnx --out muva-boxmot.onnx --for boxmot
    """
    from muva.model.export import check_absent, export
    from muva.models import find_model

    input_format = _input_format(with_preprocessing, layout, program)
    if program == BOXMOT:
        _check_for_boxmot(form, out, half)
    if not overwrite:
        check_absent(out)
    artifact = find_model(session.store, model)
    bundle = muva.load(artifact.uri)
    beside = {}
    if program == BOXMOT:
        beside = {".metadata.json": boxmot_metadata(bundle.image_height, bundle.image_width)}
    with track(f"export {artifact.name} as {form}, and compare"):
        exported = export(
            bundle,
            out,
            form=form,
            model=artifact.address,
            takes=input_format,
            half=half,
            beside=beside,
            overwrite=overwrite,
        )
    size = sum(one.stat().st_size for one in (exported.file, *exported.weights_files))
    result = {
        "file": f"{exported.file}",
        "sidecar": f"{exported.sidecar}",
        "weights_files": [f"{one}" for one in exported.weights_files],
        "model": artifact.uri,
        "bytes": size,
        "largest_difference": exported.largest_difference,
        "least_cosine": exported.least_cosine,
        "images_compared": exported.images,
    }
    text = (
        f"{exported.file}: {size / 1e6:.1f} MB; {exported.sidecar} describes the preprocessing\n"
        f"Features of {exported.images} rendered people differ from PyTorch's by up to "
        f"{exported.largest_difference:.1e} (lowest cosine similarity {exported.least_cosine:.6f})"
    )
    if exported.weights_files:
        weights = ", ".join(f"{one}" for one in exported.weights_files)
        text += f"\nThe weights are in {weights}: keep it beside {exported.file.name}"
    print_result(result, as_json=as_json, text=text)


def _input_format(with_preprocessing: bool, layout: str | None, program: str | None) -> InputFormat:
    if with_preprocessing and program:
        raise click.UsageError(
            f"--for {program} and --with-preprocessing contradict each other: {program} "
            "preprocesses images itself, and the graph undoes it."
        )
    if layout and not with_preprocessing:
        raise click.UsageError("--layout applies only to --with-preprocessing.")
    if program == BOXMOT:
        return "imagenet"
    if not with_preprocessing:
        return "normalised"
    return "chw" if layout == "chw" else "hwc"


def _check_for_boxmot(form: Form, out: Path, half: bool) -> None:
    expected = _BOXMOT_SUFFIXES.get(form)
    if expected is None or out.suffix != expected:
        raise SettingsError(
            f"--format {form} --out {out}: expected onnx and a name that ends in .onnx, or "
            "torchscript and a name that ends in .torchscript, because BoxMOT recognises formats "
            "by their suffix"
        )
    if half and form == "torchscript":
        raise SettingsError(
            "--half: BoxMOT converts a whole TorchScript file to one precision, which breaks this "
            "model's masks; expected --format onnx for half precision"
        )
