"""`muva export`: a model as a file that programs can load without muva."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import muva
from muva.model.export_formats import SUFFIXES
from muva.model.export_programs import PROGRAMS, check_for_program
from workflows.progress import track
from workflows.verb import json_option, print_result, session_options

if TYPE_CHECKING:
    from muva.model.export_formats import Form, InputFormat
    from workflows.session import Session


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
    type=click.Choice(list(PROGRAMS)),
    help="Take images as this program prepares them, in the form that it loads.",
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
    muva export muva --format onnx --out muva-ultralytics.onnx --for ultralytics
    """
    from muva.model.export import check_absent, export
    from workflows.steps.named_model import named_model

    input_format = _input_format(with_preprocessing, layout, program)
    rules = PROGRAMS[program] if program else None
    if rules is not None:
        check_for_program(rules, form=form, file=f"{out}", half=half)
    if not overwrite:
        check_absent(out)
    artifact = named_model(session, model)
    bundle = muva.load(artifact.uri)
    with track(f"export {artifact.name} as {form}, and compare"):
        exported = export(
            bundle,
            out,
            form=form,
            model=artifact.address,
            takes=input_format,
            half=half,
            beside=rules.beside(bundle.image_height, bundle.image_width) if rules else None,
            properties=rules.properties if rules else None,
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
    if program:
        return PROGRAMS[program].takes
    if not with_preprocessing:
        return "normalised"
    return "chw" if layout == "chw" else "hwc"
