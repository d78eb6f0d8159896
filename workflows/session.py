"""What every verb shares: store, tracking server, and the options that name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.data.store import Store, open_store
from muva.errors import MuvaError

if TYPE_CHECKING:
    from tracking.runs import Run, RunRef
    from workflows.runtime.claims import SharedSteps

AWAY_S = 240.0
"""How long MLflow's server may be away when a step of a pipeline begins: as long as MLflow's own
client tries, so that a step that ends and one that begins wait alike."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where artifacts and runs are kept, and which run the work belongs to."""

    home: Path
    store: Store
    tracking_uri: str | None
    """None where nothing is tracked: inside a trial, whose driver writes for it."""
    experiment: str = "muva"
    parent: RunRef | None = None
    shared: SharedSteps | None = None
    """Where others may do the same steps at the same time: inside a trial."""

    @contextmanager
    def run(
        self,
        name: str,
        *,
        key: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[Run | None]:
        """The run of that key, a child of the parent where there is one; closed by the block."""
        if self.tracking_uri is None:
            yield None
            return
        # MLflow takes a second and 80 MB to import: workers, which have a session too, never do.
        from tracking.addresses import failures_explained
        from tracking.runs import Tracker

        # A server that goes away during a pipeline is waited for; before one, a wrong address is
        # reported at once.
        within_s = AWAY_S if self.parent is not None else 0.0
        with failures_explained(self.tracking_uri):
            tracker = Tracker(self.tracking_uri, self.experiment, within_s=within_s)
            opened = tracker.open(name=name, key=key, parent=self.parent, params=params, tags=tags)
            with opened as run:
                yield run

    def has_logged(self, key: str) -> bool:
        """Whether the run with this key, under the parent, holds all that there is to log.

        Also where nothing is tracked.
        """
        if self.tracking_uri is None:
            return True
        from tracking.tagged_runs import has_logged

        try:
            return has_logged(self.tracking_uri, self.experiment, key, parent=self.parent)
        except MuvaError:  # `run`, which is called next, waits for the server and reports it
            return False

    def within(self, run: Run | None) -> Session:
        """The same session, its runs being children of `run`."""
        return dataclasses.replace(self, parent=run.ref if run else None)


def open_session(
    *,
    home: Path | str = "runs",
    store: str | None = None,
    tracking_uri: str | None = None,
    experiment: str = "muva",
) -> Session:
    """A session whose store and runs are under `home` unless they are named."""
    folder = Path(home).absolute()
    return Session(
        home=folder,
        store=open_store(store or folder / "store"),
        tracking_uri=tracking_uri or f"sqlite:///{folder / 'mlflow.db'}",
        experiment=experiment,
    )
