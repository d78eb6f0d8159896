"""Proxies that environment variables name: no request to this machine itself may pass through one.

Ray's dashboard, MLflow's server and stores on this machine are reached over the loopback interface.
HTTP clients send such requests, with their tokens, to the proxy of `http_proxy` unless `no_proxy`
excludes this machine, and each client reads these variables in its own way. `exempt_loopback`
therefore adds this machine under every spelling. The package calls it when it is imported, which
every command, every worker process and every program that uses the library do before they connect
to anything; processes that they start inherit the variables.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]", "127.0.0.0/8")
"""This machine as clients compare it: urllib keeps the brackets of an IPv6 address, and requests
and gRPC also understand networks."""
_LISTS = ("no_proxy", "NO_PROXY")
"""requests, urllib and gRPC prefer the first of the two; others read only one of them."""
_GRPC_LIST = "no_grpc_proxy"
"""gRPC reads this instead of `no_proxy` if it is set."""
_ALL = "*"
"""As the whole list, it switches all proxies off, and any addition would switch them on again."""


def exempt_loopback(environment: MutableMapping[str, str] | None = None) -> None:
    """Exclude this machine from the proxies of the environment, by default that of the process.

    Without a proxy nothing is changed: where the system has settings of its own, as on macOS, the
    variables would replace them.
    """
    variables = os.environ if environment is None else environment
    spelled = {name: name.lower() for name in variables}
    lists = [name for name, lower in spelled.items() if lower in {*_LISTS, _GRPC_LIST}]
    proxies = [name for name, lower in spelled.items() if lower.endswith("_proxy")]
    if not any(variables[name].strip() for name in proxies if name not in lists):
        return
    others = (variables[name] for name in lists if spelled[name] == _LISTS[0])
    inherited = next(filter(str.strip, (variables.get(_LISTS[0], ""), *others)), "")
    for name in _LISTS:
        variables[name] = _with_loopback(variables.get(name, "").strip() or inherited)
    if variables.get(_GRPC_LIST):
        variables[_GRPC_LIST] = _with_loopback(variables[_GRPC_LIST])


def carries_in_clear(url: str) -> bool:
    """Whether a proxy could read what is sent to this URL.

    A request with a token to such a URL must not use a proxy. With https, a proxy only passes
    encrypted bytes on.
    """
    return not url.lower().startswith("https://")


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this URL, by the rules of requests."""
    from requests.utils import get_environ_proxies, select_proxy

    return select_proxy(url, get_environ_proxies(url))


def _with_loopback(hosts: str) -> str:
    listed = [host.strip() for host in hosts.split(",") if host.strip()]
    if listed == [_ALL]:
        return _ALL
    return ",".join([*listed, *(host for host in LOOPBACK if host not in listed)])
