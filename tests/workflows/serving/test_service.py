"""The service on Ray Serve: its answers, a killed replica, and a new model under load."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

import muva
from muva.data.artifacts import open_artifact
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.models import model_description
from muva.retrieval.gallery_rows import GalleryRow
from muva.retrieval.gallery_table import create_gallery
from tests.workflows.serving.service import BEARER, TOKEN, as_files, in_json, picture
from workflows.session import Session
from workflows.steps.embedding_source import embedding_source
from workflows.steps.named_model import named_model

PICTURES = [picture(seed=seed, form="JPEG") for seed in range(8)]


@dataclass(frozen=True)
class Service:
    address: str
    models: tuple[str, str]
    folder: Path
    deploy: Callable[[str], None]

    def post(self, path: str, **sent: Any) -> dict[str, Any]:
        response = httpx2.post(f"{self.address}{path}", headers=BEARER, timeout=60, **sent)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The shipped model, and one of the same form with other weights, in a store."""
    home = tmp_path_factory.mktemp("home")
    session = Session(home=home, store=open_store(home / "store"), tracking_uri=None)
    first = named_model(session, "synthetic")
    bundle = muva.load("synthetic")
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    bundle.save(home / "other")
    return first.uri, named_model(session, f"{home / 'other'}").uri


@pytest.fixture(scope="module")
def service(
    ray_session: None, models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    from workflows.runtime.local import usable_port
    from workflows.serving.server import deploy, served
    from workflows.serving.settings import Scaling, ServeSettings
    from workflows.serving.token import LOOPBACK, access_by

    folder = tmp_path_factory.mktemp("crops")
    gallery = create_gallery(
        f"{folder.parent / 'lobby.lance'}", embedding_source(open_artifact(models[0]))
    )
    for number, one in enumerate(PICTURES[:3]):
        (folder / f"{number}.jpg").write_bytes(one)
    gallery.add(
        muva.load(models[0]).embed(PICTURES[:3]),
        [GalleryRow(image_id=f"{n}.jpg", pid=n, camid=n % 2, folder=str(folder)) for n in range(3)],
    )

    def settings(model: str) -> ServeSettings:
        return ServeSettings(
            model=model,
            gallery=gallery.uri if model == models[0] else None,
            access=access_by(TOKEN, hosts=LOOPBACK),
            scaling=Scaling(min_replicas=2, max_replicas=2, cpus=0.5, batch_size=8),
        )

    port = usable_port(0)
    with served(settings(models[0]), host="127.0.0.1", port=port):
        address = f"http://127.0.0.1:{port}"
        yield Service(address, models, folder, lambda model: deploy(settings(model)))


def test_features_are_those_of_the_model_in_python(service: Service) -> None:
    expected = muva.load(service.models[0]).embed(PICTURES)
    answer = service.post("/v1/embed", files=as_files(*PICTURES))
    np.testing.assert_allclose(answer["features"], expected, atol=1e-5)
    one, other = expected[:2]
    compared = service.post("/v1/compare", json={"images": in_json(*PICTURES[:2])})
    assert compared["cosine"] == pytest.approx(float(one @ other), abs=1e-5)
    assert compared["same_person"] == (compared["cosine"] > compared["threshold"])


def test_what_is_added_is_found_until_it_is_forgotten(service: Service) -> None:
    person = in_json(PICTURES[5])
    details = {"image_id": "new/5.jpg", "pid": 5, "camid": 7, "time": "2026-11-30T08:00Z"}
    service.post("/v1/add", json={"images": [{**person[0], **details}]})
    found = service.post("/v1/search", json={"images": person, "camids": [7]})
    (match,) = found["matches"]
    assert (match["image_id"], match["rank"], match["picture"]) == ("new/5.jpg", 1, False)
    assert match["cosine"] == pytest.approx(1, abs=1e-4)
    assert match["same_person"]
    assert service.post("/v1/forget", json={"pids": [5]})["deleted"] == 1
    assert service.post("/v1/search", json={"images": person, "camids": [7]})["matches"] == []
    far = service.post("/v1/search", json={"images": person, "far": 0.1})
    assert [match["rank"] for match in far["matches"]] == [1, 2, 3]


def test_only_pictures_of_the_gallery_are_shown(service: Service) -> None:
    def shown(image_id: str) -> httpx2.Response:
        where = f"{service.address}/v1/gallery/image"
        return httpx2.get(where, params={"id": image_id}, headers=BEARER)

    assert shown("1.jpg").content[:2] == b"\xff\xd8"
    (service.folder / "3.jpg").write_bytes(PICTURES[3])  # in the folder, not in the gallery
    for image_id in ("3.jpg", "../crops0/1.jpg", "/etc/passwd", f"{service.folder}/1.jpg", ""):
        assert shown(image_id).status_code == 404, image_id
    (service.folder / "1.jpg").unlink()
    (service.folder / "1.jpg").symlink_to("/etc/passwd")
    assert shown("1.jpg").status_code == 404
    outside = service.folder.parent / "secret.jpg"
    outside.write_bytes(PICTURES[3])
    (service.folder / "2.jpg").unlink()
    (service.folder / "2.jpg").symlink_to(outside)
    assert shown("2.jpg").status_code == 404


def test_damage_behind_a_good_header_is_the_callers_error(service: Service) -> None:
    response = httpx2.post(
        f"{service.address}/v1/embed",
        headers=BEARER,
        files=as_files(PICTURES[0], PICTURES[1][:900]),
    )
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith("images[1]: damaged or truncated")


def test_neither_a_killed_replica_nor_a_new_model_loses_a_request(service: Service) -> None:
    """And no answer mixes two models: its features are those of the model that it names."""
    import ray

    expected = {
        model_description(open_artifact(address))["sha256"]: muva.load(address).embed(PICTURES)
        for address in service.models
    }
    stopped = threading.Event()

    def ask(number: int) -> list[dict[str, Any]]:
        answers = []
        while not stopped.is_set():
            answers.append(service.post("/v1/embed", files=as_files(PICTURES[number])))
            answers[-1]["number"] = number
        return answers

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask, number) for number in range(4)]
        try:
            named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
            name = next(one["name"] for one in named if "Recogniser" in one["name"])
            ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)
            service.deploy(service.models[1])
        finally:
            stopped.set()
        answers = [answer for one in asking for answer in one.result()]
    assert {answer["model"]["weights"] for answer in answers} == set(expected)
    for answer in answers:
        right = expected[answer["model"]["weights"]][answer["number"]]
        np.testing.assert_allclose(answer["features"][0], right, atol=1e-4)


def test_a_gallery_of_another_model_is_refused(service: Service) -> None:
    from workflows.serving.gallery import open_served

    gallery = f"{service.folder.parent / 'lobby.lance'}"
    weights = model_description(open_artifact(service.models[1]))["sha256"]
    with pytest.raises(MuvaError, match=r"computed by .*synthetic.*make a gallery for this one"):
        open_served(gallery, weights)
