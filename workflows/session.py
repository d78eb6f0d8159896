"""A session: the artifact store and the tracking server that a verb works with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.data.store import Store, open_store
from muva.errors import MuvaError, SettingsError

if TYPE_CHECKING:
    from tracking.runs import Run, RunRef
    from workflows.runtime.claims import SharedSteps

SERVER_WAIT_S = 240.0
"""How long a step of a pipeline waits at its start for an unavailable MLflow server: as long as
MLflow's own client retries, so that a step waits equally long at its start and at its end."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where artifacts and runs are kept, and the run that the work belongs to."""

    home: Path
    store: Store
    tracking_uri: str | None
    """None if nothing is tracked: inside a trial, whose driver logs for it."""
    experiment: str = "muva"
    parent: RunRef | None = None
    shared: SharedSteps | None = None
    """Set inside a trial, because other trials may need the same steps at the same time."""

    @contextmanager
    def run(
        self,
        name: str,
        *,
        key: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[Run | None]:
        """Opens the run with this key, as a child of the parent if there is one, for the block."""
        if self.tracking_uri is None:
            yield None
            return
        # Importing MLflow takes a second and 80 MB. Workers, which have sessions too, never do it.
        from tracking.connection import failures_explained
        from tracking.runs import Tracker

        # Within a pipeline, wait for an unavailable server. Before one, report a wrong address at
        # once.
        within_s = SERVER_WAIT_S if self.parent is not None else 0.0
        with failures_explained(self.tracking_uri):
            tracker = Tracker(self.tracking_uri, self.experiment, within_s=within_s, home=self.home)
            with tracker.open(
                name=name, key=key, parent=self.parent, params=params, tags=tags
            ) as run:
                yield run

    def check_tracking(self) -> None:
        """Check that MLflow is available, before work whose run is opened only afterwards.

        Raises:
            MuvaError: it is not. Within a pipeline, whose own run is open, it is waited for later.
        """
        if self.tracking_uri is None or self.parent is not None:
            return
        from tracking.connection import check_reachable

        check_reachable(self.tracking_uri)

    def has_logged(self, key: str) -> bool:
        """Whether the run with this key, under the parent, is completely logged.

        True if nothing is tracked.
        """
        if self.tracking_uri is None:
            return True
        from tracking.tagged_runs import has_logged

        try:
            return has_logged(self.tracking_uri, self.experiment, key, parent=self.parent)
        except MuvaError:  # the caller calls `run` next, which waits for the server or reports it
            return False

    def within(self, run: Run | None) -> Session:
        """The same session, whose runs are children of `run`."""
        return dataclasses.replace(self, parent=run.ref if run else None)


def open_session(
    *,
    home: Path | str = "runs",
    store: str | None = None,
    tracking_uri: str | None = None,
    experiment: str = "muva",
) -> Session:
    """A session whose store and runs are under `home` unless other places are given.

    docs/on-disk.md says what is in that folder.

    Raises:
        SettingsError: the path of the home cannot be part of a database's URL.
    """
    folder = Path(home).expanduser().absolute()
    if tracking_uri is None and "?" in str(folder):
        raise SettingsError(
            f"home {folder}: expected a path without a question mark, after which a database's URL "
            "has options. Choose another one with --home, or name the database with --tracking-uri"
        )
    return Session(
        home=folder,
        store=open_store(store or folder / "store"),
        tracking_uri=tracking_uri or f"sqlite:///{folder / 'mlflow.db'}",
        experiment=experiment,
    )
