"""The application that Ray Serve runs: the API in front, replicas of the model behind it.

`build` is what the `import_path` of a Serve config or of a RayService names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from muva.errors import SettingsError
from workflows.serving.settings import ServeSettings

NAME = "muva"
API, RECOGNISER = "Api", "Recogniser"
WAITING_PER_REPLICA = 16
"""How many batches of requests may wait for each replica before others are refused with 503."""
_GRACE_S = 60.0
_HEALTH_PERIOD_S = 5.0
_API_ONGOING = 1000


@serve.ingress()
class Api:
    """Answers HTTP requests, with the help of the replicas of the model."""

    def __init__(self, handle: DeploymentHandle, settings: ServeSettings) -> None:
        self._handle = handle
        self._settings = settings

    def __serve_build_asgi_app__(self) -> Any:
        from workflows.serving.api import build_api
        from workflows.serving.metrics import RayMeter, scraped
        from workflows.serving.replicas import ServeReplicas

        return build_api(
            ServeReplicas(self._handle), self._settings, meter=RayMeter(), metrics=scraped
        )


def application(settings: ServeSettings) -> Application:
    """The API and the model, bound to their settings.

    Ray Serve 2.60 gives every deployment of `serve.run` a version of its own, so a new model
    replaces the processes of the API too. Both finish what they have begun.
    """
    from workflows.serving.recogniser import Recogniser

    scaling = settings.scaling
    replicas: dict[str, Any] = {"num_replicas": scaling.min_replicas}
    if scaling.max_replicas > scaling.min_replicas:
        replicas = {
            "autoscaling_config": {
                "min_replicas": scaling.min_replicas,
                "max_replicas": scaling.max_replicas,
                "target_ongoing_requests": scaling.batch_size,
            }
        }
    common: dict[str, Any] = {
        "graceful_shutdown_timeout_s": _GRACE_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }
    recogniser = serve.deployment(
        Recogniser,
        name=RECOGNISER,
        # Twice a batch: one is computed while the next one is decoded and collected.
        max_ongoing_requests=2 * scaling.batch_size,
        max_queued_requests=WAITING_PER_REPLICA * scaling.batch_size * scaling.max_replicas,
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        **replicas,
        **common,
    )
    api = serve.deployment(
        Api,
        name=API,
        max_ongoing_requests=_API_ONGOING,
        ray_actor_options={"num_cpus": 0},
        **common,
    )
    replica = cast(Deployment, recogniser).bind(settings)
    return cast(Deployment, api).bind(replica, settings)


def build(arguments: Mapping[str, Any]) -> Application:
    """The application of a Serve config's `args`: `model`, `gallery`, `hosts`, and sections.

    The token is in the environment of the cluster, MUVA_SERVE_TOKEN: arguments are shown on Ray's
    dashboard. The store is that of MUVA_STORE, or in MUVA_HOME.

    Raises:
        SettingsError: an argument is unknown or has another type, or there is no token.
    """
    from workflows.serving.token import TOKEN_VARIABLE, access_by, service_token
    from workflows.session import open_session

    given = dict(arguments)
    if not os.environ.get(TOKEN_VARIABLE):
        raise SettingsError(
            f"{TOKEN_VARIABLE} is not set on the cluster: expected the token of the service, from "
            "a secret"
        )
    session = open_session(
        home=Path(os.environ.get("MUVA_HOME") or "runs"), store=os.environ.get("MUVA_STORE")
    )
    hosts = given.pop("hosts", None)
    access = access_by(service_token()[0], hosts=None if hosts is None else tuple(hosts))
    try:
        settings = ServeSettings(**given, access=access)
    except (ValidationError, TypeError) as error:
        raise SettingsError(f"the args of the application {NAME}: {error}") from error
    return application(resolved(session, settings))


def resolved(session: Any, settings: ServeSettings) -> ServeSettings:
    """The settings with addresses in place of names, which any replica can open.

    Raises:
        MuvaError: there is no such model or gallery, or the gallery is of another model.
    """
    from muva.models import model_description
    from workflows.serving.gallery import check_same_model
    from workflows.steps.named_model import named_model

    artifact = named_model(session, settings.model)
    weights = model_description(artifact)["sha256"]
    gallery = None
    if settings.gallery is not None:
        from workflows.steps.galleries import named_gallery

        table = named_gallery(session, settings.gallery)
        check_same_model(table, weights)
        gallery = table.uri
    return settings.model_copy(update={"model": artifact.uri, "gallery": gallery})
