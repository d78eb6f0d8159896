"""What the service refuses: see docs/serving.md and docs/security.md."""

from __future__ import annotations

import base64
import gzip
import os
import pickle
import struct
import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.serving.service import (
    ADDRESS,
    LIMITS,
    TOKEN,
    Answers,
    Counts,
    as_files,
    client,
    in_json,
    picture,
)
from workflows.serving.access import COOKIE
from workflows.serving.token import (
    TOKEN_VARIABLE,
    access_by,
    service_token,
    session_key,
    sha256_of,
    token_file,
)

A = picture()
PAGES = ("/", "/page/search", "/logout")


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of some kilobytes that would decode to gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def in_both_ways(image: bytes) -> list[dict[str, Any]]:
    return [{"json": {"images": in_json(image)}}, {"files": as_files(image)}]


def refused(response: Any, status: int, says: str) -> None:
    assert response.status_code == status, response.text
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {sha256_of(TOKEN)}"},
        {"Cookie": f"{COOKIE}={TOKEN}"},
        {"Cookie": f"{COOKIE}={sha256_of(session_key(TOKEN))}"},
        {"Cookie": "a=\x01;;;"},
    ],
)
def test_nothing_is_answered_without_the_token(headers: dict[str, str]) -> None:
    answers = Answers()
    service = client(answers, token=False)
    for path in ("/v1/model", "/v1/gallery", "/metrics", "/openapi.json", "/nothing", "/static"):
        refused(service.get(path, headers=headers), 401, "Authorization: Bearer")
    for path in ("/v1/embed", "/v1/forget", "/page/search"):
        assert service.post(path, headers=headers, content=b"x").status_code == 401
    assert service.get("/", headers=headers).headers["location"] == "/login"
    assert answers.asked == []


def test_replicas_know_hashes_that_open_nothing() -> None:
    access = access_by(TOKEN, hosts=None)
    assert TOKEN not in access.model_dump_json()
    assert session_key(TOKEN) not in access.model_dump_json()


def test_the_login_keeps_the_token_out_of_the_cookie() -> None:
    service = client(token=False)
    origin = {"Origin": ADDRESS}
    assert service.post("/login", data={"token": "wrong"}, headers=origin).status_code == 401
    response = service.post("/login", data={"token": TOKEN}, headers=origin)
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert service.get("/").status_code == 200
    refused(service.post("/login", data={"token": "a" * 5000}, headers=origin), 413, "a token")


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:8001"])
def test_another_site_can_do_nothing_with_the_cookie(origin: str | None) -> None:
    answers = Answers()
    service = client(answers, token=False)
    service.cookies.set(COOKIE, session_key(TOKEN))
    headers = {} if origin is None else {"Origin": origin}
    response = service.post("/v1/forget", json={"pids": [1]}, headers=headers)
    refused(response, 403, "from the page")
    assert answers.asked == []
    mine = service.post("/v1/forget", json={"pids": [1]}, headers={"Origin": ADDRESS})
    assert mine.status_code == 200


def test_other_host_names_are_refused_on_loopback() -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        refused(client().get("/v1/model", headers={"Host": host}), 421, "expected the host")
    for host in ("127.0.0.1:8000", "LOCALHOST:9", "localhost", "[::1]:8000"):
        assert client().get("/v1/model", headers={"Host": host}).status_code == 200
    assert client(hosts=None).get("/v1/model", headers={"Host": "any"}).status_code == 200


def test_every_response_forbids_foreign_scripts_frames_and_caches() -> None:
    for response in (client().get("/"), client(token=False).get("/x"), client().get("/v1/model")):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
    page = client().get("/").text
    assert "<script>" not in page
    assert "style=" not in page
    assert "http://" not in page.replace(ADDRESS, "")
    assert "https://" not in page


@pytest.mark.parametrize(
    "image",
    [
        "http://169.254.169.254/latest/meta-data/",
        "https://example.org/a.jpg",
        "file:///etc/passwd",
        "FTP://example.org/a",
        "s3://bucket/key",
        "data:image/png;base64,AAAA",
        "//example.org/a.jpg",
        "/etc/passwd",
        "../../etc/passwd",
        "~/.muva/serve-token",
    ],
)
def test_addresses_and_paths_are_never_opened(image: str) -> None:
    answers = Answers()
    response = client(answers).post("/v1/embed", json={"images": [{"image": image}]})
    refused(response, 422, "Nothing is fetched")
    assert response.json()["error"]["code"] == "not_fetched"
    form = client(answers).post("/v1/embed", data={"image": image}, files={"x": b""})
    assert 400 <= form.status_code < 500
    assert answers.asked == []


@pytest.mark.parametrize("image_id", [
    "../x", "a/../b", "/etc/passwd", "a//b", ".", "", "a\\b", "a\x00b", "a\nb", "\u202eb",
    "x" * 513,
])  # fmt: skip
def test_ids_lead_nowhere(image_id: str) -> None:
    answers = Answers()
    service = client(answers)
    response = service.post("/v1/add", json={"images": in_json(A, image_id=image_id)})
    assert response.status_code == 422
    assert service.post("/v1/forget", json={"image_ids": [image_id]}).status_code == 422
    assert answers.asked == []


@pytest.mark.parametrize("path", [
    "/static/../api.py", "/static/%2e%2e%2fapi.py", "/static/..%2f..%2fsettings.py",
    "/static//etc/passwd", "/static/page.js%00", "/static/",
])  # fmt: skip
def test_static_files_are_those_alone(path: str) -> None:
    assert client().get("/static/page.js").status_code == 200
    assert client().get(path).status_code == 404


