"""`muva train`: prompts (stage 1), then the image encoder (stage 2), on pooled source domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from muva.data.artifacts import Artifact, check_name
from workflows.progress import say
from workflows.verb import (
    NAMES,
    as_text,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
    worker_options,
)

if TYPE_CHECKING:
    from muva.config import ExperimentConfig
    from workflows.session import Session


def _initialisation(
    start: Artifact, sources: Sequence[Artifact], config: ExperimentConfig
) -> list[dict[str, str]]:
    """Which weights a training takes from its initial model, and which it initialises itself."""
    from muva.data.sources import Sources
    from muva.models import model_description
    from workflows.steps.training_inputs import knows_the_same

    description = model_description(start)
    split_sources = Sources.of(sources, config)
    same_people = knows_the_same(
        description["metadata"],
        description["identities"],
        split_sources.domains,
        split_sources.identities(),
    )
    masks = ["part tokens", "mask predictor"] if config.model.parts else []
    rows = [(what, "taken", "") for what in ("image encoder", *masks, "BN neck")]
    note = "the same people"
    if not same_people:
        note = f"the model's {description['identities']} identities are other or unknown people"
    rows.append(("classifier", "taken" if same_people else "new", note))
    rows.append(("contexts", "new", "stage 1 learns them for this model's features"))
    rows.append(("text side", "new", f"from {config.model.clip}, frozen"))
    return [dict(zip(("what", "outcome", "note"), row, strict=True)) for row in rows]


def _start_table(rows: Sequence[Mapping[str, str]], *, title: str) -> Table:
    table = Table("weights", "outcome", "note", title=title)
    for row in rows:
        table.add_row(row["what"], row["outcome"], escape(row["note"]))
    return table


@click.command("train")
@click.option("--sources", type=NAMES, help="Data sets to train on. [the recipe's]")
@click.option("--init", help="Initialise from this model instead of CLIP.")
@click.option(
    "--name",
    default="muva",
    show_default=True,
    callback=lambda ctx, param, value: check_name(value),
    help="The model's name.",
)
@recipe_option
@override_option
@worker_options
@json_option
@session_options
def train_verb(
    sources: tuple[str, ...] | None,
    init: str | None,
    name: str,
    recipe: str,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Train prompts and image encoder on source domains; grounds body parts first if needed.

    \b
    muva train --sources syn-boulevard,syn-harbour --recipe demo
    muva train --sources mine --init muva --set stage2.epochs=10
    """
    from muva.config import ModelConfig, load_recipe
    from muva.model.muva_model import check_same_settings
    from muva.models import model_description
    from workflows.runtime.on_demand import cluster_on_demand
    from workflows.runtime.workers import Workers
    from workflows.steps.ground import ground, labels_of
    from workflows.steps.import_data import datasets_of
    from workflows.steps.named_model import named_model
    from workflows.steps.train import check_training, declare_training, train

    config = load_recipe(recipe, overrides=overrides)
    names = sources or config.sources
    if not names:
        raise click.UsageError("--sources is missing: on which data sets should it train?")
    config = config.model_copy(update={"sources": names, "targets": ()})
    start = named_model(session, init) if init else None
    if start is not None:
        settings = ModelConfig.model_validate(model_description(start)["model"])
        check_same_settings(config.model, settings)
    workers = Workers.of(config.execution)
    with cluster_on_demand():
        datasets = [one.artifact for one in datasets_of(session, names, config.synthetic).values()]
        labels = None
        if config.model.parts and config.grounding is not None:
            labels = [labels_of(session, dataset, config.grounding) for dataset in datasets]
        training = declare_training(
            session, config, sources=datasets, labels=labels, name=name, init=start
        )
        if not training.is_finished:
            check_training(config, datasets, workers)
        loaded = _initialisation(start, datasets, config) if start is not None else None
        if loaded:
            say(as_text(_start_table(loaded, title=f"Initialised from {init}")))
        if labels is not None and config.grounding is not None:
            ground(session, datasets, config.grounding)
        trained = train(session, training, workers)
    uri = trained.model.uri
    print_result(
        {"model": uri, **trained.encoder.summary, **({"start": loaded} if loaded else {})},
        as_json=as_json,
        text=f"{uri}\nCompute features with muva.load({uri!r}).embed(images)",
    )
