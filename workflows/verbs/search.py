"""`muva search`: the images of a gallery that are most similar to a query."""

from __future__ import annotations

from typing import Any

import click

from workflows.searching import run_search, search_options


@click.command("search")
@click.option(
    "--gallery", required=True, help="A file of features from `muva embed`, or a gallery."
)
@search_options
def search_verb(gallery: str, **options: Any) -> None:
    """Rank the images of a gallery by their similarity to a query, most similar first.

    A query from the gallery is left out of the results and needs no model. A calibrated model also
    gives the probability that two images show the same person, and separates the matches that pass
    for the same person from those that are not known to.

    \b
    muva search --query person.jpg --gallery crops.parquet --sheet ranked.png
    muva search --query person.jpg --gallery mall --camid 3 --after 2026-11-30T08:00
    muva search --query cam1/0007.jpg --gallery crops.parquet --top 5 --json
    """
    run_search(gallery, **options)
