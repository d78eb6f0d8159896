"""MLflow's model registry: model versions and the aliases champion and challenger.

A version is found by the address of its model. It records what it was validated on, because two
values are comparable only if they were measured on the same people.
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
"""Error codes with which stores report a missing model or alias."""
CHAMPION, CHALLENGER = "champion", "challenger"
_VALUE_TAG = "held-out.mAP"
_VALIDATED_ON_TAG = "muva.judged_by"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a registered model."""

    name: str
    """The name of the registered model."""
    number: str
    address: str
    """The address of the model artifact."""
    value: float
    """mAP on held-out sources, a fraction."""
    validated_on: str
    """A hash of the validation set: only values with the same hash are comparable."""


class Registry:
    """The versions of one registered model."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        """Create the registered model if it does not exist."""
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
        """The version with an alias; None if there is none.

        Raises:
            MuvaError: the version was not created by `muva promote`.
        """
        try:
            return _version(self._client.get_model_version_by_alias(self._name, alias))
        except MlflowException as error:
            _only_absent(error)
            return None

    def register(
        self, *, model_id: str, run_id: str, address: str, value: float, validated_on: str
    ) -> Version:
        """The version of a model, which is created if it does not exist."""
        existing = self._client.search_model_versions(f"name = '{self._name}'")
        for one in existing:
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
        self._show_version(model_id, made)
        return _version(made)

    def set_alias(self, alias: str, version: Version | None) -> None:
        """Move an alias to a version; None deletes the alias."""
        if version is not None:
            self._client.set_registered_model_alias(self._name, alias, version.number)
        elif self.version_with_alias(alias) is not None:
            self._client.delete_registered_model_alias(self._name, alias)

    def _show_version(self, model_id: str, made: ModelVersion) -> None:
        """Show the version on the page of the logged model, as an MLflow server does by itself."""
        tags = self._client.get_logged_model(model_id).tags
        noted = json.loads(tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
        version = {"name": self._name, "version": made.version}
        if version not in noted:
            versions = json.dumps([*noted, version])
            self._client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: versions})

    def _source(self, model_id: str) -> str:
        """The location of the model's files; only a server can resolve a model URI."""
        model = self._client.get_logged_model(model_id)
        if self._client.tracking_uri.startswith(("http://", "https://")):
            return model.model_uri
        return model.artifact_location


def _only_absent(error: MlflowException) -> None:
    """Raise all other errors: a failing server must not be mistaken for an empty registry."""
    if error.error_code not in _ABSENT:
        raise error


def _version(found: ModelVersion) -> Version:
    missing = {ARTIFACT_TAG, _VALUE_TAG, _VALIDATED_ON_TAG} - found.tags.keys()
    if missing:
        raise MuvaError(
            f"version {found.version} of the registered model {found.name} lacks the tags "
            f"{', '.join(sorted(missing))}: expected a version created by `muva promote`. Remove "
            "its alias in MLflow, or register under another name with --as"
        )
    return Version(
        name=found.name,
        number=str(found.version),
        address=found.tags[ARTIFACT_TAG],
        value=float(found.tags[_VALUE_TAG]),
        validated_on=found.tags[_VALIDATED_ON_TAG],
    )
