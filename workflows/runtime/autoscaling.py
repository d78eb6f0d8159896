"""Waiting for nodes that an autoscaler starts on request.

Work is divided by the resources that the cluster has when it begins; a cluster that scales up from
zero has none at that time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from muva.errors import MuvaError, SettingsError
from workflows.progress import say

WAIT_VARIABLE = "MUVA_WAIT_FOR"
"""Environment variable: what the cluster must have before a job begins, `GPU=4,CPU=16`."""
WAIT_LIMIT_VARIABLE = "MUVA_WAIT_S"
WAIT_S = 1800.0
"""Seconds to wait for requested or lost nodes, unless the variable above says otherwise."""


def wait_limit_s() -> float:
    """How many seconds to wait for nodes.

    Raises:
        SettingsError: the variable is not a number of seconds.
    """
    text = os.environ.get(WAIT_LIMIT_VARIABLE) or str(WAIT_S)
    try:
        return max(0.0, float(text))
    except ValueError as error:
        raise SettingsError(
            f"{WAIT_LIMIT_VARIABLE}={text}: expected seconds, for example 3600"
        ) from error


def resources(text: str) -> dict[str, int]:
    """`GPU=4,CPU=16` as a mapping.

    Raises:
        SettingsError: the text has another form.
    """
    pairs = [word.strip().partition("=") for word in text.split(",")]
    if not all(name and count.isdigit() and int(count) for name, _, count in pairs):
        raise SettingsError(f"resources {text}: expected NAME=COUNT,…, for example GPU=4,CPU=16")
    return {name: int(count) for name, _, count in pairs}


def wait_for(wanted: Mapping[str, int], *, within_s: float | None = None) -> None:
    """Ask the autoscaler for resources, and wait until the whole cluster has them.

    The request is then withdrawn: nodes that stay idle may be removed again.

    Args:
        within_s: how many seconds to wait; None: `wait_limit_s`.

    Raises:
        MuvaError: the cluster did not get the resources in time.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    def missing() -> dict[str, int]:
        available = ray.cluster_resources()
        return {name: count for name, count in wanted.items() if available.get(name, 0) < count}

    if not missing():
        return
    shown = ", ".join(f"{count} {name}" for name, count in wanted.items())
    say(f"Waiting until the cluster has {shown} …")
    request_resources(bundles=[{name: 1} for name, count in wanted.items() for _ in range(count)])
    within_s = wait_limit_s() if within_s is None else within_s
    ends_at = time.monotonic() + within_s
    try:
        while still := missing():
            if time.monotonic() > ends_at:
                available = ray.cluster_resources()
                lacking = ", ".join(f"{available.get(name, 0):g} {name}" for name in still)
                raise MuvaError(
                    f"The cluster was asked for {shown}: found {lacking} after {within_s:.0f} s. "
                    "Did Ray start on every node? Where an autoscaler starts them: may it start "
                    "so many? `ray status` on the head tells"
                )
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])
