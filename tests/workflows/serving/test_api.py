"""What the API asks the replicas for, and how it answers; without Ray."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.workflows.serving.service import (
    MATCH,
    MODEL,
    Answers,
    Counts,
    as_files,
    client,
    in_json,
    picture,
)
from workflows.serving.errors import RequestError
from workflows.serving.metrics import ours

A, B = picture(seed=1), picture(seed=2, form="JPEG")


def test_json_and_a_form_ask_for_the_same() -> None:
    in_words = {"top": 5, "camids": [1, 4], "after": "2026-11-30T09:15+01:00"}
    in_fields = {"top": "5", "camids": ["1", "4"], "after": "2026-11-30T08:15", "before": ""}
    ways: list[dict[str, Any]] = [
        {"json": {"images": in_json(A), **in_words}},
        {"files": as_files(A), "data": in_fields},
    ]
    asked = []
    for sent in ways:
        answers = Answers()
        response = client(answers).post("/v1/search", **sent)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == MODEL
        asked += answers.asked
    (operation, (images, fields)), other = asked
    assert (operation, images) == ("search", [A])
    assert fields.camids == [1, 4]
    assert fields.after == datetime(2026, 11, 30, 8, 15, tzinfo=UTC)
    assert other == asked[0]


def test_several_images_keep_their_order_and_what_is_said_of_each() -> None:
    answers = Answers()
    sent = [*in_json(A, image_id="a.png", pid=1), *in_json(B, image_id="b.jpg", place="gate")]
    assert client(answers).post("/v1/add", json={"images": sent}).json()["added"] == 1
    form = {"image_id": ["a.png", "b.jpg"], "pid": ["1", ""], "place": ["", "gate"]}
    assert client(answers).post("/v1/add", files=as_files(A, B), data=form).status_code == 200
    assert answers.asked[0] == answers.asked[1]
    _, (images, rows) = answers.asked[0]
    assert images == [A, B]
    assert [(row.image_id, row.pid, row.place) for row in rows] == [
        ("a.png", 1, None),
        ("b.jpg", None, "gate"),
    ]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("embed", {}, "at least one"),
        ("embed", {"images": in_json(A), "top": 3}, "top: Extra inputs"),
        ("compare", {"images": in_json(A)}, "expected two to compare, found 1"),
        ("compare", {"images": in_json(A, B), "far": 2}, "far: "),
        ("search", {"images": in_json(A), "top": 51}, "top: expected at most 50"),
        ("search", {"images": in_json(A), "after": "yesterday"}, "after: "),
        ("search", {"images": in_json(A, pid=3)}, "nothing but the image"),
        ("add", {"images": in_json(A)}, "images[0].image_id: Field required"),
        ("add", {"images": in_json(A, A, image_id="x")}, "each image once"),
        ("add", {"images": in_json(A, image_id="x", pid=2**70)}, "pid: "),
        ("forget", {}, "expected pids or image_ids"),
        ("forget", {"pids": ["seven"]}, "pids.0: "),
    ],
)
def test_a_wrong_field_is_named(path: str, body: dict[str, Any], says: str) -> None:
    answers = Answers()
    response = client(answers).post(f"/v1/{path}", json=body)
    assert response.status_code == 422
    assert says in response.json()["error"]["message"]
    assert answers.asked == []


def test_health_needs_a_replica_but_no_token() -> None:
    assert client(token=False).get("/health").json() == {"status": "ok"}
    lost = Answers(failure=RequestError(503, "unavailable", "none answers"))
    response = client(lost, token=False).get("/health")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_a_bug_is_a_500_that_says_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    counts = Counts()
    broken = Answers(failure=ValueError("the request said SECRET"))
    response = client(broken, counts=counts).post("/v1/embed", json={"images": in_json(A)})
    assert response.status_code == 500
    assert "SECRET" not in response.text + caplog.text
    assert "ValueError" in caplog.text
    assert counts.answers == [("/v1/embed", 500)]


def test_a_picture_is_that_of_an_id() -> None:
    found = client().get("/v1/gallery/image", params={"id": MATCH["image_id"]})
    assert found.headers["content-type"] == "image/jpeg"
    assert client().get("/v1/gallery/image", params={"id": "other"}).status_code == 404
    assert client().get("/v1/gallery/image").status_code == 422


def test_every_endpoint_is_described_with_an_example() -> None:
    described = client().get("/openapi.json").json()
    posts = {path: found["post"] for path, found in described["paths"].items() if "post" in found}
    assert set(posts) == {f"/v1/{n}" for n in ("embed", "compare", "search", "add", "forget")}
    for path, found in posts.items():
        content = found["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}, path
        example = content["application/json"]["example"]
        assert set(example) <= set(content["application/json"]["schema"]["properties"]), path
        assert found["responses"]["200"]["content"]["application/json"]["example"]["model"], path
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_metrics_of_several_nodes_are_one_text() -> None:
    described = "# HELP ray_muva_serve_x Text.\n# TYPE ray_muva_serve_x counter\n"
    one = f'{described}ray_muva_serve_x{{node="1"}} 1\nray_tasks 7\n'
    other = f'{described}ray_muva_serve_x{{node="2"}} 2\n'
    assert ours([one, other]) == (
        f'{described}ray_muva_serve_x{{node="1"}} 1\nray_muva_serve_x{{node="2"}} 2\n'
    )
    assert "ray_muva_serve_requests" in client().get("/metrics").text
