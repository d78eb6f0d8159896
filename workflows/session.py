"""What every verb shares: store, tracking server, and the options that name them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muva.data.store import Store, open_store

if TYPE_CHECKING:
    from tracking.runs import Run, RunRef
    from workflows.shared_steps import SharedSteps

AWAY_S = 240.0
"""How long MLflow's server may be away when a step of a pipeline begins: as long as MLflow's own
client tries, so that a step that ends and one that begins wait alike."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where artifacts and runs are kept, and which run the work belongs to."""

    home: Path
    store: Store
    tracking_uri: str | None
    """None where nothing is tracked: inside a trial, whose driver writes for it."""
    experiment: str = "muva"
    parent: RunRef | None = None
    shared: SharedSteps | None = None
    """Where others may do the same steps at the same time: inside a trial."""

    @contextmanager
    def run(
        self,
        name: str,
        *,
        key: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[Run | None]:
        """The run of that key, a child of the parent where there is one; closed by the block."""
        if self.tracking_uri is None:
            yield None
            return
        # MLflow takes a second and 80 MB to import: workers, which have a session too, never do.
        from tracking.addresses import failures_explained
        from tracking.runs import Tracker

        # In the midst of a pipeline a server that is away is waited for; before it, a wrong address
        # is told at once.
        within_s = AWAY_S if self.parent is not None else 0.0
        with failures_explained(self.tracking_uri):
            tracker = Tracker(self.tracking_uri, self.experiment, within_s=within_s)
            opened = tracker.open(name=name, key=key, parent=self.parent, params=params, tags=tags)
            with opened as run:
                yield run

    def within(self, run: Run | None) -> Session:
        """The same session, its runs being children of `run`."""
        return dataclasses.replace(self, parent=run.ref if run else None)


def open_session(
    *,
    home: Path | str = "runs",
    store: str | None = None,
    tracking_uri: str | None = None,
    experiment: str = "muva",
) -> Session:
    """A session whose store and runs are under `home` unless they are named."""
    folder = Path(home).absolute()
    return Session(
        home=folder,
        store=open_store(store or folder / "store"),
        tracking_uri=tracking_uri or f"sqlite:///{folder / 'mlflow.db'}",
        experiment=experiment,
    )


def session_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a verb the options that say where things are, and a `session` made of them."""

    @click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="MUVA_HOME",
        default="runs",
        show_default=True,
        help="Folder of everything that is kept here.",
    )
    @click.option(
        "--store",
        envvar="MUVA_STORE",
        help="Artifacts: a folder or s3://bucket/prefix. [HOME/store]",
    )
    @click.option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow: sqlite:///FILE or http://SERVER. [sqlite in HOME]",
    )
    @functools.wraps(verb)
    def with_session(
        *args: object, home: Path, store: str | None, tracking_uri: str | None, **kwargs: object
    ) -> Any:
        session = open_session(home=home, store=store, tracking_uri=tracking_uri)
        return verb(*args, session=session, **kwargs)

    return with_session


class _Names(click.ParamType):
    """Names with commas between them."""

    name = "A,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names, without the spaces around them."""
        names = tuple(filter(None, (name.strip() for name in value.split(","))))
        if not names:
            self.fail("expected names with commas between them, found none", param, ctx)
        return names


NAMES = _Names()
recipe_option = click.option(
    "--recipe", default="base", show_default=True, help="A shipped recipe, or a YAML file."
)
override_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a setting of the recipe; may be repeated.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def print_result(result: object, *, as_json: bool, text: str) -> None:
    """The verb's result on standard output, for a machine or for a person."""
    click.echo(json.dumps(result, indent=2, default=str) if as_json else text)
