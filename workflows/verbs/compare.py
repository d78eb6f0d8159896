"""`muva compare`: what was reached here, beside what was published for the same sources and target.

Results are read from the store: each says by its manifests which model, sources and seed it is of.
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

    table = Table(title="Per cent; ours less the paper's MUVA")
    filled = [place for place in range(len(COLUMNS)) if any(line[place] for line in lines)]
    for place in filled:
        table.add_column(COLUMNS[place], overflow="fold")
    for line in lines:
        table.add_row(*(line[place] for place in filled))
    return as_text(table)


@click.command("compare")
@click.argument("what", nargs=-1, metavar="[PROTOCOL | RUN RUN]")
@click.option("--form", type=click.Choice(["table", "markdown", "csv"]), default="table")
@json_option
@session_options
def compare_verb(what: tuple[str, ...], form: str, as_json: bool, session: Session) -> None:
    """Put what was reached here beside what was published, for PROTOCOL or for all there is.

    All figures of ours are of the last epoch: nothing was chosen on a target. Data sets with * hold
    other images than were published.

    Or explain how two runs differ: in settings, in figures with 95 % intervals of the difference,
    in the queries that flipped. RUN is a run in MLflow, by id or name, or a model's name.

    \b
    muva compare
    muva compare single-source --form markdown
    muva compare global-only muva
    """
    from workflows.results.comparison import (
        as_csv,
        as_markdown,
        cells,
        compared,
        protocol_rows,
        results_in,
    )

    if len(what) == 2:
        _explain(session, what[0], what[1], as_json=as_json)
        return
    protocol = what[0] if what else None
    if len(what) > 2 or (protocol is not None and protocol not in PROTOCOLS):
        raise click.UsageError(
            f"Expected nothing, one protocol ({', '.join(PROTOCOLS)}), or two runs, found "
            f"{' '.join(what)}"
        )
    found = compared(results_in(session.store))
    if protocol is not None:
        wanted = protocol_rows(protocol)
        found = [one for one in found if (one.sources, one.target) in wanted]
        there = {(one.sources, one.target) for one in found}
        if missing := [words for row, words in wanted.items() if row not in there]:
            say(f"Without a result here: {'; '.join(missing)}")
    if not found:
        raise MuvaError(
            f"{session.store.uri}: there is no evaluation to compare. `muva run` makes some, for "
            "example `muva run single-source --source market1501`"
        )
    lines = [cells(one) for one in found]
    _record(session, found, lines)
    forms = {"table": _as_table, "markdown": as_markdown, "csv": as_csv}
    data = [
        dataclasses.asdict(one)
        | dict(zip(("mean_ap_difference", "rank1_difference"), one.differences, strict=True))
        for one in found
    ]
    print_result(data, as_json=as_json, text=forms[form](lines))


def _explain(session: Session, first: str, second: str, *, as_json: bool) -> None:
    from workflows.results.differences import differences_between

    found = differences_between(session, first, second)
    sides = [first, second] if first != second else ["first", "second"]
    print_result(
        [dataclasses.asdict(one) for one in found],
        as_json=as_json,
        text="\n\n".join(difference_text(one, sides=sides) for one in found),
    )


def _record(session: Session, found: Sequence[Comparison], lines: Sequence[Sequence[str]]) -> None:
    """The table, and a map of sources against targets for each method, in a run of their own."""
    from tracking.heat_map import heat_map
    from workflows.results.comparison import as_csv, as_markdown

    session = dataclasses.replace(session, experiment=experiment_name("comparison"))
    with session.run("comparison", key="comparison", params={}) as run:
        if run is None:
            return
        run.set_description(as_markdown(lines))
        run.log_text("comparison.csv", as_csv(lines))
        for method in dict.fromkeys(one.method for one in found if one.sources):
            values = {
                (" + ".join(one.sources), one.target): one.mean_ap
                for one in found
                if one.method == method and one.sources and not one.reranked
            }
            if values:
                title = f"mAP of {method}, per cent"
                figure = heat_map(
                    values, title=title, rows="learned from", columns="judged on", order=FOUR
                )
                run.log_figure(f"source-target/{method}.png", figure)


SHOWN_FLIPS = 10
"""Queries of each kind that the text names; --json has all."""


def difference_text(found: Difference, *, sides: Sequence[str]) -> str:
    """A difference for people: figures, settings, queries."""
    table = Table(title=f"On {found.target}, per cent")
    for column in ("", *sides, "difference", "95 %"):
        table.add_column(column, justify="right" if column else "left")
    for name, values, interval in (
        ("mAP", found.mean_ap, found.mean_ap_difference),
        ("rank-1", found.rank1, found.rank1_difference),
    ):
        between = f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
        table.add_row(
            name,
            *(f"{100 * value:.1f}" for value in values),
            f"{100 * (values[1] - values[0]):+.1f}",
            between,
        )
    pieces = [as_text(table)]
    if found.settings:
        settings = Table("setting", *sides, title="Settings that differ")
        for name, values in found.settings.items():
            settings.add_row(name, *(escape("-" if v is None else str(v)) for v in values))
        pieces.append(as_text(settings))
    else:
        pieces.append("No setting differs.")
    for title, flips in (("now right", found.gained), ("now wrong", found.lost)):
        told = [
            f"  {flip.image_id}: rank {flip.ranks[0]} -> {flip.ranks[1]}, AP "
            f"{100 * flip.average_precision[0]:.0f} -> {100 * flip.average_precision[1]:.0f}"
            for flip in flips[:SHOWN_FLIPS]
        ]
        more = [f"  and {len(flips) - SHOWN_FLIPS} more"] if len(flips) > SHOWN_FLIPS else []
        pieces.append(
            "\n".join([f"Queries whose nearest image is {title}: {len(flips)}", *told, *more])
        )
    return "\n\n".join(pieces)
