"""What an MLflow server can record, asked once before work begins instead of failing after it.

Servers before MLflow 3, and some hosted ones, have no logged models. Runs, parameters, metrics,
data sets and files are recorded on them as everywhere; a model is recorded as a tag of its runs.
"""

from __future__ import annotations

import functools
import logging
import re

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tracking.redaction import redact

WITHOUT_LOGGED_MODELS = (
    "the server has no logged models, which came with MLflow 3: each run records its model as the "
    "tag muva.model only, and `muva promote` and `muva models log` do not work there"
)
_NO_SUCH_ENDPOINT = {404, 405, 501}
_STATUS = re.compile(r"failed with error code (\d{3})")
"""How MLflow's client words a response that is not its server's own JSON. MLflow 3.17."""
_DEFAULT_EXPERIMENT = "0"


def has_logged_models(client: MlflowClient) -> bool:
    """Whether logged models can be recorded: always in a database, and on most servers.

    Raises:
        MlflowException: the server fails in another way.
    """
    uri = client.tracking_uri
    return not uri.startswith("http") or _server_has_logged_models(uri)


def warn_of_missing_models(client: MlflowClient) -> None:
    """Log once per process what cannot be recorded on this server."""
    if not has_logged_models(client):
        _warn_once(client.tracking_uri)


@functools.lru_cache(maxsize=8)
def _warn_once(uri: str) -> None:
    logging.getLogger(__name__).warning("MLflow at %s: %s.", redact(uri), WITHOUT_LOGGED_MODELS)


@functools.lru_cache(maxsize=8)
def _server_has_logged_models(uri: str) -> bool:
    client = MlflowClient(tracking_uri=uri)
    found = [one.experiment_id for one in client.search_experiments(max_results=1)]
    try:
        client.search_logged_models(found or [_DEFAULT_EXPERIMENT], max_results=1)
    except MlflowException as error:
        stated = _STATUS.search(str(error))
        status = int(stated[1]) if stated else error.get_http_status_code()
        if status not in _NO_SUCH_ENDPOINT:
            raise
        return False
    return True
