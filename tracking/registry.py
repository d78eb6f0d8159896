"""MLflow's model registry: versions of models, and who is champion and challenger.

A version is found again by the address of the model it is of. What it was judged by is kept with
it, for two values can be compared only where they are of the same people.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from muva.errors import MuvaError
from tracking.names import ARTIFACT_TAG
from tracking.recordable import recordable_tags

_ABSENT = {ErrorCode.Name(code) for code in (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)}
"""How stores say that there is no such model, or no such alias of it."""
CHAMPION, CHALLENGER = "champion", "challenger"
_VALUE_TAG = "held-out.mAP"
_VALIDATED_ON_TAG = "muva.judged_by"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a registered model."""

    name: str
    """Of the registered model."""
    number: str
    address: str
    """The model artifact's."""
    value: float
    """mAP on held-out sources, a fraction."""
    validated_on: str
    """Tells whom the value is of: only values of the same people can be compared."""


class Registry:
    """The versions of one registered model."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        """Registers the name where it is new."""
        self._client, self._name = client, name
        try:
            client.get_registered_model(name)
        except MlflowException as error:
            _only_absent(error)
            client.create_registered_model(
                name,
                description="Person re-identification models; `muva promote` moves the aliases.",
            )

    def version_with_alias(self, alias: str) -> Version | None:
        """The version that an alias is of; MuvaError for one that was not registered here."""
        try:
            return _version(self._client.get_model_version_by_alias(self._name, alias))
        except MlflowException as error:
            _only_absent(error)
            return None

    def register(
        self, *, model_id: str, run_id: str, address: str, value: float, validated_on: str
    ) -> Version:
        """The version of a model: the one that is there, or a new one."""
        there = self._client.search_model_versions(f"name = '{self._name}'")
        for one in there:
            if one.tags.get(ARTIFACT_TAG) == address:
                return _version(one)
        made = self._client.create_model_version(
            self._name,
            source=self._source(model_id),
            run_id=run_id,
            model_id=model_id,
            tags=recordable_tags(
                {ARTIFACT_TAG: address, _VALUE_TAG: str(value), _VALIDATED_ON_TAG: validated_on}
            ),
        )
        self._note(model_id, made)
        return _version(made)

    def set_alias(self, alias: str, version: Version | None) -> None:
        """Moves an alias; None takes it away."""
        if version is not None:
            self._client.set_registered_model_alias(self._name, alias, version.number)
        elif self.version_with_alias(alias) is not None:
            self._client.delete_registered_model_alias(self._name, alias)

    def _note(self, model_id: str, made: ModelVersion) -> None:
        """Lets the model's page show the version: a server does so itself, a database does not."""
        tags = self._client.get_logged_model(model_id).tags
        noted = json.loads(tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
        version = {"name": self._name, "version": made.version}
        if version not in noted:
            told = json.dumps([*noted, version])
            self._client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: told})

    def _source(self, model_id: str) -> str:
        """Where the model's files are. A server looks the model up itself; a database cannot."""
        model = self._client.get_logged_model(model_id)
        if self._client.tracking_uri.startswith(("http://", "https://")):
            return model.model_uri
        return model.artifact_location


def _only_absent(error: MlflowException) -> None:
    """Raises what is no absence: a server that fails must not be taken for an empty registry."""
    if error.error_code not in _ABSENT:
        raise error


def _version(found: ModelVersion) -> Version:
    missing = {ARTIFACT_TAG, _VALUE_TAG, _VALIDATED_ON_TAG} - found.tags.keys()
    if missing:
        raise MuvaError(
            f"version {found.version} of the registered model {found.name} has no "
            f"{', '.join(sorted(missing))}: expected one that `muva promote` made. Take its alias "
            "away in MLflow, or register by another name with --as"
        )
    return Version(
        name=found.name,
        number=str(found.version),
        address=found.tags[ARTIFACT_TAG],
        value=float(found.tags[_VALUE_TAG]),
        validated_on=found.tags[_VALIDATED_ON_TAG],
    )
