"""Champion and challenger: by held-out sources alone, and only among models validated on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.pyfunc import load_model

import muva
from muva.data.artifacts import Artifact, fingerprint
from muva.errors import MuvaError
from muva.models import find_model, store_bundle
from muva.synthetic import render
from tests.data.test_training_images import dataset
from tests.model.small import small_model
from workflows.results.promotion import promote
from workflows.session import Session, open_session
from workflows.steps.validation import HELD_OUT


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return open_session(home=tmp_path, store=str(tmp_path))


def model(
    session: Session,
    name: str,
    value: float | None,
    *,
    sources: tuple[str, ...] = ("town",),
    share: float = 0.2,
) -> Artifact:
    """A model whose training's last epoch was worth `value` on held-out identities."""
    artifact = Artifact(session.store, "models", name, fingerprint([name, sources, share]))
    addresses = {}
    for number, source in enumerate(sources):
        people = {"town": [3, 5], "city": [4, 6]}[source]
        made = dataset(Path(session.store.uri), source, people)
        addresses[f"source {number}"] = made.artifact.address
    config: dict[str, Any] = {"seed": 0}
    if value is not None:
        config["validation"] = {"identities": share, "every": 1}
    store_bundle(artifact, small_model(seed=len(name)), metadata={})
    artifact.commit(
        format_version=1,
        config=config,
        inputs=addresses,
        summary={"verdicts": [{"epoch": 1, HELD_OUT: 0.01}, {"epoch": 2, HELD_OUT: value}]},
    )
    return artifact


def holders(after: dict[str, Any]) -> dict[str, str | None]:
    return {alias: one and one["address"] for alias, one in after.items()}


def test_the_better_one_on_held_out_sources_is_the_champion(session: Session) -> None:
    first, worse, better = (model(session, n, v) for n, v in
                            (("first", 0.4), ("worse", 0.3), ("better", 0.5)))  # fmt: skip
    assert holders(promote(session, first, name="muva")) == {
        "champion": first.address, "challenger": None
    }  # fmt: skip
    assert holders(promote(session, worse, name="muva")) == {
        "champion": first.address, "challenger": worse.address
    }  # fmt: skip
    for _ in range(2):  # again changes nothing
        assert holders(promote(session, better, name="muva")) == {
            "champion": better.address, "challenger": first.address
        }  # fmt: skip


def test_mlflow_loads_the_champion_by_its_alias(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("first", 0.4), ("better", 0.5)):
        promote(session, model(session, name, value), name="muva")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(session.tracking_uri))
    person = render("syn-harbour", pid=1, camid=1, index=0, height=96, width=48).image
    served = load_model("models:/muva@champion").predict(pd.DataFrame({"image": [person]}))
    better, first = (
        muva.load(find_model(session.store, name).uri).embed([person])
        for name in ("better", "first")
    )
    np.testing.assert_allclose(served, better, atol=1e-6)
    assert not np.allclose(served, first, atol=1e-2)


def test_a_registry_that_fails_is_not_taken_for_an_empty_one(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model(session, "first", 0.4)
    promote(session, first, name="muva")

    def refused(*_: Any) -> None:
        raise MlflowException("403 Forbidden", error_code=PERMISSION_DENIED)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_model_version_by_alias", refused)
        with pytest.raises(MuvaError, match="403 Forbidden"):
            promote(session, model(session, "worse", 0.1), name="muva")
    assert holders(promote(session, first, name="muva"))["champion"] == first.address


def test_a_champion_that_was_registered_by_hand_is_told(session: Session) -> None:
    promote(session, model(session, "first", 0.4), name="muva")
    client = MlflowClient(str(session.tracking_uri))
    [version] = client.search_model_versions("name = 'muva'")
    client.delete_model_version_tag("muva", version.version, "held-out.mAP")
    with pytest.raises(MuvaError, match="expected a version created by `muva promote`"):
        promote(session, model(session, "second", 0.5), name="muva")


def test_a_model_that_nobody_was_held_out_from_is_refused(session: Session) -> None:
    with pytest.raises(MuvaError, match="was not validated on held-out sources"):
        promote(session, model(session, "blind", None), name="muva")


@pytest.mark.parametrize("changes", [{"sources": ("city",)}, {"share": 0.5}])
def test_values_of_other_people_are_not_compared(session: Session, changes: Any) -> None:
    promote(session, model(session, "first", 0.4), name="muva")
    other = model(session, "other", 0.9, **changes)
    with pytest.raises(MuvaError, match="was validated on other people than the champion"):
        promote(session, other, name="muva")
    assert holders(promote(session, other, name="elsewhere"))["champion"] == other.address
