"""`muva experts`: the models that can ground body parts, and their licences."""

from __future__ import annotations

import dataclasses

import click
from rich.table import Table

from workflows.verb import as_text, json_option, print_result


@click.command("experts")
@json_option
def experts_verb(as_json: bool) -> None:
    """List the grounding experts: size, licence of the weights, and whether they give scores.

    \b
    muva experts
    muva ground mine --expert florence-2
    """
    from muva.grounding.experts import EXPERTS

    table = Table("expert", "weights", "parameters", "memory", "licence of the weights", "scores")
    for name, info in EXPERTS.items():
        table.add_row(
            name,
            info.checkpoint or "none",
            info.parameters or "none",
            f"{info.memory_gb:g} GB" if info.memory_gb else "none",
            info.licence,
            "yes" if info.gives_scores else "no",
        )
    rows = [{"name": name, **dataclasses.asdict(info)} for name, info in EXPERTS.items()]
    print_result(rows, as_json=as_json, text=as_text(table))
