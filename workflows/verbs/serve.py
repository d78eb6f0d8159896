"""`muva serve`: a model over HTTP, with a page, on Ray Serve."""

from __future__ import annotations

import importlib.util
import sys
import threading
from typing import TYPE_CHECKING, Any

import click

from muva.errors import MuvaError, SettingsError
from workflows.progress import console, say, track
from workflows.serving.settings import Limits, Scaling
from workflows.verb import json_option, print_result, session_options

if TYPE_CHECKING:
    from workflows.session import Session

NEEDED = ("fastapi", "jinja2", "python_multipart", "starlette")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


@click.command("serve")
@click.argument("model", default="synthetic")
@click.option("--gallery", help="A gallery to search: a name in the store, a folder or s3:// URI.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="The port to listen on; 0 chooses any free one.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="A name by which the service is called, if --host is not this machine's loopback. [any]",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Copies of the model.",
)
@click.option(
    "--max-replicas",
    type=click.IntRange(min=1),
    help="Copies of the model under load: they are added and removed by the load. [--replicas]",
)
@click.option("--cpus", type=float, help="CPU cores of each copy. [those of a node, divided]")
@click.option(
    "--gpus",
    type=float,
    default=0.0,
    show_default=True,
    help="GPUs of each copy; 0.5 lets two share one.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=Scaling().batch_size,
    show_default=True,
    help="The most images that are computed together.",
)
@click.option(
    "--batch-wait-ms",
    type=float,
    default=Scaling().batch_wait_ms,
    show_default=True,
    help="How long a batch waits for more images.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="The precision of the model's matrix products.",
)
@click.option(
    "--max-request-mb",
    type=float,
    default=Limits().request_mb,
    show_default=True,
    help="The largest request.",
)
@click.option(
    "--max-image-mb",
    type=float,
    default=Limits().image_mb,
    show_default=True,
    help="The largest image file.",
)
@click.option(
    "--max-pixels",
    type=int,
    default=Limits().pixels,
    show_default=True,
    help="The most pixels of an image.",
)
@click.option(
    "--max-images",
    type=int,
    default=Limits().images,
    show_default=True,
    help="The most images of a request.",
)
@json_option
@session_options
def serve_verb(
    model: str,
    gallery: str | None,
    host: str,
    port: int,
    names: tuple[str, ...],
    replicas: int,
    max_replicas: int | None,
    cpus: float | None,
    as_json: bool,
    session: Session,
    **given: Any,
) -> None:
    """Serve MODEL over HTTP: embed, compare and, with a gallery, search, add and forget.

    Requests need a token: that of MUVA_SERVE_TOKEN, or of ~/.muva/serve-token, which is made. At /
    is a page for searching. On a cluster (RAY_ADDRESS) that serves already, the new model replaces
    the old one without a lost request.

    \b
    muva serve
    muva serve demo-muva-calibrated --gallery lobby --max-replicas 4
    curl -H "Authorization: Bearer $(cat ~/.muva/serve-token)" \\
         -F image=@a.jpg -F image=@b.jpg http://127.0.0.1:8000/v1/compare
    """  # fmt: skip
    _check_installed()
    settings = _sections(replicas, max_replicas, given)
    from workflows.runtime.cluster import cpus_of_one_node, ray_cluster
    from workflows.runtime.local import usable_port
    from workflows.serving.application import resolved
    from workflows.serving.server import deploy, is_served, served, wait
    from workflows.serving.settings import ServeSettings
    from workflows.serving.token import LOOPBACK, access_by, service_token

    token, place = service_token()
    hosts = (*LOOPBACK, *names) if host in LOOPBACK_HOSTS else (names or None)
    service = resolved(
        session,
        ServeSettings(
            model=model,
            gallery=gallery,
            access=access_by(token, hosts=hosts),
            limits=settings["limits"],
            scaling=settings["scaling"],
        ),
    )
    with ray_cluster():
        copies = service.scaling.max_replicas
        if cpus is None:
            cpus = 1.0 if service.scaling.gpus else max(1.0, cpus_of_one_node() // copies)
        scaling = service.scaling.model_copy(update={"cpus": cpus})
        service = service.model_copy(update={"scaling": scaling})
        if is_served():
            with track(f"change the service to {service.model}"):
                deploy(service)
            print_result({"model": service.model}, as_json=as_json, text="The service goes on.")
            return
        if host in LOOPBACK_HOSTS:
            port = usable_port(port)
        with served(service, host=host, port=port):
            address = f"http://{host}:{port}"
            _print(address, service, token, place, as_json=as_json)
            try:
                wait(threading.Event())
            except KeyboardInterrupt:
                console.print("Stopping: requests that are under way are answered first.")


def _check_installed() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MuvaError(
            f"muva serve needs {', '.join(missing)}, which is not installed: "
            'pip install "muva[serve]"'
        )


def _sections(replicas: int, max_replicas: int | None, given: dict[str, Any]) -> dict[str, Any]:
    from pydantic import ValidationError

    try:
        return {
            "limits": Limits(
                request_mb=given["max_request_mb"],
                image_mb=given["max_image_mb"],
                pixels=given["max_pixels"],
                images=given["max_images"],
            ),
            "scaling": Scaling(
                min_replicas=replicas,
                max_replicas=max(replicas, max_replicas or replicas),
                **{
                    name: given[name]
                    for name in ("gpus", "batch_size", "batch_wait_ms", "precision")
                },
            ),
        }
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"{first['loc'][-1]} {first['input']}: {first['msg']}") from error


def _print(address: str, service: Any, token: str, place: str, *, as_json: bool) -> None:
    """Say where the service is; the token itself only on a terminal, in a link to the page."""
    link = address
    if sys.stdout.isatty():
        # After the #, no browser sends it: it is in no log.
        link = f"{address}/login#token={token}"
    print_result(
        {"address": address, "model": service.model, "gallery": service.gallery, "token": place},
        as_json=as_json,
        text=f"MUVA: {link}\nmodel: {service.model}\ntoken: {place}",
    )
    sys.stdout.flush()
    say("Stop the service with Ctrl-C.")
