"""Steps that trials share: whoever comes first computes, the others wait and find the artifact.

A claim lasts as long as its process renews it: one that dies frees its claims by falling silent.
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
"""A claim that nobody renewed for so long is free. Two who compute the same do no harm."""
ASKED_EVERY_S = 0.25


@dataclass(frozen=True, kw_only=True)
class UsedStep:
    """A step that a trial used, whoever computed it."""

    label: str
    address: str
    seconds: float
    """What computing it took, as its manifest says."""


class SharedSteps:
    """A handle to the claims, made by the driver; it travels to the trials.

    Each copy notes the steps that its own process used.
    """

    def __init__(self, *, silent_s: float = SILENT_S) -> None:
        kind = ray.remote(num_cpus=0, scheduling_strategy=on_the_drivers_node())(Claims)
        self._claims: Any = kind.remote(silent_s=silent_s)
        self._renewed_every_s = min(RENEWED_EVERY_S, silent_s / 4)
        self.used: list[UsedStep] = []

    @contextmanager
    def claim(self, address: str) -> Iterator[None]:
        """Waits until no other process claims the address; it is claimed while the block runs."""
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
        """Has a placement group removed when this process, an actor's, is dead."""
        actor_id = ray.get_runtime_context().get_actor_id()
        if actor_id is not None:
            self._claims.watch.remote(actor_id, group)

    def note(self, label: str, address: str, seconds: float) -> None:
        """Remembers that this process used a step."""
        self.used.append(UsedStep(label=label, address=address, seconds=seconds))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies share the claims and note for themselves."""
        return functools.partial(_copy, self._claims, self._renewed_every_s), ()


def _copy(claims: Any, renewed_every_s: float) -> SharedSteps:
    copy = object.__new__(SharedSteps)
    copy._claims, copy._renewed_every_s, copy.used = claims, renewed_every_s, []
    return copy


class Claims:
    """Who computes which address; the actor behind `SharedSteps`."""

    def __init__(self, *, silent_s: float) -> None:
        self._silent_s = silent_s
        self._orphans = LeakedPlacementGroups()
        self._holders: dict[str, tuple[str, float]] = {}

    def claim(self, address: str, holder: str) -> bool:
        """Claims an address, or renews the claim; False where another holds it."""
        now = time.monotonic()
        other, heard_at = self._holders.get(address, (holder, now))
        if other != holder and now - heard_at < self._silent_s:
            return False
        self._holders[address] = holder, now
        return True

    def watch(self, actor_id: str, group: PlacementGroup) -> None:
        """Removes a placement group when the actor is dead."""
        self._orphans.watch(actor_id, group)

    def free(self, address: str, holder: str) -> None:
        """Ends a claim."""
        if self._holders.get(address, ("", 0.0))[0] == holder:
            del self._holders[address]
