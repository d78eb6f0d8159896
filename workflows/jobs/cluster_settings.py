"""What is known of a cluster by its name: a YAML file, so that no command needs five options.

It names places and environment variables, never secrets: the file may lie in a repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from muva.config import Section
from muva.errors import MuvaError, SettingsError, closest
from tracking.redaction import names_secret, redact
from workflows.jobs.shipping import code_folder
from workflows.runtime.authentication import TOKEN_PLACES

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

SUFFIXES = (".yaml", ".yml")


class ClusterSettings(Section):
    """Where a cluster is, and what its jobs are told."""

    address: str | None = None
    """Of the dashboard, http://HOST:PORT. None: that of the environment, or this machine's head."""
    token_variable: VariableName | None = None
    """The environment variable that holds the token, where it is not one of Ray's own places."""
    token_path_variable: VariableName | None = None
    """The same for the path of the token's file."""
    store: str | None = None
    """Where jobs keep artifacts: s3://bucket/prefix, or a folder that all nodes share."""
    tracking_uri: str | None = None
    """MLflow, as the head reaches it."""
    pass_on: tuple[VariableName, ...] = ()
    """Environment variables that jobs get with the value that they have here."""
    wait_for: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Resources that the cluster must have before a job's work begins, of an autoscaler's making:
    GPU: 4."""
    upload: bool | None = None
    """Whether the code goes along. None: with an address."""

    @field_validator("address")
    @classmethod
    def _a_dashboard(cls, address: str | None) -> str | None:
        if address is None:
            return None
        url = address if "://" in address else f"http://{address}"
        if not re.fullmatch(r"https?://[^\s/]+(/.*)?", url):
            raise ValueError(f"expected the dashboard's http://HOST:PORT, found {redact(address)}")
        return url.rstrip("/")

    @field_validator("store")
    @classmethod
    def _seen_from_all_nodes(cls, store: str | None) -> str | None:
        if store is not None and not store.startswith(("s3://", "/", "~")):
            raise ValueError(
                f"{store}: expected s3://bucket/prefix, or the full path of a folder that all "
                "nodes share"
            )
        return store

    @field_validator("pass_on")
    @classmethod
    def _no_secrets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if secrets := [name for name in names if names_secret(name)]:
            raise ValueError(
                f"{', '.join(secrets)}: what a job is given is kept with it, and whoever sees the "
                "cluster sees it; secrets belong into the cluster's own environment"
            )
        return names

    @model_validator(mode="after")
    def _one_token_and_none_written_down(self) -> Self:
        if self.token_variable and self.token_path_variable:
            raise ValueError("token_variable and token_path_variable: expected one of the two")
        for name in ("address", "store", "tracking_uri"):
            value = getattr(self, name)
            if value is not None and redact(value) != value:
                raise ValueError(
                    f"{name} holds a secret, {redact(value)}: leave it out, and set it in the "
                    "cluster's environment"
                )
        return self

    @property
    def token_places(self) -> str:
        """Where the token is looked for, for errors."""
        if self.token_variable:
            return f"in {self.token_variable}"
        if self.token_path_variable:
            return f"in the file that {self.token_path_variable} names"
        return TOKEN_PLACES

    def variables(self) -> dict[str, str]:
        """What jobs are told besides this shell's own settings: variable -> value."""
        told = {name: os.environ[name] for name in self.pass_on if os.environ.get(name)}
        if self.store is not None:
            told["MUVA_STORE"] = self.store
        if self.tracking_uri is not None:
            told["MLFLOW_TRACKING_URI"] = self.tracking_uri
        return told


def load_cluster(cluster: str) -> ClusterSettings:
    """The settings of a cluster by name, or of a YAML file.

    A name is looked for in ~/.muva/clusters, in clusters/ of this folder, and among those that come
    with the code.

    Raises:
        SettingsError: there is no such cluster, or a setting is unknown or impossible.
    """
    file = _file_of(cluster)
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"Cluster {file}: expected a YAML file of settings: {error}") from error
    if not isinstance(settings, dict):
        raise SettingsError(f"Cluster {file}: expected `address: http://HOST:8265` and so on")
    if {"cluster_name", "provider"} <= settings.keys():
        raise SettingsError(
            f"Cluster {file}: this is a file for `ray up`. Expected one with the cluster's "
            f"address, store and tracking_uri; {file.with_suffix('.md').name} beside it shows one."
        )
    try:
        return ClusterSettings.model_validate(settings)
    except ValidationError as error:
        lines = [explained(dict(problem)) for problem in error.errors()]
        raise SettingsError(f"Cluster {file}:\n  " + "\n  ".join(lines)) from error


def _file_of(cluster: str) -> Path:
    given = Path(cluster)
    if given.suffix in SUFFIXES or given.parent != Path():
        if not given.is_file():
            raise SettingsError(f"Cluster {cluster}: there is no file {given.absolute()}")
        return given
    folders = [Path.home() / ".muva" / "clusters", Path("clusters"), code_folder() / "clusters"]
    for folder in folders:
        for suffix in SUFFIXES:
            if (file := folder / f"{cluster}{suffix}").is_file():
                return file
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    there = closest(cluster, known) if known else "there are none"
    raise SettingsError(
        f"Cluster {cluster}: there is none of that name ({there}). Expected "
        f"~/.muva/clusters/{cluster}.yaml or clusters/{cluster}.yaml, or the path of a YAML file."
    )


def explained(problem: dict[str, Any]) -> str:
    """A problem that pydantic found, as a line: where, what was expected, what was found."""
    place = ".".join(str(step) for step in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{place}: there is no such setting; {closest(place, ClusterSettings.model_fields)}"
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if problem["type"] == "value_error":
        return f"{place}: {expected}" if place else expected
    return f"{place}: {expected}, found {redact(repr(problem['input']))}"


def token_of(cluster: ClusterSettings) -> str | None:
    """The token that the cluster's settings lead to, else None; it is for request headers alone.

    Raises:
        MuvaError: the settings name a variable that is not set, or a file that is not there.
    """
    if cluster.token_variable:
        token = os.environ.get(cluster.token_variable, "").strip()
        if not token:
            raise MuvaError(
                f"The cluster's settings name {cluster.token_variable} for its token, and this "
                "variable is not set here."
            )
        return token
    if cluster.token_path_variable:
        path = os.environ.get(cluster.token_path_variable, "")
        try:
            return Path(path).expanduser().read_text().strip() or None
        except OSError as error:
            raise MuvaError(
                f"The cluster's settings name {cluster.token_path_variable} for the file of its "
                f"token: expected a path there, found {path or 'nothing'} ({error.strerror})."
            ) from error
    return None
