from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from workflows.runtime.claims import SharedSteps
from workflows.session import Session, open_session
from workflows.steps.step import Step, run_step


def _step(session: Session) -> Step:
    return Step(
        title="shared",
        store=session.store,
        kind="metrics",
        name="shared",
        format_version=1,
        settings={},
    )


@ray.remote(num_cpus=0, max_retries=0)
def _do(session: Session, seconds: float, dies: bool) -> tuple[bool, list[str]]:
    """Does the shared step; whether this process computed it, and what it noted."""
    home = session.home

    def work(_: object) -> dict[str, Any]:
        (home / f"work-{os.getpid()}").touch()
        time.sleep(seconds)
        if dies:
            os._exit(1)
        return {}

    done = run_step(_step(session), session=session, work=work)
    assert session.shared is not None
    return done.computed, [one.address for one in session.shared.used]


def shared_session(home: Path, *, silent_s: float) -> Session:
    session = open_session(home=home)
    return Session(
        home=home, store=session.store, tracking_uri=None, shared=SharedSteps(silent_s=silent_s)
    )


def test_two_who_start_together_compute_a_step_once(ray_session: None, tmp_path: Path) -> None:
    session = shared_session(tmp_path, silent_s=2)
    # Longer than a claim lasts that nobody renews.
    found = ray.get([_do.remote(session, 4, False), _do.remote(session, 4, False)])
    assert sorted(computed for computed, _ in found) == [False, True]
    assert [noted for _, noted in found] == [[_step(session).artifact.address]] * 2
    assert len(list(tmp_path.glob("work-*"))) == 1


def test_a_claim_ends_with_its_process(ray_session: None, tmp_path: Path) -> None:
    session = shared_session(tmp_path, silent_s=2)
    dying = _do.remote(session, 1, True)
    while not list(tmp_path.glob("work-*")):
        time.sleep(0.05)
    computed, _ = ray.get(_do.remote(session, 0, False))
    assert computed
    with pytest.raises(RayError):
        ray.get(dying)
    assert len(list(tmp_path.glob("work-*"))) == 2


def test_a_step_that_fails_frees_its_claim(ray_session: None, tmp_path: Path) -> None:
    session = shared_session(tmp_path, silent_s=60)
    shared = session.shared
    assert shared is not None
    with pytest.raises(ValueError, match="no"), shared.claim(_step(session).artifact.address):
        raise ValueError("no")
    computed, _ = ray.get(_do.remote(session, 0, False), timeout=120)
    assert computed
