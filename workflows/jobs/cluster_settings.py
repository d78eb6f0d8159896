"""A cluster's settings in a YAML file, so that commands need only the cluster's name.

The file contains addresses and names of environment variables, but no secrets: it may be kept in a
repository.
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
    """Where a cluster is, and the settings of its jobs."""

    address: str | None = None
    """The dashboard's address, http://HOST:PORT. None: from the environment, or this machine's
    head."""
    token_variable: VariableName | None = None
    """The environment variable with the token, unless the token is where Ray looks for it."""
    token_path_variable: VariableName | None = None
    """The environment variable with the path of the token's file."""
    store: str | None = None
    """Where jobs store artifacts: s3://bucket/prefix, or a folder that all nodes share."""
    tracking_uri: str | None = None
    """MLflow's address as seen from the head."""
    pass_on: tuple[VariableName, ...] = ()
    """Environment variables that jobs get with their values on this machine."""
    wait_for: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Resources that the cluster must have before a job's work begins, for example GPU: 4. An
    autoscaler adds them."""
    upload: bool | None = None
    """Whether to upload the code. None: if there is an address."""

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        if address is None:
            return None
        url = address if "://" in address else f"http://{address}"
        if not re.fullmatch(r"https?://[^\s/]+(/.*)?", url):
            raise ValueError(
                f"expected the dashboard's address, http://HOST:PORT, found {redact(address)}"
            )
        return url.rstrip("/")

    @field_validator("store")
    @classmethod
    def _check_store(cls, store: str | None) -> str | None:
        if store is not None and not store.startswith(("s3://", "/", "~")):
            raise ValueError(
                f"{store}: expected s3://bucket/prefix, or the absolute path of a folder that all "
                "nodes share"
            )
        return store

    @field_validator("pass_on")
    @classmethod
    def _check_pass_on(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if secrets := [name for name in names if names_secret(name)]:
            raise ValueError(
                f"{', '.join(secrets)}: Ray keeps a job's variables with the job, visible to "
                "everyone who can see the cluster. Set secrets in the cluster's own environment"
            )
        return names

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        if self.token_variable and self.token_path_variable:
            raise ValueError("token_variable and token_path_variable: expected only one of the two")
        for name in ("address", "store", "tracking_uri"):
            value = getattr(self, name)
            if value is not None and redact(value) != value:
                raise ValueError(
                    f"{name} contains a secret, {redact(value)}: leave it out, and set it in the "
                    "cluster's environment"
                )
        return self

    @property
    def token_places(self) -> str:
        """Where the token is looked up, for error messages."""
        if self.token_variable:
            return f"in {self.token_variable}"
        if self.token_path_variable:
            return f"in the file that {self.token_path_variable} names"
        return TOKEN_PLACES

    def variables(self) -> dict[str, str]:
        """Environment variables for jobs in addition to this shell's settings: name -> value."""
        variables = {name: os.environ[name] for name in self.pass_on if os.environ.get(name)}
        if self.store is not None:
            variables["MUVA_STORE"] = self.store
        if self.tracking_uri is not None:
            variables["MLFLOW_TRACKING_URI"] = self.tracking_uri
        return variables


def load_cluster(cluster: str) -> ClusterSettings:
    """The settings of a cluster, given by its name or a YAML file.

    A name is looked up in ~/.muva/clusters, in clusters/ of this folder, and in the code's own
    clusters/.

    Raises:
        SettingsError: there is no such cluster, or a setting is unknown or invalid.
    """
    file = _find_file(cluster)
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"Cluster {file}: expected a YAML file of settings: {error}") from error
    if not isinstance(settings, dict):
        raise SettingsError(
            f"Cluster {file}: expected settings such as `address: http://HOST:8265`"
        )
    if {"cluster_name", "provider"} <= settings.keys():
        raise SettingsError(
            f"Cluster {file}: this is a file for `ray up`. Expected a file with the cluster's "
            f"address, store and tracking_uri, like the example in {file.with_suffix('.md').name} "
            "beside it."
        )
    try:
        return ClusterSettings.model_validate(settings)
    except ValidationError as error:
        lines = [explain_problem(dict(problem)) for problem in error.errors()]
        raise SettingsError(f"Cluster {file}:\n  " + "\n  ".join(lines)) from error


def _find_file(cluster: str) -> Path:
    path = Path(cluster)
    if path.suffix in SUFFIXES or path.parent != Path():
        if not path.is_file():
            raise SettingsError(f"Cluster {cluster}: the file {path.absolute()} does not exist")
        return path
    folders = [Path.home() / ".muva" / "clusters", Path("clusters"), code_folder() / "clusters"]
    for folder in folders:
        for suffix in SUFFIXES:
            if (file := folder / f"{cluster}{suffix}").is_file():
                return file
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    hint = closest(cluster, known) if known else "no clusters are defined"
    raise SettingsError(
        f"Cluster {cluster}: no cluster has this name ({hint}). Expected "
        f"~/.muva/clusters/{cluster}.yaml or clusters/{cluster}.yaml, or the path of a YAML file."
    )


def explain_problem(problem: dict[str, Any]) -> str:
    """One of pydantic's errors as one line: the setting, what was expected, what was found."""
    setting = ".".join(str(step) for step in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{setting}: unknown setting; {closest(setting, ClusterSettings.model_fields)}"
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if problem["type"] == "value_error":
        return f"{setting}: {expected}" if setting else expected
    return f"{setting}: {expected}, found {redact(repr(problem['input']))}"


def token_of(cluster: ClusterSettings) -> str | None:
    """The token that the cluster's settings refer to, or None; use it only in request headers.

    Raises:
        MuvaError: the settings name a variable that is not set, or a file that does not exist.
    """
    if cluster.token_variable:
        token = os.environ.get(cluster.token_variable, "").strip()
        if not token:
            raise MuvaError(
                f"The cluster's settings expect its token in {cluster.token_variable}, and this "
                "variable is not set."
            )
        return token
    if cluster.token_path_variable:
        path = os.environ.get(cluster.token_path_variable, "")
        try:
            return Path(path).expanduser().read_text().strip() or None
        except OSError as error:
            raise MuvaError(
                f"The cluster's settings expect the path of its token's file in "
                f"{cluster.token_path_variable}, found {path or 'nothing'} ({error.strerror})."
            ) from error
    return None
