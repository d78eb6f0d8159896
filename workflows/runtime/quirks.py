"""Room that a training leaves behind when whoever began it dies: it is given back.

A trial that Ray Tune stops ends in the midst of a training, and with it Ray Train's controller,
which would have given its workers' placement group back. Ray Train has somebody to do that instead,
who gives up where several clusters run on a machine; all later trainings would wait for ever.
"""

from __future__ import annotations

import threading
import time

from ray._private.state import actors  # the public way asks the dashboard, which need not run
from ray.util.placement_group import PlacementGroup, remove_placement_group

LOOKED_EVERY_S = 1.0


class Orphans:
    """Looks after placement groups until the actors that they are for are dead."""

    def __init__(self) -> None:
        self._groups: list[tuple[str, PlacementGroup]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._look, name="muva-orphans", daemon=True).start()

    def watch(self, actor_id: str, group: PlacementGroup) -> None:
        """Removes the group when the actor of this id (hex) is dead."""
        with self._lock:
            self._groups.append((actor_id, group))

    def _look(self) -> None:
        while True:
            time.sleep(LOOKED_EVERY_S)
            with self._lock:
                watched, self._groups = self._groups, []
            alive = []
            for actor_id, group in watched:
                if actors(actor_id)["State"] == "DEAD":
                    remove_placement_group(group)  # nothing, where it is gone already
                else:
                    alive.append((actor_id, group))
            with self._lock:
                self._groups += alive


IDLE_SETTING, IDLE_MS = "idle_worker_killing_time_threshold_ms", 60_000
"""How long a process without work is kept. Ray ends it after a second where there are as many
processes as cores, actors counted, and the next task would wait for a new one and its imports."""
