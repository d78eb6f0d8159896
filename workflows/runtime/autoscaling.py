"""Waiting for machines that an autoscaler starts when they are asked for.

Work is divided by what there is when it begins, and a cluster that starts from zero has nothing
then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from muva.errors import MuvaError, SettingsError
from workflows.progress import say

WAIT_VARIABLE = "MUVA_WAIT_FOR"
"""What a job's cluster must have before its work begins: `GPU=4,CPU=16`."""
WAIT_LIMIT_VARIABLE = "MUVA_WAIT_S"
WAIT_S = 1800.0
"""How long machines may take to come, asked for or lost, unless that variable says otherwise."""


def wait_limit_s() -> float:
    """For how many seconds machines are waited for.

    Raises:
        SettingsError: the variable is no number of seconds.
    """
    told = os.environ.get(WAIT_LIMIT_VARIABLE) or str(WAIT_S)
    try:
        return max(0.0, float(told))
    except ValueError as error:
        raise SettingsError(
            f"{WAIT_LIMIT_VARIABLE}={told}: expected seconds, for example 3600"
        ) from error


def resources(text: str) -> dict[str, int]:
    """`GPU=4,CPU=16` as a mapping.

    Raises:
        SettingsError: the text is of another form.
    """
    pairs = [word.strip().partition("=") for word in text.split(",")]
    if not all(name and count.isdigit() and int(count) for name, _, count in pairs):
        raise SettingsError(f"resources {text}: expected NAME=COUNT,…, for example GPU=4,CPU=16")
    return {name: int(count) for name, _, count in pairs}


def wait_for(wanted: Mapping[str, int], *, within_s: float | None = None) -> None:
    """Asks the autoscaler for resources, and waits until the cluster has as many in all.

    within_s: how long; None: `wait_limit_s`.

    Once they are there nothing keeps them but the work: what is idle may go.

    Raises:
        MuvaError: they did not come.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    def missing() -> dict[str, int]:
        there = ray.cluster_resources()
        return {name: count for name, count in wanted.items() if there.get(name, 0) < count}

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
                there = ray.cluster_resources()
                lacking = ", ".join(f"{there.get(name, 0):g} {name}" for name in still)
                raise MuvaError(
                    f"The cluster was asked for {shown}: found {lacking} after {within_s:.0f} s. "
                    "Is there an autoscaler, and may it start so many machines? `ray status` on "
                    "the head tells"
                )
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])
