"""`muva compare`: our results beside the published ones for the same sources and target.

Results are read from the store: the manifests record the model, the sources and the seed of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from muva.errors import MuvaError
from muva.paper import FOUR, PROTOCOLS
from tracking.names import experiment_name
from workflows.progress import say
from workflows.verb import as_text, json_option, print_result, session_options

if TYPE_CHECKING:
    from workflows.results.comparison import Comparison
    from workflows.results.differences import Difference
    from workflows.session import Session


def _as_table(lines: Sequence[Sequence[str]]) -> str:
    from workflows.results.comparison import COLUMNS

    table = Table(title="Per cent; differences are ours minus the paper's MUVA")
    nonempty = [column for column in range(len(COLUMNS)) if any(line[column] for line in lines)]
    for column in nonempty:
        table.add_column(COLUMNS[column], overflow="fold")
    for line in lines:
        table.add_row(*(line[column] for column in nonempty))
    return as_text(table)


@click.command("compare")
@click.argument("references", nargs=-1, metavar="[PROTOCOL | RUN RUN]")
@click.option(
    "--form",
    type=click.Choice(["table", "markdown", "csv"]),
    default="table",
    show_default=True,
    help="The format of the table.",
)
@json_option
@session_options
def compare_verb(references: tuple[str, ...], form: str, as_json: bool, session: Session) -> None:
    """Show our results beside the published ones, for PROTOCOL or for every result in the store.

    The column checkpoint names the epoch that was evaluated; muva chooses none on a target. An
    asterisk marks data sets whose images differ from the published ones.

    Or show how two runs differ: in settings, in metrics with 95 % confidence intervals of the
    difference, and in the queries that flipped. RUN is a run in MLflow, by id or name, or a model's
    name.

    \b
    muva compare
    muva compare single-source --form markdown
    muva compare demo-global-only demo-muva
    """
    from workflows.results.comparison import (
        as_csv,
        as_markdown,
        cells,
        compare_results,
        protocol_rows,
        results_in,
    )

    if len(references) == 2:
        _compare_runs(session, references[0], references[1], as_json=as_json)
        return
    protocol = references[0] if references else None
    if len(references) > 2 or (protocol is not None and protocol not in PROTOCOLS):
        raise click.UsageError(
            f"Expected nothing, one protocol ({', '.join(PROTOCOLS)}), or two runs, found "
            f"{' '.join(references)}"
        )
    comparisons = compare_results(results_in(session.store))
    if protocol is not None:
        expected = protocol_rows(protocol)
        comparisons = [one for one in comparisons if (one.sources, one.target) in expected]
        present = {(one.sources, one.target) for one in comparisons}
        if missing := [title for row, title in expected.items() if row not in present]:
            say(f"No result in this store: {'; '.join(missing)}")
    if not comparisons:
        raise MuvaError(
            f"{session.store.uri}: has no evaluation to compare. `muva run` computes evaluations, "
            "for example `muva run single-source --source market1501`"
        )
    lines = [cells(one) for one in comparisons]
    _log_comparison(session, comparisons, lines)
    forms = {"table": _as_table, "markdown": as_markdown, "csv": as_csv}
    data = [
        dataclasses.asdict(one)
        | dict(zip(("mean_ap_difference", "rank1_difference"), one.differences, strict=True))
        for one in comparisons
    ]
    print_result(data, as_json=as_json, text=forms[form](lines))


def _compare_runs(session: Session, first: str, second: str, *, as_json: bool) -> None:
    from workflows.results.differences import differences_between

    differences = differences_between(session, first, second)
    sides = [first, second] if first != second else ["first", "second"]
    print_result(
        [dataclasses.asdict(one) for one in differences],
        as_json=as_json,
        text="\n\n".join(difference_text(one, sides=sides) for one in differences),
    )


def _log_comparison(
    session: Session, comparisons: Sequence[Comparison], lines: Sequence[Sequence[str]]
) -> None:
    """Log the table, and a map of sources against targets for each method, to a run of its own."""
    from tracking.heat_map import heat_map
    from workflows.results.comparison import as_csv, as_markdown

    session = dataclasses.replace(session, experiment=experiment_name("comparison"))
    with session.run("comparison", key="comparison", params={}) as run:
        if run is None:
            return
        run.set_description(as_markdown(lines))
        run.log_text("comparison.csv", as_csv(lines))
        for method in dict.fromkeys(one.method for one in comparisons if one.sources):
            values = {
                (" + ".join(one.sources), one.target): one.mean_ap
                for one in comparisons
                if one.method == method and one.sources and not one.reranked
            }
            if values:
                title = f"mAP of {method}, per cent"
                figure = heat_map(
                    values, title=title, rows="trained on", columns="evaluated on", order=FOUR
                )
                run.log_figure(f"source-target/{method}.png", figure)


SHOWN_FLIPS = 10
"""How many queries of each kind the text lists; --json has all."""


def difference_text(difference: Difference, *, sides: Sequence[str]) -> str:
    """A difference as text: metrics, settings, queries."""
    counts = f"{difference.valid_queries} of {difference.queries} queries are valid"
    table = Table(title=f"On {difference.target}, per cent; {counts}")
    for column in ("", *sides, "difference", "95 %"):
        table.add_column(column, justify="right" if column else "left")
    for name, values, interval in (
        ("mAP", difference.mean_ap, difference.mean_ap_difference),
        ("rank-1", difference.rank1, difference.rank1_difference),
    ):
        bounds = "too few people"
        if interval is not None:
            bounds = f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
        table.add_row(
            name,
            *(f"{100 * value:.1f}" for value in values),
            f"{100 * (values[1] - values[0]):+.1f}",
            bounds,
        )
    pieces = [as_text(table)]
    if difference.settings:
        settings = Table("setting", *sides, title="Settings that differ")
        for name, values in difference.settings.items():
            settings.add_row(name, *(escape("-" if v is None else str(v)) for v in values))
        pieces.append(as_text(settings))
    else:
        pieces.append("No setting differs.")
    for title, flips in (("now right", difference.gained), ("now wrong", difference.lost)):
        entries = [
            f"  {flip.image_id}: rank {flip.ranks[0]} -> {flip.ranks[1]}, AP "
            f"{100 * flip.average_precision[0]:.0f} -> {100 * flip.average_precision[1]:.0f}"
            for flip in flips[:SHOWN_FLIPS]
        ]
        more = [f"  and {len(flips) - SHOWN_FLIPS} more"] if len(flips) > SHOWN_FLIPS else []
        pieces.append(
            "\n".join([f"Queries whose nearest image is {title}: {len(flips)}", *entries, *more])
        )
    return "\n\n".join(pieces)
