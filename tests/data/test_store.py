"""Stores: a local folder and S3's protocol, spoken by moto's server, keep the same promises."""

import errno
import os
import pickle
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from muva.data.store import LocalStore, MissingKeyError, S3Store, Store, open_store
from muva.errors import MuvaError


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path) -> Store:
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


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "s3":
        return request.getfixturevalue("s3")
    return open_store(tmp_path / "store")


def test_what_is_written_is_read_back(store):
    store.write("a/b.bin", b"one")
    store.write("a/b.bin", b"two, and longer")
    assert store.read("a/b.bin") == b"two, and longer"
    assert store.size("a/b.bin") == len(b"two, and longer")
    assert store.path("a/b.bin").read_bytes() == b"two, and longer"
    assert store.exists("a/b.bin")
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert not store.exists("a/b.bin")


def test_a_local_path_follows_the_content(store):
    store.write("key", b"one")
    assert store.path("key").read_bytes() == b"one"
    store.write("key", b"two")
    assert store.path("key").read_bytes() == b"two"


def test_listing_gives_the_keys_with_a_prefix_in_order_of_characters(store):
    for key in ("a/b-d", "ab", "b"):
        store.write(key, b"")
    store.write("a/c/d", b"")
    assert list(store.list()) == ["a/b-d", "a/c/d", "ab", "b"]
    assert list(store.list("a/")) == ["a/b-d", "a/c/d"]
    assert list(store.list("a/b")) == ["a/b-d"]
    assert list(store.list("a")) == ["a/b-d", "a/c/d", "ab"]
    assert list(store.list("none/at/all")) == []


def test_of_many_that_create_a_key_the_first_one_wins(store):
    start = threading.Barrier(16)

    def create(writer: int) -> bool:
        start.wait()
        return store.create("race/manifest.json", b"%d" % writer)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(16)))
    assert won.count(True) == 1
    assert store.read("race/manifest.json") == b"%d" % won.index(True)


def test_writers_and_deleters_of_neighbours_do_not_disturb_each_other(tmp_path):
    store = open_store(tmp_path)

    def churn(writer: int) -> None:
        for turn in range(50):
            store.write(f"folder/{writer}", b"%d" % turn)
            assert store.read(f"folder/{writer}") == b"%d" % turn
            store.delete(f"folder/{writer}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    assert list(store.list()) == []


def test_a_missing_key_is_named(store):
    for look in (store.read, store.size, store.path):
        with pytest.raises(MissingKeyError, match="there is no not/there"):
            look("not/there")


def test_a_folder_that_a_neighbour_removes_under_a_writer_is_made_again(tmp_path, monkeypatch):
    store, replace, calls = open_store(tmp_path), os.replace, []

    def removed_once(aside: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 1:
            target.parent.rmdir()
        replace(aside, target)

    monkeypatch.setattr(os, "replace", removed_once)
    store.write("folder/key", b"value")
    assert (store.read("folder/key"), len(calls)) == (b"value", 2)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../../b", "a//b", "./a"])
def test_keys_stay_within_the_store(store, key):
    with pytest.raises(MuvaError, match="is no key"):
        store.write(key, b"")


def test_a_store_travels_to_other_processes(store):
    store.write("key", b"value")
    assert pickle.loads(pickle.dumps(store)).read("key") == b"value"
    assert open_store(store.uri).read("key") == b"value"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path, monkeypatch, error):
    store = open_store(tmp_path)
    store.write("before", b"value")

    def full(_: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", full)  # where delayed allocation finds the disk full
    for write in (store.write, store.create):
        with pytest.raises(MuvaError, match=r"disk is full, new was not written.*store gc"):
            write("new", b"value")
    monkeypatch.undo()
    assert list(store.list()) == ["before"]
    assert list((tmp_path / ".partial").iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file" / "store", Path("/proc/no-such-store")):
        with pytest.raises(MuvaError, match="cannot write key"):
            open_store(root).write("key", b"")


def test_what_a_killed_writer_left_is_not_listed_and_is_swept(tmp_path):
    store = open_store(tmp_path)
    store.write("whole", b"value")
    (tmp_path / ".partial" / "0123").write_bytes(b"hal")
    assert list(store.list()) == ["whole"]
    assert store.sweep(older_than_s=3600) == 0
    os.utime(tmp_path / ".partial" / "0123", (0, 0))
    assert store.sweep(older_than_s=3600) == 1


@pytest.mark.parametrize(
    ("uri", "message"),
    [("s3:///prefix", "found no bucket"), ("gs://bucket/prefix", "found the scheme gs")],
)
def test_addresses_that_are_no_stores_are_refused(uri, message):
    with pytest.raises(MuvaError, match=message):
        open_store(uri)


def test_kinds_of_addresses(tmp_path):
    assert isinstance(open_store(f"file://{tmp_path}"), LocalStore)
    assert isinstance(open_store("s3://bucket"), S3Store)
    assert open_store("s3://bucket/a/b/").uri == "s3://bucket/a/b"


def test_a_missing_bucket_is_said(s3):
    del s3
    with pytest.raises(MuvaError, match="Create the bucket first"):
        open_store("s3://no-such-bucket/prefix").write("key", b"")


def test_an_endpoint_that_is_no_address_is_said(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(MuvaError, match="expected AWS_ENDPOINT_URL as http://HOST:PORT"):
        open_store(s3.uri).read("key")


def test_missing_credentials_are_said(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(MuvaError, match="AWS_ACCESS_KEY_ID"):
        open_store(s3.uri).read("key")
