"""`muva.load("hf://…")` with the real huggingface_hub, against a small hub on 127.0.0.1."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import muva
from muva.errors import MuvaError, SettingsError
from muva.hub import download
from muva.hub.address import HubAddress, parse_hub_address
from muva.model.bundle import load_bundle, save_bundle
from tests.hub.fixtures import use_endpoint
from tests.hub.hub_server import READER, Hub
from tests.model.small import IMAGE_SIZE, small_model

NAME = "team/people"
URI = f"hf://{NAME}"
PICTURES = list(np.random.default_rng(0).integers(0, 256, (2, *IMAGE_SIZE, 3), dtype=np.uint8))


def bundle_files(folder: Path, *, seed: int = 0) -> dict[str, bytes]:
    save_bundle(small_model(seed=seed), folder, metadata={"source_names": ["a"]})
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def features(folder: Path) -> np.ndarray:
    return load_bundle(folder).embed(PICTURES)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return bundle_files(tmp_path / "bundle")


@pytest.fixture
def expected(files: dict[str, bytes], tmp_path: Path) -> np.ndarray:
    return features(tmp_path / "bundle")


def downloads(hub: Hub) -> list[str]:
    return [path for method, path, _ in hub.requests if method == "GET" and "/api/" not in path]


@pytest.mark.parametrize(
    ("text", "revision", "expected"),
    [
        ("hf://team/people", None, "main"),
        ("hf://team/people/", None, "main"),
        ("hf://team/people@v1.0", None, "v1.0"),
        ("hf://team/people@refs/pr/3", None, "refs/pr/3"),
        ("team/people", "v2", "v2"),
        ("hf://team/people@v2", "v2", "v2"),
    ],
)
def test_an_address_names_a_repository_and_a_revision(
    text: str, revision: str | None, expected: str
) -> None:
    found = parse_hub_address(text, revision=revision)
    assert found == HubAddress(repository="team/people", revision=expected)
    assert parse_hub_address(found.uri) == found


@pytest.mark.parametrize(
    "text",
    ["hf://people", "hf://datasets/team/people", "hf://team/people@", "hf://../x", "hf:///x"],
)
def test_what_is_no_address_is_refused_without_asking_the_hub(text: str, hub: Hub) -> None:
    with pytest.raises(SettingsError, match="expected the address of a model on the hub"):
        muva.load(text)
    with pytest.raises(SettingsError, match="names the revision v1, and the setting"):
        muva.load(f"{URI}@v1", revision="v2")
    assert hub.requests == []


def test_a_revision_is_refused_for_a_model_that_is_not_on_the_hub(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="apply to models on the hub"):
        muva.load(tmp_path / "bundle", revision="v1")


def test_only_the_files_of_a_bundle_are_downloaded(
    hub: Hub, files: dict[str, bytes], expected: np.ndarray
) -> None:
    commit = hub.add(NAME, {**files, "pytorch_model.bin": b"a pickle", "README.md": b"# card"})
    bundle = muva.load(URI)
    np.testing.assert_array_equal(bundle.embed(PICTURES), expected)
    assert bundle.metadata["hub"] == {"repository": NAME, "revision": "main", "commit": commit}
    assert bundle.metadata["source_names"] == ["a"]
    resolved = [path.rpartition("/")[2] for path in downloads(hub) if "/resolve/" in path]
    assert resolved == ["bundle.json"]
    assert len(downloads(hub)) == 2  # the second is that of the weights, from another host


def test_a_model_is_downloaded_once(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    muva.load(URI)
    before = len(downloads(hub))
    muva.load(URI)
    assert len(downloads(hub)) == before


def test_a_revision_is_a_branch_a_tag_or_a_commit(
    hub: Hub, files: dict[str, bytes], expected: np.ndarray, tmp_path: Path
) -> None:
    first = hub.add(NAME, files)
    hub.repositories[NAME].refs["v1"] = first
    hub.add(NAME, bundle_files(tmp_path / "second", seed=1))
    newest = features(tmp_path / "second")
    assert not np.allclose(newest, expected, atol=1e-3)
    np.testing.assert_array_equal(muva.load(URI).embed(PICTURES), newest)
    np.testing.assert_array_equal(muva.load(f"{URI}@v1").embed(PICTURES), expected)
    np.testing.assert_array_equal(muva.load(URI, revision=first).embed(PICTURES), expected)


def test_a_branch_that_moves_is_loaded_anew(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(NAME, files)
    muva.load(URI)
    second = hub.add(NAME, bundle_files(tmp_path / "second", seed=1))
    assert muva.load(URI).metadata["hub"]["commit"] == second


def test_another_cache_can_be_named(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add(NAME, files)
    muva.load(URI, cache=tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere").glob("models--team--people"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_a_busy_hub_leads_to_the_cached_commit(
    status: int,
    hub: Hub,
    files: dict[str, bytes],
    expected: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:
    commit = hub.add(NAME, files)
    muva.load(URI)
    hub.status = status
    np.testing.assert_array_equal(muva.load(URI).embed(PICTURES), expected)
    [said] = [record for record in caplog.records if record.name.startswith("muva")]
    assert said.levelno == logging.WARNING
    assert f"responds with status {status}; the cached commit {commit} is used" in said.message
    with pytest.raises(MuvaError, match=rf"status {status}, and the local cache has no copy\. Try"):
        muva.load("hf://team/others")


def test_a_slow_hub_leads_to_the_cached_commit(
    hub: Hub,
    files: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = hub.add(NAME, files)
    muva.load(URI)
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    hub.delay_s = 2.0
    assert muva.load(URI).metadata["hub"]["commit"] == commit
    assert f"does not respond in time; the cached commit {commit}" in caplog.text
    with pytest.raises(MuvaError, match="does not respond in time, and the local cache has no"):
        muva.load("hf://team/others")


def test_without_a_hub_the_cache_is_used(
    hub: Hub,
    files: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = hub.add(NAME, files)
    muva.load(URI)
    use_endpoint(monkeypatch, "http://127.0.0.1:9")  # nothing listens there
    assert muva.load(URI).metadata["hub"]["commit"] == commit
    assert "cannot be reached (" in caplog.text
    with pytest.raises(MuvaError, match=r"cannot be reached .* has no copy"):
        muva.load(f"{URI}@v1")


def test_offline_without_a_copy_is_reported(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MuvaError, match="HF_HUB_OFFLINE is set, and the local cache has no copy"):
        muva.load(URI)
    assert hub.requests == []


def test_a_commit_in_the_cache_needs_no_hub(
    hub: Hub, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    commit = hub.add(NAME, files)
    muva.load(URI)
    asked = len(hub.requests)
    assert muva.load(f"{URI}@{commit}").metadata["hub"]["commit"] == commit
    assert len(hub.requests) == asked
    assert caplog.text == ""


def test_the_variables_of_the_hubs_own_client_apply(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    commit = hub.add(NAME, files, private=True)
    program = "import sys, muva; print(muva.load(sys.argv[1]).metadata['hub']['commit'])"

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        home = {"HF_HOME": f"{tmp_path / 'hf'}", "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [sys.executable, "-c", program, URI],
            env={**kept, **home, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    first = run(HF_TOKEN=READER)
    assert first.stdout.strip() == commit, first.stderr
    asked = len(hub.requests)
    offline = run(HF_HUB_OFFLINE="1")
    assert offline.stdout.strip() == commit
    assert f"HF_HUB_OFFLINE is set; the cached commit {commit} is used" in offline.stderr
    assert len(hub.requests) == asked
    assert READER not in first.stderr + offline.stderr


def test_a_repository_without_a_bundle_is_refused_with_what_it_has(hub: Hub) -> None:
    hub.add(NAME, {"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    with pytest.raises(
        MuvaError,
        match=r"expected bundle\.json and model\.safetensors, found config\.json, pytorch_model",
    ):
        muva.load(URI)
    assert downloads(hub) == []


def test_refusals_say_what_is_missing(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    hub.add("team/secret", files, private=True)
    hub.add("team/gated", files, gated=True)

    with pytest.raises(MuvaError, match=r"has no revision v9; .*main.* a branch, a tag"):
        muva.load(f"{URI}@v9")
    with pytest.raises(MuvaError, match=r"no such repository .* there is no token.*set HF_TOKEN"):
        muva.load("hf://team/secret")
    with pytest.raises(MuvaError, match=r"is gated.*Accept its terms at http.*/team/gated"):
        muva.load("hf://team/gated")
    monkeypatch.setenv("HF_TOKEN", READER)
    muva.load("hf://team/secret")
    with pytest.raises(MuvaError, match=r"no such repository .*404.* gives no access"):
        muva.load("hf://team/nowhere")
    monkeypatch.setenv("HF_TOKEN", "hf_expired0123456789abcdef")
    with pytest.raises(MuvaError, match=r"wrong or expired\. Create a new one") as refused:
        muva.load(URI)
    assert "hf_expired" not in str(refused.value)


@pytest.mark.parametrize(("status", "said"), [(403, "no permission"), (418, "status 418")])
def test_a_refusal_is_no_outage_but_names_the_cached_copy(
    status: int, said: str, hub: Hub, files: dict[str, bytes]
) -> None:
    commit = hub.add(NAME, files)
    muva.load(URI)
    hub.status = status
    with pytest.raises(MuvaError, match=f"{said}.*cached copy is {URI}@{commit}"):
        muva.load(URI)


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    hub: Hub,
    files: dict[str, bytes],
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add(NAME, files, private=True)
    monkeypatch.setenv("HF_TOKEN", READER)
    caplog.set_level(logging.DEBUG)
    bundle = muva.load(URI)
    for _, path, token in hub.requests:
        assert token == (None if path.startswith("/large/") else READER), path
    assert READER not in caplog.text + str(bundle.metadata)
    stored = [file.read_bytes() for file in cache.rglob("*") if file.is_file()]
    assert not any(READER.encode() in content for content in stored)


def test_a_download_that_breaks_off_is_continued(
    hub: Hub, files: dict[str, bytes], expected: np.ndarray
) -> None:
    hub.add(NAME, files)
    hub.cut = 1
    np.testing.assert_array_equal(muva.load(URI).embed(PICTURES), expected)


def test_a_damaged_download_is_repeated_and_never_used(
    hub: Hub, files: dict[str, bytes], expected: np.ndarray
) -> None:
    hub.add(NAME, files)
    hub.damaged = True
    with pytest.raises(MuvaError, match=r"model\.safetensors is damaged: expected the SHA-256"):
        muva.load(URI)
    assert len([path for path in downloads(hub) if path.startswith("/large/")]) == 2
    hub.damaged = False
    np.testing.assert_array_equal(muva.load(URI).embed(PICTURES), expected)