def test_bombs_are_refused_by_their_header() -> None:
    answers = Answers()
    huge = bomb()
    tracemalloc.start()
    for sent in in_both_ways(huge):
        refused(client(answers).post("/v1/embed", **sent), 413, "million pixels")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    just_above = picture(width=317, height=317, form="JPEG")
    refused(client(answers).post("/v1/embed", files=as_files(just_above)), 413, "million pixels")
    assert answers.asked == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        A[:10],
        b"GIF89a" + bytes(100),
        b"II*\x00" + bytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        pickle.dumps({"image": os.getcwd}),
        gzip.compress(A),
    ],
)
def test_only_images_of_known_formats_are_decoded(content: bytes) -> None:
    answers = Answers()
    for sent in in_both_ways(content):
        response = client(answers).post("/v1/embed", **sent)
        assert response.status_code == 422, response.text
        assert response.json()["error"]["code"] == "not_an_image"
    assert answers.asked == []


def test_a_pickle_is_no_body(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "made",))

    content = pickle.dumps(Evil())
    for kind in ("application/octet-stream", "application/x-python-pickle", "", "text/plain"):
        response = client().post("/v1/embed", content=content, headers={"Content-Type": kind})
        refused(response, 415, "application/json or multipart/form-data")
    response = client().post(
        "/v1/embed", content=content, headers={"Content-Type": "application/json"}
    )
    refused(response, 400, "not JSON")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b"\xff\xfe{}", 400, "not JSON"),
        (b"[]", 422, "expected a JSON object, found a list"),
        (b'{"images": 3}', 422, "expected a list, found a number"),
        (b'{"images": ["a"]}', 422, "expected an object"),
        (b'{"images": [{"image": 7}]}', 422, "in base64, found a number"),
        (b'{"images": [{"image": "a*b"}]}', 422, "not base64"),
        (b'{"images": [{"image": "YWJj\\n"}]}', 422, "not base64"),
        (b'{"images": [' + b",".join([b"{}"] * 9) + b"]}", 413, "at most 4 images"),
        (b'{"x": 1' + b"0" * 5000 + b"}", 400, "not JSON"),
    ],
)
def test_malformed_json_is_explained(content: bytes, status: int, says: str) -> None:
    headers = {"Content-Type": "application/json"}
    refused(client().post("/v1/embed", content=content, headers=headers), status, says)


FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", FORM),
        (b"--b\r\n", FORM),
        (b"nothing", FORM),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", FORM),
        (b"--b\r\nContent-Disposition: form-data; name=top\r\n\r\n" + b"x" * 9000, FORM),
        (b"x", {"Content-Type": "multipart/form-data"}),
        (b"--b\r\n" + b"a: b\r\n" * 20_000, FORM),
    ],
)
def test_malformed_forms_are_explained(content: bytes, headers: dict[str, str]) -> None:
    response = client().post("/v1/embed", content=content, headers=headers)
    assert 400 <= response.status_code < 500
    assert response.json()["error"]["message"]


def test_a_request_is_counted_while_it_arrives() -> None:
    """A body without a length, which never ends, is refused at its limit."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while taken < 100 * LIMITS.request_bytes:
            taken += 65_536
            yield b"a" * 65_536

    counts = Counts()
    response = client(counts=counts).post(
        "/v1/embed", content=endless(), headers={"Content-Type": "application/json"}
    )
    refused(response, 413, "at most 0.4 MB")
    assert counts.reasons == ["too_large"]
    declared = {"Content-Type": "application/json", "Content-Length": "1000000000000"}
    refused(client().post("/v1/embed", content=b"{}", headers=declared), 413, "at most")
    large = b"\x89PNG" + bytes(LIMITS.image_bytes)
    refused(client().post("/v1/embed", files=as_files(large)), 413, "at most 0.2 MB")
    refused(client().post("/v1/embed", files=as_files(*[A] * 5)), 413, "at most 4 images")


def test_no_part_of_a_form_is_ever_on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    large = picture(width=900, height=900, form="BMP")
    assert len(large) > 2_000_000  # twice what starlette keeps in memory by itself
    answers = Answers()
    limits = LIMITS.model_copy(update={"request_mb": 9, "image_mb": 9, "pixels": 10**6})
    response = client(answers, limits=limits).post("/v1/embed", files=as_files(large))
    assert response.status_code == 200
    assert answers.asked == [("embed", ([large],))]


def test_neither_images_nor_tokens_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    text = base64.b64encode(A).decode()
    service = client(Answers(failure=RuntimeError(text)))
    service.post("/v1/embed", json={"images": in_json(A)})
    service.post("/v1/embed", json={"images": [{"image": text + "*"}]})
    service.get("/v1/model", headers={"Authorization": f"Bearer {TOKEN}"})
    own = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("httpx"))
    assert TOKEN not in own
    assert text[:40] not in own


def test_the_page_escapes_what_the_gallery_says() -> None:
    response = client().post("/page/search", files=as_files(A))
    assert response.status_code == 200
    assert "<script>" not in response.text
    assert "&lt;script&gt;" in response.text
    assert "id=cam1%2Fa%20b%26c.jpg" in response.text


class TestToken:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv(TOKEN_VARIABLE, raising=False)

    def test_it_is_made_once_and_is_its_owners_alone(self) -> None:
        token, place = service_token()
        assert len(token) >= 40
        assert place == str(token_file())
        assert token_file().stat().st_mode & 0o777 == 0o600
        assert service_token()[0] == token
        token_file().chmod(0o644)
        service_token()
        assert token_file().stat().st_mode & 0o777 == 0o600

    def test_one_of_the_environment_comes_first_and_must_not_be_short(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
        assert service_token()[0] == TOKEN
        assert not token_file().exists()
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        with pytest.raises(Exception, match="16 or more"):
            service_token()
