"""`muva models`: imports, lists and shows models, logs, saves and pushes them.

An imported model is an artifact like a trained one: it can be evaluated, fine-tuned and loaded in
the same ways. Its address depends on the file's bytes and on the settings it was imported with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from muva.data.artifacts import Artifact, check_name, list_artifacts
from muva.hub.address import SCHEME
from muva.model.bundle_description import HUB
from muva.model.foreign import AUTO, FORMS
from tracking.redaction import redact
from workflows.progress import track
from workflows.verb import (
    as_text,
    json_option,
    override_option,
    print_result,
    readable,
    recipe_option,
    session_options,
)

if TYPE_CHECKING:
    from workflows.session import Session

ACTIVATIONS = {"quick-gelu": True, "gelu": False}


@click.group("models")
def models_verb() -> None:
    """Import checkpoints from other programs; list and show models; log, save or push one.

    \b
    muva models import ViT-B-16_60.pth --name clip-reid
    muva models list
    muva models save muva FOLDER
    muva models push muva ORG/NAME
    """


@models_verb.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--name",
    required=True,
    callback=lambda ctx, param, value: check_name(value),
    help="The model's name.",
)
@click.option(
    "--form",
    type=click.Choice([AUTO, *FORMS]),
    default=AUTO,
    show_default=True,
    help="The program that wrote the checkpoint; auto recognises it by the parameter names.",
)
@click.option(
    "--clip", help="The CLIP that a missing text encoder comes from. [the recipe's model.clip]"
)
@click.option(
    "--grid",
    metavar="ROWSxCOLUMNS",
    help="The grid of the file's position embedding. [the model's, or square]",
)
@click.option(
    "--activation",
    type=click.Choice(list(ACTIVATIONS)),
    help="The activation in CLIP's blocks. [from config.json beside FILE, or quick-gelu]",
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
    """Import a checkpoint from another program.

    FILE contains a state dict or is a Hugging Face folder; no pickled code in it is executed. The
    settings that FILE records are taken from it, all others from --recipe and --set.

    \b
    muva models import muva_market.pth --name authors --set model.predictor_heads=2
    muva models import ViT-B-16_60.pth --name clip-reid --form clip-reid
    muva models import clip-finetuned/ --name mine --activation gelu
    """
    from muva.config import load_recipe
    from workflows.steps.import_model import import_model

    imported = import_model(
        session,
        file,
        load_recipe(recipe, overrides=overrides),
        name=name,
        form=form,
        clip=clip,
        grid=_grid(grid),
        quick_gelu=ACTIVATIONS[activation] if activation else None,
    )
    uri = imported.artifact.uri
    text = [
        as_text(_rows_table(imported.summary)),
        as_text(_settings_table(imported.summary["settings"])),
        uri,
        f"Evaluate it with `muva evaluate {name} --targets …`, fine-tune it with `muva train "
        f"--init {name}`",
    ]
    print_result({"model": uri, **imported.summary}, as_json=as_json, text="\n".join(text))


@models_verb.command("list")
@json_option
@session_options
def list_verb(as_json: bool, session: Session) -> None:
    """List the models in the store and what they were made from.

    \b
    muva models list --json
    """
    rows = readable(list_artifacts(session.store, "models"), _model_data)
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
    """Create a model from an earlier epoch of MODEL.

    EPOCH is one whose checkpoint `--keep-every` has kept. The new model is called
    MODEL-epoch-EPOCH. If you choose an epoch by its score on a target, that target no longer
    measures generalisation.

    \b
    muva models epoch muva 10
    """
    from workflows.steps.encoder import model_of_epoch
    from workflows.steps.named_model import named_model

    result = model_of_epoch(session, named_model(session, model), epoch)
    uri = result.artifact.uri
    print_result({"model": uri, **result.summary}, as_json=as_json, text=uri)


@models_verb.command("log")
@click.argument("model")
@json_option
@session_options
def log_verb(model: str, as_json: bool, session: Session) -> None:
    """Log MODEL to MLflow.

    MLflow can load the logged model in Python and serve it over HTTP. The logged model takes a
    table with a column image (paths, encoded bytes, base64 or pixels) and returns features. A model
    that is already logged is not logged again.

    \b
    muva models log muva
    mlflow models serve -m models:/m-… --env-manager local --host 127.0.0.1 --port 5001
    """
    from muva.models import model_description
    from tracking.names import ARTIFACT_TAG
    from workflows.steps.mlflow_records import served_model
    from workflows.steps.named_model import named_model

    artifact = named_model(session, model)
    settings = model_description(artifact)["model"]
    key = f"log {artifact.address}"
    with session.run(f"log model {artifact.name}", key=key, params=settings) as run:
        assert run is not None
        run.set_tags({ARTIFACT_TAG: artifact.address})
        uri = f"models:/{served_model(run, artifact)}"
        tracking_uri = run.ref.tracking_uri
    serve = f"mlflow models serve -m {uri} --env-manager local --host 127.0.0.1 --port 5001"
    print_result(
        {"mlflow_model": uri, "model": artifact.uri, "run_id": run.ref.run_id},
        as_json=as_json,
        text=f"{uri}\nMLFLOW_TRACKING_URI={redact(tracking_uri)} {serve}",
    )


@models_verb.command("push")
@click.argument("model")
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--revision", help="The branch to push to; it is created if necessary. [main]")
@click.option("--message", help="The commit's message.")
@click.option(
    "--licence", metavar="ID", help="The weights' licence, as the hub names it: apache-2.0."
)
@json_option
@session_options
def push_verb(
    model: str,
    repository: str,
    private: bool,
    revision: str | None,
    message: str | None,
    licence: str | None,
    as_json: bool,
    session: Session,
) -> None:
    """Push MODEL to ORG/NAME on the Hugging Face Hub: weights, configuration and a card.

    The repository is created if there is none. The token is that of HF_TOKEN or `hf auth login`,
    and needs write access. The card shows the scores of MODEL that are in the store. Nothing is
    committed if the hub has the same content already.

    \b
    muva models push muva my-team/muva-market --private
    muva models push muva my-team/muva-market --revision v2 --licence cc-by-nc-4.0
    muva embed crops --model hf://my-team/muva-market --out crops.parquet
    """
    import dataclasses

    from muva.hub.address import parse_hub_address
    from muva.hub.upload import push_bundle
    from muva.models import BUNDLE, local_copy, model_description
    from workflows.results.model_scores import scores_of_model
    from workflows.steps.named_model import named_model

    address = parse_hub_address(repository, revision=revision)
    artifact = named_model(session, model)
    model_description(artifact)  # before anything is created on the hub
    with local_copy(artifact, BUNDLE) as folder, track(f"push {artifact.name} to {address.uri}"):
        pushed = push_bundle(
            folder,
            address.repository,
            private=private or None,
            revision=address.revision,
            commit_message=message,
            licence=licence,
            results=scores_of_model(session.store, artifact),
        )
    text = [pushed.uri, pushed.url]
    if not pushed.changed:
        text.append("Nothing was committed: the hub has this content already")
    if pushed.card_kept:
        text.append("The card was edited on the hub, and stays as it is")
    print_result(
        {"model": artifact.uri, **dataclasses.asdict(pushed)},
        as_json=as_json,
        text="\n".join(text),
    )


@models_verb.command("save")
@click.argument("model")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--compact",
    is_flag=True,
    help="Half-precision weights, without the prompts and classes of the training identities.",
)
@click.option("--licence", metavar="ID", help="The weights' licence, for the card: apache-2.0.")
@json_option
@session_options
def save_verb(
    model: str, folder: Path, compact: bool, licence: str | None, as_json: bool, session: Session
) -> None:
    """Save MODEL as a FOLDER of its own: weights, configuration and a card.

    Such a folder can be copied anywhere; `muva.load` opens it, and every command takes it as a
    model if it is given with a slash, as ./FOLDER. The card shows the scores of MODEL that are in
    the store. A bundle that is already in FOLDER is replaced.

    \b
    muva models save muva muva-market --compact --licence cc-by-nc-4.0
    muva embed crops --model ./muva-market --out crops.parquet
    """
    import muva
    from workflows.results.model_scores import scores_of_model
    from workflows.steps.named_model import named_model

    artifact = named_model(session, model)
    with track(f"save {artifact.name} to {folder}"):
        muva.load(artifact.uri).save(
            folder,
            compact=compact,
            licence=licence,
            results=scores_of_model(session.store, artifact),
        )
    written = sum(file.stat().st_size for file in folder.iterdir())
    print_result(
        {"model": artifact.uri, "folder": f"{folder}", "bytes": written},
        as_json=as_json,
        text=f"{folder}: {written / 1e6:.1f} MB",
    )


@models_verb.command()
@click.argument("model")
@json_option
@session_options
def show(model: str, as_json: bool, session: Session) -> None:
    """Show the settings of MODEL.

    For an imported model, it also shows how the entries of its file were used.

    \b
    muva models show clip-reid
    """
    from muva.models import IMPORTED
    from workflows.steps.named_model import named_model

    artifact = named_model(session, model)
    data = _model_data(artifact)
    imported = data["metadata"].get(IMPORTED)
    table = Table("setting", "value")
    for name, value in data["model"].items():
        table.add_row(f"model.{name}", escape(_plain(value)))
    tables = [as_text(table)]
    if imported:
        tables = [as_text(_rows_table(imported)), as_text(_settings_table(imported["settings"]))]
    size = f"{data['identities']} identities, {data['feature_dim']}-dimensional features"
    print_result(
        data,
        as_json=as_json,
        text="\n".join([artifact.uri, f"made from {data['made_from']}; {size}", *tables]),
    )


def _model_data(artifact: Artifact) -> dict[str, Any]:
    """What is recorded about a model, without its weights."""
    from muva.models import model_description
    from workflows.steps.labels import IMPORTED

    description = model_description(artifact)
    metadata = description["metadata"]
    imported = metadata.get(IMPORTED)
    sources = ", ".join(metadata.get("source_names", ()))
    made_from = f"{imported['file']} ({imported['form']})" if imported else sources
    if hub := metadata.get(HUB):
        pinned = f"{SCHEME}{hub['repository']}@{hub['commit']}"
        made_from = f"{made_from} ({pinned})" if made_from else pinned
    return {
        "address": artifact.address,
        "uri": artifact.uri,
        "made_from": made_from or "unknown",
        **{key: description[key] for key in ("identities", "feature_dim", "model", "metadata")},
    }


def _rows_table(origin: Mapping[str, Any]) -> Table:
    title = f"{origin['file']}, form {origin['form']}, sha256 {origin['sha256'][:16]}"
    table = Table("in the model", "in the file", "entries", "outcome", "note", title=title)
    for row in origin["rows"]:
        cells = (row["what"], row["source"], str(row["entries"] or ""), row["outcome"], row["note"])
        table.add_row(*map(escape, cells))
    return table


def _settings_table(settings: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("setting", "value", "origin")
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
