"""Stores: a local folder and S3 (served by moto) give the same guarantees."""

import errno
import os
import pickle
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from benchmarks import disturbed_server as disturbed
from benchmarks.disturbed_server import Disturber
from muva.data import store as store_module
from muva.data.artifacts import Artifact
from muva.data.store import (
    LocalStore,
    MissingKeyError,
    S3Store,
    Store,
    check_writable,
    open_store,
)
from muva.errors import MuvaError


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


def test_the_first_of_many_writers_creates_a_key(store):
    start = threading.Barrier(16)

    def create(writer: int) -> bool:
        start.wait()
        return store.create("race/manifest.json", b"%d" % writer)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(16)))
    assert won.count(True) == 1
    assert store.read("race/manifest.json") == b"%d" % won.index(True)


def test_writers_and_deleters_of_neighbouring_keys_do_not_interfere(tmp_path):
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
    for check in (store.read, store.size, store.path):
        with pytest.raises(MissingKeyError, match="there is no not/there"):
            check("not/there")


def test_a_folder_deleted_under_a_writer_is_created_again(tmp_path, monkeypatch):
    store, replace, calls = open_store(tmp_path), os.replace, []

    def removed_once(temporary: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 1:
            target.parent.rmdir()
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", removed_once)
    store.write("folder/key", b"value")
    assert (store.read("folder/key"), len(calls)) == (b"value", 2)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../../b", "a//b", "./a"])
def test_keys_stay_within_the_store(store, key):
    with pytest.raises(MuvaError, match="is not a key"):
        store.write(key, b"")


def test_a_store_can_be_pickled_to_other_processes(store):
    store.write("key", b"value")
    assert pickle.loads(pickle.dumps(store)).read("key") == b"value"
    assert open_store(store.uri).read("key") == b"value"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_and_leaves_nothing_behind(tmp_path, monkeypatch, error):
    store = open_store(tmp_path)
    store.write("before", b"value")

    def full(_: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", full)  # where delayed allocation finds the disk full
    for write in (store.write, store.create):
        with pytest.raises(MuvaError, match=r"disk is full, so new was not written.*store gc"):
            write("new", b"value")
    monkeypatch.undo()
    assert list(store.list()) == ["before"]
    assert list((tmp_path / ".partial").iterdir()) == []


def test_a_folder_that_is_not_writable_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file" / "store", Path("/proc/no-such-store")):
        with pytest.raises(MuvaError, match="cannot write key"):
            open_store(root).write("key", b"")


def test_leftovers_of_a_killed_writer_are_not_listed_and_are_swept(tmp_path):
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
def test_uris_that_are_not_stores_are_rejected(uri, message):
    with pytest.raises(MuvaError, match=message):
        open_store(uri)


def test_store_uris(tmp_path):
    assert isinstance(open_store(f"file://{tmp_path}"), LocalStore)
    assert isinstance(open_store("s3://bucket"), S3Store)
    assert open_store("s3://bucket/a/b/").uri == "s3://bucket/a/b"


def test_a_missing_bucket_is_reported(s3):
    del s3
    with pytest.raises(MuvaError, match="Create the bucket first"):
        open_store("s3://no-such-bucket/prefix").write("key", b"")


def test_an_invalid_endpoint_is_reported(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(MuvaError, match="expected AWS_ENDPOINT_URL to be http://HOST:PORT"):
        open_store(s3.uri).read("key")


def test_missing_credentials_are_reported(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(MuvaError, match="AWS_ACCESS_KEY_ID"):
        open_store(s3.uri).read("key")


def test_a_certificate_that_cannot_be_checked_is_not_blamed_on_the_keys(s3, monkeypatch):
    with_tls = os.environ["AWS_ENDPOINT_URL"].replace("http:", "https:")
    monkeypatch.setenv("AWS_ENDPOINT_URL", with_tls)
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)  # between retries
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nonexistent.pem")
    with pytest.raises(MuvaError, match=r"cannot list: SSL.*Expected AWS_CA_BUNDLE"):
        list(s3.list())


def test_a_name_that_no_bucket_can_have_is_reported():
    with pytest.raises(MuvaError, match=r"(?i)bucket name.*Expected s3://BUCKET/PREFIX"):
        list(open_store("s3://my bucket!/people").list())


def test_a_file_system_without_hard_links_is_refused_before_the_work(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(MuvaError, match=r"no hard links .*Choose a folder on another"):
        Artifact(open_store(tmp_path), "models", "name", "0" * 16).start(
            format_version=1, config={}, inputs={}
        )
    assert list(open_store(tmp_path).list()) == []


def test_a_file_system_that_flushes_no_folders_is_sufficient(tmp_path, monkeypatch):
    flush = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    store = open_store(tmp_path)
    check_writable(store)
    store.write("key", b"value")
    assert store.read("key") == b"value"


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("ignores", "does not honour If-None-Match"),
        ("refuses", "cannot write .*The server lacks a function.*If-None-Match"),
    ],
)
def test_a_server_without_conditional_writes_is_refused(s3, monkeypatch, server, message):
    call = S3Store._call

    def without(self: S3Store, operation: str, key: str, **arguments: object) -> object:
        conditional = arguments.pop("IfNoneMatch", None) is not None
        if conditional and server == "refuses":
            response = {
                "Error": {"Code": "NotImplemented", "Message": "A header is not implemented"},
                "ResponseMetadata": {"HTTPStatusCode": 501},
            }
            raise ClientError(response, "PutObject")
        return call(self, operation, key, **arguments)

    monkeypatch.setattr(S3Store, "_call", without)
    with pytest.raises(MuvaError, match=message):
        check_writable(s3)
    assert list(s3.list()) == []


def test_a_store_is_checked_once(s3):
    check_writable(s3)
    s3.write("key", b"")
    check_writable(S3Store(s3.uri))
    assert list(s3.list()) == ["key"]


def test_large_values_are_uploaded_in_parts_and_interrupted_uploads_are_swept(s3, monkeypatch):
    from boto3.session import Session

    monkeypatch.setattr(store_module, "MULTIPART_BYTES", 6 * 2**20)
    monkeypatch.setattr(store_module, "PART_BYTES", 5 * 2**20)
    store_module._transfer_config.cache_clear()
    large = os.urandom(12 * 2**20)
    s3.write("large", large)
    assert s3.read("large") == large
    assert s3.path("large").read_bytes() == large
    bucket, _, prefix = s3.uri.removeprefix("s3://").partition("/")
    client = Session().client("s3")
    # The ETag of a multipart upload ends with the number of parts.
    assert client.head_object(Bucket=bucket, Key=f"{prefix}/large")["ETag"].endswith('-3"')
    client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/broken")
    client.create_multipart_upload(Bucket=bucket, Key="another's")
    century = 100 * 365 * 86400
    # in moto, all uploads were initiated in 2010
    assert (s3.sweep(older_than_s=century), s3.sweep(older_than_s=3600)) == (0, 1)
    assert [u["Key"] for u in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [
        "another's"
    ]
    store_module._transfer_config.cache_clear()


def test_empty_folder_objects_of_other_programs_are_not_keys_and_are_swept(s3):
    from boto3.session import Session
    from pyarrow.fs import S3FileSystem

    bucket, _, prefix = s3.uri.removeprefix("s3://").partition("/")
    S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"]).create_dir(
        f"{bucket}/{prefix}/models/muva/ray"
    )
    client = Session().client("s3")
    client.put_object(Bucket=bucket, Key=f"{prefix}/", Body=b"")  # created by a user
    s3.write("models/muva/ray/notes.json", b"{}")
    assert list(s3.list()) == ["models/muva/ray/notes.json"]
    s3.delete("models/muva/ray/notes.json")
    assert s3.sweep(older_than_s=3600) == 0
    assert s3.sweep(older_than_s=-60) > 0
    left = client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert [entry["Key"] for entry in left] == [f"{prefix}/"]


def test_requests_that_are_refused_delayed_or_cut_off_are_retried(s3, s3_server, monkeypatch):
    disturber = Disturber(seed=0, share=0.3)
    monkeypatch.setattr(disturbed, "SLOW_S", 0.05)
    with disturbed.disturbed_server(s3_server, disturber) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        store = open_store(s3.uri)
        for turn in range(12):
            content = b"%d " % turn * 5000
            store.write(f"part-{turn}", content)
            assert store.read(f"part-{turn}") == content
            assert store.path(f"part-{turn}").read_bytes() == content
            assert store.create(f"manifest-{turn}", content)
            assert not store.create(f"manifest-{turn}", b"another's")
        assert len(list(store.list())) == 24
    assert all(disturber.disturbed.values()), disturber.disturbed


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("RequestTimeTooSkewed", "clock is wrong"),
        ("PermanentRedirect", "another region: set AWS_REGION"),
        ("AuthorizationHeaderMalformed", "another region: set AWS_REGION"),
        ("AccessDenied", "lack the permission for this operation"),
    ],
)
def test_errors_of_the_service_come_with_a_remedy(s3, code, remedy):
    from botocore.stub import Stubber

    client = s3._s3_client()
    with Stubber(client) as stub:
        stub.add_client_error("put_object", service_error_code=code, http_status_code=403)
        with pytest.raises(MuvaError, match=remedy):
            s3.create("key", b"")


@pytest.mark.parametrize(
    "uri", ["s3:/bucket/x", "file:/tmp/x", "gs://b/x", "S3://bucket/x", " s3://b/x"]
)
def test_an_address_of_another_kind_is_not_taken_for_a_folder(uri):
    with pytest.raises(MuvaError, match=r"expected a folder or s3://.* found the scheme"):
        open_store(uri)


@pytest.mark.parametrize("prefix", ["a//b", "a/../b", "./a"])
def test_a_prefix_that_is_no_path_is_refused_before_anything_is_stored(prefix):
    with pytest.raises(MuvaError, match="is not a key"):
        open_store(f"s3://bucket/{prefix}")


def test_the_region_is_taken_from_the_variable_that_all_sdks_but_boto3_read(s3, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_REGION", " eu-central-1 ")
    assert S3Store(s3.uri)._s3_client().meta.region_name == "eu-central-1"
    monkeypatch.delenv("AWS_REGION")
    assert S3Store(s3.uri)._s3_client().meta.region_name == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us_east_1")
    with pytest.raises(MuvaError, match=r"us_east_1.*Expected AWS_REGION"):
        S3Store(s3.uri).read("key")
