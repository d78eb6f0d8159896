"""Artifacts: complete once the manifest exists, found by name, kept while they are needed."""

import json

import pytest

from muva.config import Stage1Config
from muva.data.artifacts import (
    Artifact,
    find_artifact,
    fingerprint,
    list_artifacts,
    open_artifact,
)
from muva.data.lineage import Lineage
from muva.data.store import open_store
from muva.errors import MuvaError


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


def made(store, kind, name, *, inputs=None, seed=0, commit=True):
    artifact = Artifact(store, kind, name, fingerprint([kind, name, seed]))
    store.write(artifact.key("part"), b"content")
    if commit:
        artifact.commit(format_version=1, config={}, inputs=inputs or {}, summary={"seed": seed})
    return artifact


def test_fingerprints_see_values_and_not_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [1.5, None]}) == fingerprint({"b": [1.5, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"stage1": Stage1Config()}) == fingerprint({"stage1": Stage1Config()})
    assert fingerprint(Stage1Config()) != fingerprint(Stage1Config(epochs=7))
    assert fingerprint("ü") == "e4c77d3f26dacb0b"


def test_values_without_a_canonical_form_have_no_fingerprint():
    with pytest.raises(TypeError, match="set cannot be part of a fingerprint"):
        fingerprint({1, 2})
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint(float("nan"))


def test_an_artifact_is_unfinished_until_its_manifest_is_written(store):
    artifact = made(store, "datasets", "market1501", commit=False)
    assert artifact.manifest() is None
    assert list_artifacts(store) == []
    assert list_artifacts(store, unfinished=True) == [artifact]
    assert artifact.commit(
        format_version=3, config={"x": 1}, inputs={"source": "a/b"}, summary={}, seconds=2.5
    )
    manifest = artifact.manifest(format_version=3)
    assert manifest is not None
    assert manifest["config"] == {"x": 1}
    assert manifest["inputs"] == {"source": "a/b"}
    assert manifest["seconds"] == 2.5
    assert manifest["libraries"]["numpy"]
    assert list_artifacts(store, "datasets") == [artifact]


def test_the_first_commit_wins(store):
    artifact = made(store, "models", "m", seed=1)
    assert not artifact.commit(format_version=9, config={}, inputs={}, summary={"seed": 2})
    manifest = artifact.manifest()
    assert manifest is not None and manifest["summary"] == {"seed": 1}


def test_another_format_is_rejected_with_a_remedy(store):
    artifact = made(store, "models", "m")
    with pytest.raises(MuvaError, match=r"expected format 1\.2, found 1\.1, which this version"):
        artifact.manifest(format_version=2)
    newer = {**json.loads(store.read(artifact.key("manifest.json"))), "manifest_format": 2}
    store.write(artifact.key("manifest.json"), json.dumps(newer).encode())
    with pytest.raises(MuvaError, match="delete the artifact and run the same command again"):
        artifact.manifest()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"manifest_format": 1, "format_version": 1}']
)
def test_a_damaged_manifest_is_reported(store, text):
    artifact = made(store, "models", "m")
    store.write(artifact.key("manifest.json"), text)
    with pytest.raises(MuvaError, match=r"manifest\.json is damaged"):
        artifact.manifest()


def test_a_name_refers_to_the_newest_artifact_and_a_fingerprint_to_exactly_one(store):
    older, newer = (made(store, "models", "muva", seed=seed) for seed in (1, 2))
    made(store, "models", "muva", seed=3, commit=False)
    assert find_artifact(store, "models", "muva") == newer
    assert find_artifact(store, "models", f"muva-{older.fingerprint}") == older
    assert find_artifact(store, "models", older.address) == older
    assert open_artifact(older.uri) == older


def test_a_name_refers_to_what_was_last_made_the_latest(store):
    older, newer = (made(store, "datasets", "mine", seed=seed) for seed in (1, 2))
    newer.set_latest()
    assert list(store.list(newer.key())) == [newer.key("manifest.json"), newer.key("part")]
    older.set_latest()
    assert find_artifact(store, "datasets", "mine") == older
    newer.set_latest()
    assert find_artifact(store, "datasets", "mine") == newer
    latest = made(store, "datasets", "mine", seed=3)
    assert find_artifact(store, "datasets", "mine") == latest


def test_a_clock_that_was_set_back_does_not_change_the_latest_artifact(store, monkeypatch):
    older = made(store, "models", "muva", seed=1)
    monkeypatch.setattr("muva.data.artifacts._now", lambda: "2001-01-01T00:00:00.000000+00:00")
    newer = made(store, "models", "muva", seed=2)
    newer.set_latest()
    assert find_artifact(store, "models", "muva") == newer
    older.set_latest()
    assert find_artifact(store, "models", "muva") == older
    newer.set_latest()
    assert find_artifact(store, "models", "muva") == newer


def test_a_damaged_artifact_does_not_hide_the_others(store):
    damaged, sound = (made(store, "datasets", "mine", seed=seed) for seed in (1, 2))
    store.write(damaged.key("manifest.json"), b"{")
    assert find_artifact(store, "datasets", "mine") == sound
    assert Lineage.of(store).unused(keep=[damaged.address, sound.address]) == [damaged]


def test_a_name_may_contain_what_looks_like_a_fingerprint(store):
    artifact = made(store, "models", "a-0123456789abcdef")
    assert list_artifacts(store) == [artifact]
    assert open_artifact(artifact.uri).name == "a-0123456789abcdef"


def test_a_missing_artifact_is_an_error_with_the_closest_names(store):
    with pytest.raises(MuvaError, match="there are no datasets yet"):
        find_artifact(store, "datasets", "market")
    for name in ("market1501", "msmt17"):
        made(store, "datasets", name)
    with pytest.raises(MuvaError, match="closest: market1501"):
        find_artifact(store, "datasets", "market")
    with pytest.raises(MuvaError, match="expected <store>/<kind>/<name>-<fingerprint>"):
        open_artifact("store/models/muva")
    with pytest.raises(MuvaError, match="expected one of datasets"):
        Artifact(store, "pictures", "x", "0" * 16)
    with pytest.raises(MuvaError, match="expected letters, digits"):
        Artifact(store, "models", "../x", "0" * 16)


def test_artifacts_that_nothing_kept_depends_on_are_unused(store):
    data = made(store, "datasets", "a")
    other = made(store, "datasets", "b")
    labels = made(store, "labels", "a", inputs={"dataset": data.address})
    gone = "models/gone-0000000000000000"
    model = made(store, "models", "m", inputs={"labels 0": labels.address, "init": gone})
    half = made(store, "models", "half", commit=False)
    keep = [model.address, half.address, "models/unknown-0000000000000000"]
    unused = Lineage.of(store).unused(keep=keep)
    assert [a.address for a in unused] == sorted([other.address, half.address])
    assert other.size_bytes() > len(b"content")
    other.delete()
    assert list(store.list(other.address)) == []
    assert [a.address for a in list_artifacts(store)] == [
        data.address,
        labels.address,
        model.address,
    ]
