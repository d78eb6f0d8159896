"""`muva models`: checkpoints of other programs as models of ours, what models there are, MLflow's.

An imported model is an artifact like a trained one: evaluated, started from and opened alike. Its
address is made of the file's bytes and the settings it was read with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from muva.config import ExperimentConfig, load_recipe, patch_size
from muva.data.artifacts import Artifact, check_name, fingerprint, list_artifacts
from muva.errors import MuvaError
from muva.model.bundle import BUNDLE_FORMAT
from muva.model.clip import check_clip, load_clip
from muva.model.foreign import FORMS, fit_checkpoint
from muva.model.foreign.adopt import adopt, needs_clip
from muva.model.foreign.fit import Given
from muva.model.foreign.plain_clip import weights_file
from muva.models import IMPORTED, described, find_model, store_bundle
from tracking.redaction import redact
from workflows.encoder import epoch_step
from workflows.lineage import served_model
from workflows.progress import as_text, say, track
from workflows.session import (
    Session,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
)
from workflows.steps import ARTIFACT_TAG, Done, Step, do_step

IMPORT_VERSION = 1
"""Raised when the same file comes out as another model."""

AUTO = "auto"
ACTIVATIONS = {"quick-gelu": True, "gelu": False}


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
) -> Done:
    """A checkpoint of another program, a file or a folder, as a model of ours.

    `clip` is where a missing text side comes from instead of the recipe's CLIP. The summary says
    what became of the file's entries. Raises MuvaError for what is not of a known form, and
    SettingsError for settings that the file contradicts.
    """
    given = Given(model=config.model, prompts=config.prompts, quick_gelu=quick_gelu, grid=grid)
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
    artifact = Artifact(session.store, "models", name, fingerprint(settings))

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

    step = Step(
        label=f"import model {name}",
        artifact=artifact,
        format_version=BUNDLE_FORMAT,
        config=settings,
        inputs={},
    )
    return do_step(step, session=session, work=work)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _identity(clip: str) -> list[str]:
    """A CLIP's name; for files of one's own also what is in them."""
    path = Path(clip).expanduser()
    if path.is_file():
        return [path.name, _sha256(path)]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return [path.name, *(f"{file.name} {_sha256(file)}" for file in files)]
    return [clip]


@click.group("models")
def models_verb() -> None:
    """Import checkpoints of other programs, list and show models, log one into MLflow.

    \b
    muva models import ViT-B-16_60.pth --name clip-reid
    muva models list
    """


@models_verb.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--name",
    required=True,
    callback=lambda ctx, param, value: check_name(value),
    help="What to call the model.",
)
@click.option(
    "--form",
    type=click.Choice([AUTO, *FORMS]),
    default=AUTO,
    show_default=True,
    help="Whose checkpoint it is; auto looks at the names in it.",
)
@click.option("--clip", help="Where a missing text side comes from. [the recipe's model.clip]")
@click.option(
    "--grid",
    metavar="ROWSxCOLUMNS",
    help="Of the file's position embedding. [the model's, or square]",
)
@click.option(
    "--activation",
    type=click.Choice(list(ACTIVATIONS)),
    help="Of CLIP's blocks. [what config.json beside it says, or quick-gelu]",
)
@recipe_option
@override_option
@json_option
@session_options
def import_verb(
    file: Path,
    name: str,
    form: str,
    clip: str | None,
    grid: str | None,
    activation: str | None,
    recipe: str,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Import the checkpoint FILE of another program as a model.

    FILE holds a state dict, or is a folder of Hugging Face's; nothing pickled in it is run. What it
    tells of the settings is taken from it, --recipe and --set tell the rest.

    \b
    muva models import muva_market.pth --name authors --set model.predictor_heads=2
    muva models import ViT-B-16_60.pth --name clip-reid --form clip-reid
    muva models import clip-finetuned/ --name mine --activation gelu
    """
    done = import_model(
        session,
        file,
        load_recipe(recipe, overrides=overrides),
        name=name,
        form=form,
        clip=clip,
        grid=_grid(grid),
        quick_gelu=ACTIVATIONS[activation] if activation else None,
    )
    uri = done.artifact.uri
    text = [
        as_text(_rows_table(done.summary)),
        as_text(_settings_table(done.summary["settings"])),
        uri,
        f"muva evaluate {name} --targets … judges it, muva train --init {name} goes on from it",
    ]
    print_result({"model": uri, **done.summary}, as_json=as_json, text="\n".join(text))


