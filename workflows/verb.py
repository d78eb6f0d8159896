"""What all verbs share: options for locations and computing resources, and the output.

Verbs import their libraries inside functions: importing torch, Ray and MLflow takes seconds, which
neither a help text nor a mistyped option should cost.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from muva.config import ExecutionConfig
from muva.errors import MuvaError, SettingsError
from workflows.progress import escaped, say

if TYPE_CHECKING:
    from PIL import Image

S = TypeVar("S")
T = TypeVar("T")

TABLE_COLUMNS = 120
"""The width of tables where there is no terminal."""


def write_sheet(sheet: Path, picture: Image.Image) -> None:
    """Write a picture in the format that the file's suffix names.

    Raises:
        MuvaError: the suffix names no image format, or the file cannot be written.
    """
    try:
        picture.save(sheet)
    except (OSError, ValueError) as error:
        raise MuvaError(
            f"The sheet {sheet} cannot be written ({error}): expected a name that ends in .png or "
            ".jpg, in an existing folder"
        ) from error


home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="MUVA_HOME",
    default="runs",
    show_default=True,
    help="Folder for the store, the runs and the reports.",
)
tracking_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow's address: sqlite:///FILE or http://SERVER. [SQLite in HOME]",
)


def session_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --home, --store and --tracking-uri to a verb, which gets them as a `session`."""

    @home_option
    @click.option(
        "--store",
        envvar="MUVA_STORE",
        help="Where artifacts are stored: a folder or s3://bucket/prefix. [HOME/store]",
    )
    @tracking_option
    @functools.wraps(verb)
    def with_session(
        *args: object, home: Path, store: str | None, tracking_uri: str | None, **kwargs: object
    ) -> Any:
        from workflows.session import open_session

        session = open_session(home=home, store=store, tracking_uri=tracking_uri)
        return verb(*args, session=session, **kwargs)

    return with_session


class _Names(click.ParamType):
    """A comma-separated list of names."""

    name = "A,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names, without surrounding spaces."""
        names = tuple(filter(None, (name.strip() for name in value.split(","))))
        if not names:
            self.fail("expected names separated by commas, found none", param, ctx)
        return names


NAMES = _Names()


recipe_option = click.option(
    "--recipe", default="base", show_default=True, help="A shipped recipe or a YAML file."
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
    """Print a verb's result on standard output, as JSON or as text."""
    click.echo(json.dumps(result, indent=2, default=str) if as_json else escaped(text))


def readable(listed: Iterable[S], read: Callable[[S], T]) -> list[T]:
    """What `read` returns for each entry of a list; those that cannot be read are reported."""
    found = []
    for entry in listed:
        try:
            found.append(read(entry))
        except MuvaError as error:
            say(f"Not listed: {error}")
    return found


def as_text(table: Table) -> str:
    """A table as plain text for standard output, with its title on one line above it.

    It fits into the terminal, or into the width that COLUMNS says: long cells continue on the next
    line of their row. In a file or a pipe it has `TABLE_COLUMNS`.
    """
    columns = shutil.get_terminal_size(fallback=(TABLE_COLUMNS, 0)).columns
    # Not standard output: the console writes to its file even while it captures.
    text = io.StringIO()
    writer = Console(file=text, width=columns, highlight=False)
    untitled = copy.copy(table)
    untitled.title = None
    untitled.columns = [dataclasses.replace(one, overflow="fold") for one in table.columns]
    if table.title:
        writer.print(table.title, markup=False, soft_wrap=True)
    writer.print(untitled)
    return text.getvalue().rstrip()


def worker_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option to a verb for each setting of `execution`; they win over `--set`."""
    fields = ExecutionConfig.model_json_schema()["properties"]

    @functools.wraps(verb)
    def with_execution(*args: object, overrides: tuple[str, ...], **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in fields}
        execution = [f"execution.{k}={value}" for k, value in values.items() if value is not None]
        return verb(*args, overrides=(*overrides, *execution), **kwargs)

    for name, field in reversed(fields.items()):
        with_execution = _execution_option(name, field)(with_execution)
    return with_execution


def _execution_option(name: str, field: Mapping[str, Any]) -> Callable[..., Any]:
    """The option for a setting, from its JSON schema; by default the recipe's value applies."""
    option = f"--{name.replace('_', '-')}"
    text = " ".join(field["description"].split())
    schema = next(one for one in field.get("anyOf", [field]) if one["type"] != "null")
    if schema["type"] == "boolean":
        return click.option(f"{option}/--no-{option[2:]}", name, default=None, help=text)
    param_type: click.ParamType = click.IntRange(min=schema.get("minimum"))
    if "enum" in schema:
        param_type = click.Choice([str(choice) for choice in schema["enum"]])
    return click.option(option, name, type=param_type, help=text)


def cluster_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--cluster` and `--address` to a verb, which gets them as a `cluster`."""

    @click.option(
        "--cluster", "name", metavar="NAME|FILE", help="The cluster's settings: a name or a file."
    )
    @click.option(
        "--address",
        help="The cluster's dashboard, http://HOST:PORT. [RAY_ADDRESS, or this machine]",
    )
    @functools.wraps(verb)
    def with_cluster(*args: object, name: str | None, address: str | None, **kwargs: object) -> Any:
        from pydantic import ValidationError

        from workflows.jobs.cluster_settings import ClusterSettings, explain_problem, load_cluster

        if name is not None and address is not None:
            raise click.UsageError("--cluster and --address: expected only one of the two.")
        cluster = load_cluster(name) if name is not None else ClusterSettings()
        if address is not None:
            try:
                cluster = ClusterSettings(address=address)
            except ValidationError as error:
                problem = explain_problem(dict(error.errors()[0]))
                raise SettingsError(f"--address: {problem}") from error
        return verb(*args, cluster=cluster, **kwargs)

    return with_cluster
