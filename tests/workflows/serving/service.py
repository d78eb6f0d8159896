"""A service without Ray: its API in front of a stand-in for the replicas of a model."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from workflows.serving.api import build_api
from workflows.serving.settings import Limits, ServeSettings
from workflows.serving.token import LOOPBACK, access_by

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ADDRESS = "http://127.0.0.1:8000"
MODEL = {"address": "store/models/small-0123456789abcdef", "weights": "ab" * 32}
MATCH = {
    "rank": 1,
    "image_id": "cam1/a b&c.jpg",
    "cosine": 0.9,
    "pid": 7,
    "camid": 1,
    "time": "2026-11-30T08:15:00+00:00",
    "place": "<script>alert(1)</script>",
    "picture": True,
}
LIMITS = Limits(request_mb=0.4, image_mb=0.2, pixels=100_000, images=4, top=50)


@dataclass
class Answers:
    """Answers like replicas of a calibrated model, and remembers what was asked."""

    asked: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    calibrated: bool = True
    failure: Exception | None = None

    async def call(self, operation: str, *given: Any) -> Any:
        self.asked.append((operation, given))
        if self.failure is not None:
            raise self.failure
        if operation == "picture":
            return b"\xff\xd8" if given[0] == MATCH["image_id"] else None
        line = {"threshold": 0.7, "far": 0.001} if self.calibrated else {}
        said = {"probability": 0.98, "same_person": True} if self.calibrated else {}
        other = {"rank": 2, "cosine": 0.4, "picture": False, "image_id": "b.jpg"}
        unknown = {"probability": 0.0002, "same_person": False} if self.calibrated else {}
        answers: dict[str, Any] = {
            "describe": {
                "fars": [0.001, 0.01] if self.calibrated else [],
                "gallery": {
                    "name": "lobby", "images": 1200, "people": 80, "camids": [1, 4],
                    "places": ["north gate"], "first": "2026-11-01T00:00:00+00:00", "last": None,
                },
            },
            "embed": {"features": [[1.0, 0.0]]},
            "compare": {"cosine": 0.9, **said, **line},
            "search": {"matches": [{**MATCH, **said}, {**MATCH, **other, **unknown}], **line},
            "add": {"added": 1},
            "forget": {"deleted": 3},
        }  # fmt: skip
        return {"answer": {"model": MODEL, **answers[operation]}}


@dataclass
class Counts:
    """Counts like Ray's metrics."""

    answers: list[tuple[str, int]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def answered(self, *, endpoint: str, status: int, seconds: float) -> None:
        self.answers.append((endpoint, status))

    def rejected(self, *, reason: str) -> None:
        self.reasons.append(reason)


async def no_metrics() -> str:
    return "ray_muva_serve_requests_total 1\n"


def settings(limits: Limits = LIMITS, hosts: tuple[str, ...] | None = LOOPBACK) -> ServeSettings:
    return ServeSettings(
        model=MODEL["address"],
        gallery="lobby",
        access=access_by(TOKEN, hosts=hosts),
        limits=limits,
    )


def client(
    replicas: Any = None, *, counts: Counts | None = None, token: bool = True, **changed: Any
) -> TestClient:
    app = build_api(
        replicas or Answers(), settings(**changed), meter=counts or Counts(), metrics=no_metrics
    )
    return TestClient(
        app, base_url=ADDRESS, headers=BEARER if token else {}, follow_redirects=False
    )


def picture(*, width: int = 32, height: int = 64, form: str = "PNG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, form)
    return written.getvalue()


def in_json(*images: bytes, **beside: Any) -> list[dict[str, Any]]:
    return [{"image": base64.b64encode(one).decode(), **beside} for one in images]


def as_files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", ("crop.png", one)) for one in images]
