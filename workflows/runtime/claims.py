"""Steps that trials share: the first trial computes the artifact, and the others wait for it.

A claim lasts as long as its process renews it, so that the claims of a dead process expire.
"""

from __future__ import annotations

import functools
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from workflows.runtime.cluster import on_the_drivers_node
from workflows.runtime.quirks import LeakedPlacementGroups

RENEWED_EVERY_S = 2.0
SILENT_S = 20.0
"""A claim that was not renewed for this long has expired. Computing a step twice does no harm."""
ASKED_EVERY_S = 0.25


@dataclass(frozen=True, kw_only=True)
class UsedStep:
    """A step that a trial used, whichever trial computed it."""

    label: str
    address: str
    seconds: float
    """How long computing it took, according to its manifest."""


class SharedSteps:
    """A handle to the claims, which the driver creates and passes to the trials.

    Each copy records the steps that its own process used.
    """

    def __init__(self, *, silent_s: float = SILENT_S) -> None:
        kind = ray.remote(num_cpus=0, scheduling_strategy=on_the_drivers_node())(Claims)
        self._claims: Any = kind.remote(silent_s=silent_s)
        self._renewed_every_s = min(RENEWED_EVERY_S, silent_s / 4)
        self.used: list[UsedStep] = []

    @contextmanager
    def claim(self, address: str) -> Iterator[None]:
        """Wait until no other process claims the address, and claim it during the block."""
        holder = uuid.uuid4().hex
        while not ray.get(self._claims.claim.remote(address, holder)):
            time.sleep(ASKED_EVERY_S)
        done = threading.Event()
        renewing = threading.Thread(
            target=self._renew, args=(address, holder, done), name="muva-claim", daemon=True
        )
        renewing.start()
        try:
            yield
        finally:
            done.set()
            renewing.join()
            ray.get(self._claims.free.remote(address, holder))

    def _renew(self, address: str, holder: str, done: threading.Event) -> None:
        while not done.wait(self._renewed_every_s):
            self._claims.claim.remote(address, holder)

    def watch(self, group: PlacementGroup) -> None:
        """Have a placement group removed when this process, which must be an actor's, has died."""
        actor_id = ray.get_runtime_context().get_actor_id()
        if actor_id is not None:
            self._claims.watch.remote(actor_id, group)

    def note(self, label: str, address: str, seconds: float) -> None:
        """Record that this process used a step."""
        self.used.append(UsedStep(label=label, address=address, seconds=seconds))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies share the claims, but each records its own steps."""
        return functools.partial(_copy, self._claims, self._renewed_every_s), ()


def _copy(claims: Any, renewed_every_s: float) -> SharedSteps:
    copy = object.__new__(SharedSteps)
    copy._claims, copy._renewed_every_s, copy.used = claims, renewed_every_s, []
    return copy


class Claims:
    """The actor behind `SharedSteps`: which process computes which address."""

    def __init__(self, *, silent_s: float) -> None:
        self._silent_s = silent_s
        self._orphans = LeakedPlacementGroups()
        self._holders: dict[str, tuple[str, float]] = {}

    def claim(self, address: str, holder: str) -> bool:
        """Claim an address or renew the claim; False if another process holds it."""
        now = time.monotonic()
        other, heard_at = self._holders.get(address, (holder, now))
        if other != holder and now - heard_at < self._silent_s:
            return False
        self._holders[address] = holder, now
        return True

    def watch(self, actor_id: str, group: PlacementGroup) -> None:
        """Remove a placement group when the actor has died."""
        self._orphans.watch(actor_id, group)

    def free(self, address: str, holder: str) -> None:
        """Release a claim."""
        if self._holders.get(address, ("", 0.0))[0] == holder:
            del self._holders[address]
