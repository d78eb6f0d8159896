"""What all tests share: shapes checked at run time, one Ray for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

# Kept alive for the session: the hook checks every annotated shape of what is imported after it.
_SHAPES = install_import_hook(
    ["muva.model", "muva.training", "muva.retrieval", "muva.grounding"], "beartype.beartype"
)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one: it takes seconds to start."""
    from workflows.cluster import ray_cluster

    with ray_cluster(dashboard=True):
        yield
