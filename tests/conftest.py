"""What all tests share: shapes checked at run time, one Ray for the session, a small CLIP."""

from __future__ import annotations

import os
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

from muva.data.store import Store, open_store
from tests.reporting import recorded
from tests.selection import needs_cluster
from tests.shared import linked_copy, made_once, shared_folder

pytest_plugins = ["tests.reporting", "tests.hub.fixtures"]

# Small tensors gain nothing from more threads, and lose much where others use the cores too.
torch.set_num_threads(1)

# Tables are as wide as the terminal, and pytest-xdist says that its processes have one of 80.
os.environ["COLUMNS"] = "120"

RAY_STARTS = 4
STARTED_TOO_SLOWLY = "The current node timed out during startup"
"""What Ray says after 30 seconds, a number that no setting changes; a busy machine takes longer."""

# Kept alive for the session: the hook checks every annotated shape of what is imported after it.
_SHAPES = install_import_hook(
    ["muva.model", "muva.training", "muva.retrieval", "muva.grounding"], "beartype.beartype"
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make test-fast` leaves out."""
    slow = set(recorded().get("slow_tests", []))
    for item in items:
        if needs_cluster(item):
            item.add_marker("cluster")
        elif item.nodeid in slow:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def no_ray_unnoticed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that starts Ray without saying so would start one for itself alone."""
    ray = sys.modules.get("ray")
    if ray is not None and request.node.get_closest_marker("cluster") is None:
        monkeypatch.setattr(ray, "init", _refuse_ray)


def _refuse_ray(*_: object, **__: object) -> None:
    pytest.fail("this test starts Ray: expected the fixture ray_session among its arguments")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one: it takes seconds to start."""
    from workflows.runtime.cluster import ray_cluster

    with ExitStack() as stack:
        for attempt in range(RAY_STARTS):
            try:
                stack.enter_context(ray_cluster())
                break
            except Exception as error:
                if STARTED_TOO_SLOWLY not in str(error) or attempt + 1 == RAY_STARTS:
                    raise
                sys.modules["ray"].shutdown()
        yield


@pytest.fixture(scope="session", autouse=True)
def copied_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """New SQLite databases of MLflow are copies of one: its migrations take seconds each time."""
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.store.db import utils
    from mlflow.store.model_registry import sqlalchemy_store

    migrate = utils._initialize_tables

    def make(file: Path) -> None:
        from sqlalchemy import create_engine

        engine = create_engine(f"sqlite:///{file}")
        migrate(engine)
        engine.dispose()

    def copy(engine: Any) -> None:
        if engine.dialect.name != "sqlite" or not utils._is_empty_database(engine):
            migrate(engine)
            return
        file = made_once(shared_folder(tmp_path_factory) / "tables.db", make)
        with (
            closing(sqlite3.connect(file)) as tables,
            closing(engine.raw_connection()) as connection,
        ):
            tables.backup(connection.driver_connection)

    with pytest.MonkeyPatch.context() as patch:
        for module in (utils, sqlalchemy_store):
            patch.setattr(module, "_initialize_tables", copy)
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server that speaks S3's protocol."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """A store in a new bucket; the AWS variables lead there."""
    from boto3.session import Session

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    Session().client("s3").create_bucket(Bucket=bucket)
    return open_store(f"s3://{bucket}/some/prefix/")


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in the shipped one's form: patches of 8 on 64 x 32, two layers a tower."""
    return made_once(shared_folder(tmp_path_factory) / "clip", _save_small_clip)


def _save_small_clip(folder: Path) -> None:
    from muva.model.clip import new_clip, save_clip, token_ids_in

    words = "A photo of a * * * * person, head of a, upper body of a, legs of a"
    clip = new_clip(
        token_ids=token_ids_in([words]),
        seed=0,
        image_size=(64, 32),
        vision_width=64,
        vision_layers=2,
        text_layers=2,
        embed_dim=32,
    )
    save_clip(clip, folder, name="small")


@pytest.fixture(scope="session")
def smoke_recipe(small_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in seconds: six people a domain, a random CLIP, two epochs a stage."""
    recipe = tmp_path_factory.mktemp("recipes") / "smoke.yaml"
    recipe.write_text(
        f"""
name: smoke
seed: 0
sources: [syn-harbour, syn-airport]
targets: [syn-station]
variants: [clip, global_only, muva]
synthetic: {{train_people: 6, test_people: 5, height: 64, width: 32}}
model: {{clip: {small_clip}, image_height: 64, image_width: 32, stride: 8}}
stage1: {{epochs: 2, batch_size: 16}}
stage2: {{epochs: 2, batch_size: 16, lr: 1.0e-4, precision: fp32}}
tune:
  trials: 2
  folds: 1
  stage1_epochs: 1
  stage2_epochs: 1
  space: {{model.gating: [offline, online]}}
"""
    )
    return recipe


@pytest.fixture(scope="session")
def smoke_store(
    ray_session: None, smoke_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The smoke recipe's data sets, and its sources' pseudo-labels; see `grounded_home`."""

    def make(folder: Path) -> None:
        from muva.config import load_recipe
        from workflows.session import Session
        from workflows.steps.ground import ground
        from workflows.steps.import_data import datasets_of

        config = load_recipe(smoke_recipe)
        assert config.grounding is not None
        session = Session(home=folder, store=open_store(folder), tracking_uri=None)
        names = [*config.sources, *config.targets]
        datasets = datasets_of(session, names, config.synthetic)
        sources = [datasets[name].artifact for name in config.sources]
        ground(session, sources, config.grounding)

    return made_once(shared_folder(tmp_path_factory) / "smoke-store", make)


@pytest.fixture(scope="session")
def grounded_home(smoke_store: Path) -> Callable[[Path], Path]:
    """Puts the smoke recipe's data sets and pseudo-labels into a home; gives the home."""

    def fill(home: Path) -> Path:
        return linked_copy(smoke_store, home / "store").parent

    return fill
