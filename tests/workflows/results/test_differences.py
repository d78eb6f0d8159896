"""Two runs explained: what differs in settings, figures and queries, against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from muva.data.artifacts import Artifact, fingerprint
from muva.errors import MuvaError
from muva.retrieval.results import Scores
from tests.data.test_training_images import dataset
from workflows.cli import main
from workflows.results.differences import differences_between
from workflows.session import Session, open_session
from workflows.steps.score import QueryScores
from workflows.steps.step import ARTIFACT_TAG

PRECISION = {
    "plain": [1.0, 0.5, 0.2, 0.1, 1.0, 0.3],
    "better": [1.0, 1.0, 1.0, 0.4, 0.5, 0.3],
}
RANK = {"plain": [1, 2, 5, 9, 1, 3], "better": [1, 1, 1, 2, 2, 3]}
"""Of the six queries' first matches: two become right, one becomes wrong."""


@pytest.fixture
def session(tmp_path: Path) -> Session:
    session = open_session(home=tmp_path, store=str(tmp_path))
    station = dataset(tmp_path, "station", [1, 2], split="query")
    for name, precision in PRECISION.items():
        features = Artifact(session.store, "features", f"station-by-{name}", fingerprint(name))
        features.commit(
            format_version=1,
            config={"splits": ["query", "gallery"]},
            inputs={"dataset": station.artifact.address},
            summary={},
        )
        metrics = Artifact(session.store, "metrics", f"{name}-on-station", fingerprint(name))
        QueryScores(
            query=np.arange(6),
            gallery=np.array([6]),
            average_precision=np.array(precision),
            first_match_rank=np.array(RANK[name]),
            lists=np.zeros((6, 1), np.int64),
        ).write(metrics)
        metrics.commit(
            format_version=3,
            config={"evaluation": {"rerank": name == "better", "ranks": [1, 5]}},
            inputs={"features": features.address},
            summary=scores(name).as_json(),
            facts={"method": name, "target": "station", "held_out": False},
        )
        with session.run(f"evaluate {name}", key=metrics.address, params={}) as run:
            assert run is not None
            run.set_tags({ARTIFACT_TAG: metrics.address})
    return session


def scores(name: str) -> Scores:
    rank1 = float(np.mean(np.array(RANK[name]) == 1))
    return Scores(
        mean_ap=float(np.mean(PRECISION[name])),
        mean_inp=0.0,
        cmc={1: rank1},
        curve={1: rank1},
        queries=6,
        valid_queries=6,
        gallery=1,
        cameras_known=True,
        reranked=name == "better",
        trials=0,
        intervals={},
        camera_pairs=(),
        verification=None,
    )


def test_two_models_are_told_apart_query_by_query(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muva.retrieval.metrics.MIN_IDENTITIES", 2)
    (found,) = differences_between(session, "plain", "better")
    assert found.target == "station"
    gain = np.mean(PRECISION["better"]) - np.mean(PRECISION["plain"])
    assert found.mean_ap[1] - found.mean_ap[0] == pytest.approx(gain)
    # Person 1 has the first three queries, person 2 the others: all draws of two people.
    change = np.subtract(PRECISION["better"], PRECISION["plain"]).reshape(2, 3).mean(axis=1)
    interval = found.mean_ap_difference
    assert interval is not None
    assert interval.low == pytest.approx(change.min())
    assert interval.high == pytest.approx(change.max())
    assert found.settings == {"evaluation.rerank": (False, True)}
    assert [(flip.image_id, flip.ranks) for flip in found.gained] == [
        ("query/1_2.png", (5, 1)),
        ("query/1_1.png", (2, 1)),
    ]
    assert [flip.image_id for flip in found.lost] == ["query/2_1.png"]


def test_runs_are_named_by_id_or_name_too(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(session.home), "--store", session.store.uri]
    with pytest.raises(SystemExit):
        main(["compare", "evaluate plain", "evaluate better", "--json", *home])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["methods"] == ["plain", "better"]
    assert (row["valid_queries"], row["queries"], row["mean_ap_difference"]) == (6, 6, None)
    with pytest.raises(SystemExit):
        main(["compare", "plain", "better", *home])
    text = capsys.readouterr().out
    assert "Queries whose nearest image is now right: 2" in text
    assert "evaluation.rerank" in text
    assert "On station, per cent; 6 of 6 queries are valid" in text
    assert text.count("too few people") == 2


def test_what_cannot_be_compared_is_said(session: Session) -> None:
    with pytest.raises(MuvaError, match="nobody: no run with this id or name"):
        differences_between(session, "nobody", "better")
    with pytest.raises(MuvaError, match="no evaluations to compare"):
        differences_between(session, "plain", "plain")
