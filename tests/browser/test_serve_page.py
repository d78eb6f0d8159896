"""The page of `muva serve` in a real browser: `make test-browser`.

With `MUVA_SCREENSHOTS=FOLDER` what it looks like is kept as pictures.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import muva
from muva.data.artifacts import open_artifact
from muva.data.store import open_store
from muva.retrieval.gallery_rows import GalleryRow
from muva.retrieval.gallery_table import create_gallery
from muva.synthetic import render
from tests.workflows.serving.service import TOKEN
from workflows.runtime.local import usable_port
from workflows.session import Session
from workflows.steps.embedding_source import embedding_source
from workflows.steps.named_model import named_model

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = os.environ.get("MUVA_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: MUVA_CHROMIUM names one"),
]
PATIENCE_MS = 20_000
PEOPLE, CAMERAS = 6, 3
PLACES = ("north gate", "hall", "platform 2")


@dataclass(frozen=True)
class Service:
    address: str
    query: Path
    browser: Any

    def page(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> Any:
        """The page, logged in by the link that `muva serve` prints."""
        scheme = "dark" if dark else "light"
        context = self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{self.address}/login#token={TOKEN}")
        page.get_by_role("heading", name="Find a person").wait_for()
        assert TOKEN not in page.url
        return page


def keep(page: Any, name: str) -> None:
    if folder := os.environ.get("MUVA_SCREENSHOTS"):
        page.wait_for_timeout(800)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def crop(pid: int, camid: int, index: int = 0) -> bytes:
    written = io.BytesIO()
    shot = render("syn-plaza", pid=pid, camid=camid, index=index, height=256, width=128)
    Image.fromarray(shot.image).save(written, "JPEG")
    return written.getvalue()


@pytest.fixture(scope="module")
def service(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    from workflows.serving.server import served
    from workflows.serving.settings import ServeSettings
    from workflows.serving.token import LOOPBACK, access_by

    home = tmp_path_factory.mktemp("home")
    session = Session(home=home, store=open_store(home / "store"), tracking_uri=None)
    model = named_model(session, "synthetic").uri
    folder = tmp_path_factory.mktemp("crops")
    gallery = create_gallery(f"{home}/lobby.lance", embedding_source(open_artifact(model)))
    rows, images = [], []
    for pid in range(1, PEOPLE + 1):
        for camid in range(1, CAMERAS + 1):
            images.append(crop(pid, camid))
            (folder / f"{pid}-{camid}.jpg").write_bytes(images[-1])
            rows.append(
                GalleryRow(
                    image_id=f"{pid}-{camid}.jpg",
                    pid=pid,
                    camid=camid,
                    time=datetime(2026, 11, 30, 8 + pid, camid, tzinfo=UTC),
                    place=PLACES[camid - 1],
                    folder=str(folder) if pid != PEOPLE else None,
                )
            )
    gallery.add(muva.load(model).embed(images), rows)
    query = home / "query.jpg"
    query.write_bytes(crop(2, 1, 1))
    settings = ServeSettings(
        model=model, gallery=gallery.uri, access=access_by(TOKEN, hosts=LOOPBACK)
    )
    port = usable_port(0)
    with (
        served(settings, host="127.0.0.1", port=port),
        playwright.sync_playwright() as browsers,
    ):
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Service(f"http://127.0.0.1:{port}", query, browser)
        browser.close()


def searched(page: Any, query: Path) -> None:
    page.set_input_files("#image", query)
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator(".match").first.wait_for()


def test_a_picture_finds_the_person_above_the_line(service: Service) -> None:
    page = service.page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    searched(page, service.query)
    assert page.locator("#preview").get_attribute("src").startswith("blob:")
    same = page.locator(".match.same")
    assert same.count() >= 1
    assert " ".join(same.first.locator("dl div").nth(1).inner_text().split()) == "Person 2"
    assert page.get_by_role("heading", name="Not known to be the same person").is_visible()
    assert page.locator(".match").count() == PEOPLE * CAMERAS
    assert page.locator(".no-picture").count() == CAMERAS
    first = same.first.locator("img")
    first.evaluate("image => image.decode()")
    assert first.evaluate("image => image.naturalWidth") > 0
    keep(page, "serve-found")
    assert problems == []


def test_cameras_places_times_and_numbers_narrow_the_search(service: Service) -> None:
    page = service.page()
    page.get_by_label("hall").check()
    page.get_by_label("Results").select_option("10")
    page.get_by_label("False accepts").select_option("0.1")
    page.get_by_label("From").fill("2026-11-30T10:00")
    page.get_by_label("To").fill("2026-11-30T12:00")
    searched(page, service.query)
    assert sorted(page.locator(".match .id").all_inner_texts()) == ["2-2.jpg", "3-2.jpg"]
    assert "10 % per image" in page.locator(".verdict").inner_text()
    page.get_by_label("1", exact=True).check()
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_role("heading", name="Nothing found").wait_for()


def test_a_dropped_picture_is_searched_for_at_once(service: Service) -> None:
    page = service.page()
    data = page.evaluate_handle(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "a.jpg", {type: "image/jpeg"}));
            return data;
        }""",
        list(service.query.read_bytes()),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    page.locator(".match").first.wait_for()


def test_what_is_no_picture_is_explained_in_the_page(service: Service, tmp_path: Path) -> None:
    wrong = tmp_path / "a.jpg"
    wrong.write_text("no picture")
    page = service.page()
    page.set_input_files("#image", wrong)
    page.get_by_role("button", name="Search", exact=True).click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "expected an image in JPEG" in alert.inner_text()


def test_it_can_be_used_by_keyboard_and_on_a_phone(service: Service) -> None:
    page = service.page(width=400, height=860)
    page.set_input_files("#image", service.query)
    page.locator("#image").focus()
    for _ in range(30):
        if page.evaluate("document.activeElement.id") == "find":
            break
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.press("Enter")
    page.locator(".match").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    keep(page, "serve-phone")


def test_without_the_token_there_is_only_the_login(service: Service) -> None:
    page = service.browser.new_context().new_page()
    page.goto(service.address)
    page.get_by_label("Token").fill("not-the-token")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Find a person").wait_for()
    assert "muva-session" not in page.evaluate("document.cookie")
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").wait_for()
    page.goto(service.address)
    page.get_by_label("Token").wait_for()


def test_it_is_readable_in_the_dark(service: Service) -> None:
    page = service.page(dark=True)
    searched(page, service.query)
    keep(page, "serve-dark")
    colours = page.locator("body").evaluate(
        """body => [
            getComputedStyle(body).color,
            getComputedStyle(document.documentElement).backgroundColor,
        ]"""
    )
    assert colours[0] != colours[1]
