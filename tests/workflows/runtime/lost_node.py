"""Ranks on a cluster that loses nodes: `python -m tests.workflows.runtime.lost_node FOLDER`.

Writes the average precisions of the ranking and of the re-ranking, and says what was lost when.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray

from muva.retrieval import Reranking
from muva.retrieval.metrics import score
from tests.workflows.steps.test_rank import RANKS, crowd, kept
from workflows.steps.rank import encodings_by_tasks, ranks_of

CHUNK = 60


def main(folder: Path) -> None:
    """Kills one of the two nodes with room for tasks in the middle of each kind of work."""
    from ray.cluster_utils import Cluster

    who = crowd(queries=90, gallery=900, mixed=False)
    parts = kept(folder, who.features)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(cluster.address, log_to_driver=False)
        lost: list[tuple[int, int]] = []

        def lose(done: int, total: int) -> None:
            """Once a kind of work, when it has begun."""
            if nodes and done < total:
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                lost.append((done, total))
                cluster.add_node(num_cpus=1)

        given: dict[str, Any] = {"chunk_images": CHUNK, "on_progress": lose}
        ranks, rule, _ = ranks_of(parts, who, **given)
        encodings = encodings_by_tasks(parts, who, settings=Reranking(), **given)
        reranked, *_ = ranks_of(parts, who, encodings=encodings, chunk_images=CHUNK)
        np.savez(
            folder / "found.npz",
            plain=score(ranks, rule, ranks=RANKS).average_precision,
            reranked=score(reranked, rule, ranks=RANKS).average_precision,
            lost=lost,
        )
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