@models_verb.command("list")
@json_option
@session_options
def list_verb(as_json: bool, session: Session) -> None:
    """List the models of the store, and what they were made from.

    \b
    muva models list --json
    """
    rows = []
    for artifact in list_artifacts(session.store, "models"):
        try:
            rows.append(_facts(artifact))
        except MuvaError as error:
            say(f"Not listed: {error}")
    table = Table("model", "made from", "parts", "identities", "feature")
    for row in rows:
        table.add_row(
            row["address"].removeprefix("models/"),
            row["made_from"],
            ", ".join(row["model"]["parts"]) or "none",
            str(row["identities"]),
            str(row["feature_dim"]),
        )
    print_result(rows, as_json=as_json, text=as_text(table))


@models_verb.command("epoch")
@click.argument("model")
@click.argument("epoch", type=click.IntRange(min=1))
@json_option
@session_options
def epoch_verb(model: str, epoch: int, as_json: bool, session: Session) -> None:
    """Make a model of an earlier EPOCH of MODEL, one that `--keep-every` has kept.

    It is called MODEL-epoch-EPOCH. To choose among epochs by a target is to look at the target.

    \b
    muva models epoch muva 10
    """
    done = epoch_step(session, find_model(session.store, model), epoch)
    uri = done.artifact.uri
    print_result({"model": uri, **done.summary}, as_json=as_json, text=uri)


@models_verb.command("log")
@click.argument("model")
@json_option
@session_options
def log_verb(model: str, as_json: bool, session: Session) -> None:
    """Log MODEL into MLflow, which loads it in Python and serves it over HTTP.

    It takes a table with a column image (paths, encoded bytes, base64 or pixels) and gives the
    features. One that is logged already is found again.

    \b
    muva models log muva
    mlflow models serve -m models:/m-… --env-manager local --host 127.0.0.1 --port 5001
    """
    artifact = find_model(session.store, model)
    settings = described(artifact)["model"]
    key = f"log {artifact.address}"
    with session.run(f"log model {artifact.name}", key=key, params=settings) as run:
        assert run is not None
        run.tags({ARTIFACT_TAG: artifact.address})
        uri = f"models:/{served_model(run, artifact)}"
        tracking_uri = run.ref.tracking_uri
    serve = f"mlflow models serve -m {uri} --env-manager local --host 127.0.0.1 --port 5001"
    print_result(
        {"mlflow_model": uri, "model": artifact.uri, "run_id": run.ref.run_id},
        as_json=as_json,
        text=f"{uri}\nMLFLOW_TRACKING_URI={redact(tracking_uri)} {serve}",
    )


@models_verb.command()
@click.argument("model")
@json_option
@session_options
def show(model: str, as_json: bool, session: Session) -> None:
    """Show the settings of MODEL, and for an imported one what became of its file's entries.

    \b
    muva models show clip-reid
    """
    artifact = find_model(session.store, model)
    facts = _facts(artifact)
    imported = facts["metadata"].get(IMPORTED)
    table = Table("setting", "value")
    for name, value in facts["model"].items():
        table.add_row(f"model.{name}", escape(_plain(value)))
    shown = [as_text(table)]
    if imported:
        shown = [as_text(_rows_table(imported)), as_text(_settings_table(imported["settings"]))]
    told = f"{facts['identities']} identities, features {facts['feature_dim']} wide"
    print_result(
        facts,
        as_json=as_json,
        text="\n".join([artifact.uri, f"made from {facts['made_from']}; {told}", *shown]),
    )


def _facts(artifact: Artifact) -> dict[str, Any]:
    """A model without its weights."""
    description = described(artifact)
    metadata = description["metadata"]
    imported = metadata.get(IMPORTED)
    sources = ", ".join(source.rpartition("-")[0] for source in metadata.get("sources", ()))
    made_from = f"{imported['file']} ({imported['form']})" if imported else sources
    return {
        "address": artifact.address,
        "uri": artifact.uri,
        "made_from": made_from or "unknown",
        **{key: description[key] for key in ("identities", "feature_dim", "model", "metadata")},
    }


def _rows_table(origin: Mapping[str, Any]) -> Table:
    title = f"{origin['file']}, form {origin['form']}, sha256 {origin['sha256'][:16]}"
    table = Table("here", "in the file", "entries", "outcome", "note", title=title)
    for row in origin["rows"]:
        cells = (row["what"], row["source"], str(row["entries"] or ""), row["outcome"], row["note"])
        table.add_row(*map(escape, cells))
    return table


def _settings_table(settings: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("setting", "value", "told by")
    for setting in settings:
        table.add_row(setting["name"], escape(_plain(setting["value"])), setting["origin"])
    return table


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_plain(inner) for inner in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise click.UsageError(f"--grid {text}: expected ROWSxCOLUMNS, for example 14x14")
    return int(match[1]), int(match[2])
