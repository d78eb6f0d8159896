"""Proxies from the environment see neither what this machine says to itself, nor a token."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from muva.errors import MuvaError
from muva.grounding.chat_client import RetrySettings
from muva.grounding.expert import GroundingImage
from muva.grounding.experts.http import Endpoint, HttpExpert
from muva.proxies import LOOPBACK, exempt_loopback
from muva.synthetic.sensor import encode_jpeg
from workflows.jobs.client import jobs_client
from workflows.jobs.cluster_settings import ClusterSettings
from workflows.jobs.head import http_status

CLIENTS = """
import asyncio, os, sys, urllib.request
import muva
import aiohttp, httpx2, requests
from boto3.session import Session
url = sys.argv[1]
for address in (url, url.replace("127.0.0.1", "localhost")):
    assert urllib.request.urlopen(address).status == 200
    assert requests.get(address).status_code == 200
    assert httpx2.get(address).status_code == 200
    async def get():
        async with aiohttp.ClientSession(trust_env=True) as session, session.get(address) as one:
            assert one.status == 200
    asyncio.run(get())
    client = Session("a", "b", region_name="c").client("s3", endpoint_url=address)
    client.head_bucket(Bucket="people")
"""
"""What our own code, Ray, the hub's client, MLflow and boto3 connect with."""


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback, and the requests that it has received."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_HEAD = do_CONNECT = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}", seen
    listening.shutdown()


def without_proxies() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}


@pytest.mark.parametrize(
    "spelling",
    [
        {"http_proxy": "PROXY"},
        {"HTTP_PROXY": "PROXY", "NO_PROXY": "example.org, .corp"},
        {"http_proxy": "PROXY", "no_proxy": "", "NO_PROXY": "example.org"},
        {"ALL_PROXY": "PROXY", "all_proxy": "PROXY", "no_proxy": "example.org"},
        {"Http_Proxy": "PROXY", "http_proxy": "PROXY", "No_Proxy": "example.org"},
    ],
)
def test_no_client_sends_to_a_proxy_what_is_meant_for_this_machine(
    spelling: Mapping[str, str],
) -> None:
    with server(503) as (proxy, seen), server(200) as (address, reached):
        variables = {name: value.replace("PROXY", proxy) for name, value in spelling.items()}
        subprocess.run(
            [sys.executable, "-c", CLIENTS, address],
            env={**without_proxies(), **variables},
            check=True,
            timeout=120,
        )
    assert seen == []
    assert len(reached) == 2 * 5


def test_what_the_user_has_excluded_stays_excluded() -> None:
    variables = {
        "HTTPS_PROXY": "http://proxy",
        "NO_PROXY": "a.org, 127.0.0.1",
        "no_grpc_proxy": "b",
    }
    exempt_loopback(variables)
    rest = [host for host in LOOPBACK if host != "127.0.0.1"]
    expected = ",".join(["a.org", "127.0.0.1", *rest])
    assert variables["NO_PROXY"] == variables["no_proxy"] == expected
    assert variables["no_grpc_proxy"] == ",".join(["b", *LOOPBACK])
    exempt_loopback(variables)
    assert variables["no_proxy"] == expected


@pytest.mark.parametrize(
    "variables", [{}, {"http_proxy": " "}, {"no_proxy": "a"}, {"http_proxy": "p", "no_proxy": "*"}]
)
def test_where_no_proxy_is_used_nothing_is_added(variables: dict[str, str]) -> None:
    exempt_loopback(after := dict(variables))
    assert set(after.values()) == set(variables.values())


def test_no_proxy_reads_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is that of another machine, which only the proxy could find."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token-of-a-cluster")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with server(200) as (proxy, seen):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        address = "http://head.invalid:8265"
        assert http_status(address, {"Authorization": "Bearer secret-token"}) is None
        with pytest.raises(MuvaError, match="No Ray cluster accepts jobs"):
            jobs_client(ClusterSettings(address=address))
        monkeypatch.setattr("muva.grounding.chat_client.RETRY", RetrySettings(retries=0))
        url = "http://expert.invalid/v1"
        with pytest.raises(MuvaError, match=r"expert\.invalid/v1 does not answer"):
            ask(Endpoint(url=url, token="secret-token-of-an-endpoint"))
        assert seen == []
        with pytest.raises(MuvaError, match="an unexpected response"):  # the proxy's, without JSON
            ask(Endpoint(url=url, token=""))
        assert seen == [f"POST {url}/chat/completions None"]


def ask(endpoint: Endpoint) -> None:
    image = GroundingImage(
        image_id="a", encoded=encode_jpeg(np.zeros((8, 8, 3), np.uint8), quality=50), annotated=None
    )
    HttpExpert("model", endpoint).ground([image], {"head": "the head"})
