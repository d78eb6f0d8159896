"""Storage for artifacts: a local folder or a prefix of an S3 bucket behind one small interface.

Two operations are enough: `write` replaces a key atomically, and `create` creates a key so that
exactly one of several concurrent writers succeeds. On a local disk these are a rename and a hard
link; on S3 a PUT and a PUT with `If-None-Match: *` (RFC 9110 13.1.2). Partially written data is
never visible under its key.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from muva.errors import MuvaError, SettingsError

MULTIPART_BYTES, PART_BYTES = 64 * 2**20, 16 * 2**20
"""Uploads to S3 above the first size are split into parts of the second."""


class MissingKeyError(MuvaError):
    """The key does not exist in the store."""


class Store(Protocol):
    """Maps keys to bytes. Keys are relative paths with forward slashes; `uri` reopens the store."""

    uri: str

    def read(self, key: str) -> bytes:
        """The bytes under a key. Raises MissingKeyError if it does not exist."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Write a key atomically, replacing any previous value."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write a key only if it does not exist. Returns False, and changes nothing, if it does."""
        ...

    def exists(self, key: str) -> bool:
        """Whether the key exists."""
        ...

    def size(self, key: str) -> int:
        """Size in bytes. Raises MissingKeyError if the key does not exist."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """All keys with this prefix, in lexicographic order."""
        ...

    def delete(self, key: str) -> None:
        """Delete a key; it is not an error if it does not exist."""
        ...

    def path(self, key: str) -> Path:
        """A local, read-only file with these bytes; MissingKeyError if the key does not exist."""
        ...

    def sweep(self, *, older_than_s: float) -> int:
        """Delete leftovers of interrupted writes and return how many were deleted."""
        ...


_SCHEME = re.compile(r".*?(?=://)|[A-Za-z][A-Za-z0-9+.-]+(?=:/)")
"""Of a URI, also of one that has lost a slash."""


def open_store(uri: str | Path) -> Store:
    """The store at a local folder or at `s3://bucket/prefix`.

    Credentials, region and endpoint of S3 are taken from the usual AWS variables and files. Raises
    SettingsError for any other scheme.
    """
    text = str(uri)
    if text.startswith("s3://"):
        return S3Store(text)
    scheme = _SCHEME.match(text)
    if scheme and not text.startswith("file://"):
        raise SettingsError(
            f"store {text}: expected a folder or s3://bucket/prefix, found the scheme {scheme[0]}"
        )
    return LocalStore(Path(text.removeprefix("file://")))


def check_writable(store: Store) -> None:
    """Check that values can be written to a store, and that the first writer of a key wins.

    Called before work begins, once per process and store. Some file systems have no hard links, and
    some servers that speak S3 refuse or ignore `If-None-Match`.

    Raises:
        MuvaError: something is missing; it says what, and what to choose instead.
    """
    _check_writable(store)


@functools.cache
def _check_writable(store: Store) -> None:  # a failure is not cached
    probe = f".probe/{uuid.uuid4().hex}"
    try:
        first, second = store.create(probe, b"first"), store.create(probe, b"second")
        if not first or second or store.read(probe) != b"first":
            raise MuvaError(
                f"store {store.uri}: the server does not honour If-None-Match (RFC 9110 13.1.2): "
                "two commands would overwrite each other's artifacts. Choose a server that does, "
                "such as Amazon S3, or a folder that all nodes share"
            )
    finally:
        with suppress(MuvaError):  # the error of the check says more
            store.delete(probe)


class LocalStore:
    """A store in a local folder. The file system must support hard links, as all but FAT do."""

    def __init__(self, root: Path):
        self._root = root.expanduser().resolve()
        self._partial = self._root / ".partial"
        self.uri = str(self._root)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStore) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def read(self, key: str) -> bytes:
        """See `Store`."""
        with self._readable_errors("read", key):
            return self._file(key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """See `Store`."""
        with self._readable_errors("write", key), self._temporary_file(data) as temporary:
            _move_into_place(temporary, self._file(key), os.replace)

    def create(self, key: str, data: bytes) -> bool:
        """See `Store`."""
        with self._readable_errors("write", key), self._temporary_file(data) as temporary:
            try:
                _move_into_place(temporary, self._file(key), os.link)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                raise MuvaError(
                    f"store {self.uri}: its file system has no hard links "
                    f"({error.strerror or error}), which decide who of several writers was first. "
                    "Choose a folder on another file system, or s3://bucket/prefix"
                ) from error
            return True

    def exists(self, key: str) -> bool:
        """See `Store`."""
        return self._file(key).is_file()

    def size(self, key: str) -> int:
        """See `Store`."""
        with self._readable_errors("read", key):
            return self._file(key).stat().st_size

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Store`."""
        folder = self._root / prefix.rpartition("/")[0]
        keys = [
            (Path(parent) / name).relative_to(self._root).as_posix()
            for parent, _, names in os.walk(folder)
            if not Path(parent).is_relative_to(self._partial)
            for name in names
        ]
        return iter(sorted(key for key in keys if key.startswith(prefix)))

    def delete(self, key: str) -> None:
        """See `Store`; folders that become empty are deleted too."""
        with self._readable_errors("delete", key):
            file = self._file(key)
            file.unlink(missing_ok=True)
            for folder in file.relative_to(self._root).parents:
                try:
                    (self._root / folder).rmdir()
                except OSError:  # not empty, or already deleted by another process
                    return

    def path(self, key: str) -> Path:
        """See `Store`: the file itself."""
        file = self._file(key)
        if not file.is_file():
            raise MissingKeyError(f"store {self.uri}: there is no {key}")
        return file

    def sweep(self, *, older_than_s: float) -> int:
        """See `Store`."""
        removed = 0
        for file in list(self._partial.glob("*")):
            with self._readable_errors("delete", file.name):
                try:
                    if time.time() - file.stat().st_mtime > older_than_s:
                        file.unlink()
                        removed += 1
                except FileNotFoundError:  # its writer finished in the meantime
                    continue
        return removed

    def _file(self, key: str) -> Path:
        return self._root / checked_key(key)

    @contextmanager
    def _temporary_file(self, data: bytes) -> Iterator[Path]:
        """A file on the store's own disk with these bytes, flushed to disk."""
        self._partial.mkdir(parents=True, exist_ok=True)
        temporary = self._partial / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _readable_errors(self, verb: str, key: str) -> Iterator[None]:
        """Turn errors of the file system into a MuvaError that names the remedy."""
        try:
            yield
        except FileNotFoundError as error:
            if verb == "read":
                raise MissingKeyError(f"store {self.uri}: there is no {key}") from error
            raise MuvaError(f"store {self.uri}: cannot {verb} {key}: {error}") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise MuvaError(
                    f"store {self.uri}: the disk is full, so {key} was not written. Partial "
                    "results are not used. Free some space, or inodes if `df -i` says that none "
                    "are left (`muva store gc` lists what can be deleted), or choose another "
                    "store, then run the same command again"
                ) from error
            remedy = (
                "Does this account have permission to read it?"
                if verb == "read"
                else "Choose a folder that this account can write to"
            )
            raise MuvaError(
                f"store {self.uri}: cannot {verb} {key}: {error.strerror or error}. {remedy}"
            ) from error


class S3Store:
    """A store under a prefix of a bucket on S3 or a compatible server."""

    def __init__(self, uri: str):
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise SettingsError(f"store {uri}: expected s3://bucket/prefix, found no bucket")
        self._prefix = f"{checked_key(prefix.strip('/'))}/" if prefix.strip("/") else ""
        self.uri = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._client: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Store) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __reduce__(self) -> tuple[Callable[[str], S3Store], tuple[str]]:
        return S3Store, (self.uri,)  # connections cannot be pickled

    def read(self, key: str) -> bytes:
        """See `Store`."""
        buffer = io.BytesIO()
        with self._readable_errors("read", key):
            self._call("download_fileobj", key, Fileobj=buffer, Config=_transfer_config())
        return buffer.getvalue()

    def write(self, key: str, data: bytes) -> None:
        """See `Store`. Large values are uploaded in parts, each of which is retried separately."""
        with self._readable_errors("write", key):
            self._call("upload_fileobj", key, Fileobj=io.BytesIO(data), Config=_transfer_config())

    def create(self, key: str, data: bytes) -> bool:
        """See `Store`."""
        from botocore.exceptions import ClientError

        with self._readable_errors("write", key):
            for pause_s in (0.1, 0.4, 1.6, None):
                try:
                    self._call("put_object", key, Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                    if status == 412:
                        # The key is ours if the response to an earlier attempt was lost.
                        return self.read(key) == data
                    # 409: another conditional write of this key is in progress and may still fail.
                    if status != 409 or pause_s is None:
                        raise
                    time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def exists(self, key: str) -> bool:
        """See `Store`."""
        try:
            self.size(key)
        except MissingKeyError:
            return False
        return True

    def size(self, key: str) -> int:
        """See `Store`."""
        with self._readable_errors("read", key):
            return self._call("head_object", key)["ContentLength"]

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Store`."""
        with self._readable_errors("list", prefix):
            pages = self._s3_client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for entry in page.get("Contents", []):
                    if not entry["Key"].endswith("/"):
                        yield entry["Key"].removeprefix(self._prefix)

    def delete(self, key: str) -> None:
        """See `Store`."""
        with self._readable_errors("delete", key):
            self._call("delete_object", key)

    def path(self, key: str) -> Path:
        """See `Store`: a copy in the user's cache folder, named by the ETag of the content."""
        with self._readable_errors("read", key):
            etag = self._call("head_object", key)["ETag"]
            name = hashlib.sha256(f"{self.uri}/{key} {etag}".encode()).hexdigest()
            copy = _cache_folder() / name
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                temporary = copy.with_name(f"{name}.{uuid.uuid4().hex}.partial")
                try:
                    with temporary.open("xb") as file:
                        self._call("download_fileobj", key, Fileobj=file, Config=_transfer_config())
                    temporary.replace(copy)
                finally:
                    temporary.unlink(missing_ok=True)
            return copy

    def sweep(self, *, older_than_s: float) -> int:
        """See `Store`. Only interrupted multipart uploads leave anything behind.

        Libraries that emulate folders, Arrow among them, also leave empty objects that are
        named like folders; these are deleted too.
        """
        removed = 0
        with self._readable_errors("list", "broken-off uploads"):
            client = self._s3_client()
            pages = client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for entry in page.get("Contents", []):
                    key = entry["Key"]
                    folder = key.endswith("/") and key != self._prefix and entry["Size"] == 0
                    if folder and time.time() - entry["LastModified"].timestamp() > older_than_s:
                        client.delete_object(Bucket=self._bucket, Key=key)
                        removed += 1
            pages = client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for upload in page.get("Uploads", []):
                    if time.time() - upload["Initiated"].timestamp() > older_than_s:
                        client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        removed += 1
        return removed

    def _s3_client(self) -> Any:
        if self._client is None:
            from boto3.session import Session
            from botocore.config import Config
            from botocore.exceptions import InvalidRegionError

            # Every SDK of AWS but boto3 reads this variable.
            region = os.environ.get("AWS_REGION", "").strip() or None
            try:
                self._client = Session(region_name=region).client(
                    "s3", config=Config(retries={"mode": "standard", "max_attempts": 8})
                )
            except InvalidRegionError as error:
                raise MuvaError(
                    f"store {self.uri}: {error} Expected AWS_REGION, AWS_DEFAULT_REGION or the "
                    "region in ~/.aws/config to be one such as eu-central-1"
                ) from error
            except ValueError as error:
                raise MuvaError(
                    f"store {self.uri}: {error}: expected AWS_ENDPOINT_URL to be "
                    "http://HOST:PORT, or unset for Amazon S3"
                ) from error
        return self._client

    def _call(self, operation: str, key: str, **arguments: Any) -> Any:
        full_key = self._prefix + checked_key(key)
        return getattr(self._s3_client(), operation)(Bucket=self._bucket, Key=full_key, **arguments)

    @contextmanager
    def _readable_errors(self, verb: str, key: str) -> Iterator[None]:
        """Turn errors of the service into a MuvaError that names the remedy."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        what = f"{verb} {key}".rstrip()
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404"):
                raise MissingKeyError(f"store {self.uri}: there is no {key}") from error
            remedy = _S3_REMEDIES.get(code, "")
            raise MuvaError(f"store {self.uri}: cannot {what}: {error}. {remedy}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise MuvaError(
                f"store {self.uri}: cannot {what}: {str(error).rstrip('.')}. {_remedy_of(error)}"
            ) from error
        except OSError as error:
            raise MuvaError(
                f"store {self.uri}: cannot cache a copy of {key} in {_cache_folder()}: {error}. "
                "Set XDG_CACHE_HOME to another folder"
            ) from error


_S3_REMEDIES = {
    "NoSuchBucket": "Create the bucket first, or correct its name",
    "AccessDenied": "These credentials lack the permission for this operation",
    "403": "These credentials lack the permission for this operation",
    "InvalidAccessKeyId": "Do AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL belong to the same server?",
    "SignatureDoesNotMatch": "Is AWS_SECRET_ACCESS_KEY right?",
    "ExpiredToken": "The session token has expired: log in again",
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "301"),
        "The bucket is in another region: set AWS_REGION to it",
    ),
    "400": "Is AWS_REGION the region of the bucket, and is this machine's clock right?",
    "RequestTimeTooSkewed": "This machine's clock is wrong: synchronise it, for example by NTP",
    **dict.fromkeys(
        ("NotImplemented", "501"),
        "The server lacks a function, perhaps If-None-Match. Choose one that has it, such as "
        "Amazon S3, or a folder that all nodes share",
    ),
    "SlowDown": "The service is limiting requests: run the same command again later",
}


def _remedy_of(error: Exception) -> str:
    """What to do about an error that occurred before the service answered."""
    from botocore import exceptions as errors

    if isinstance(error, errors.SSLError):
        return (
            "Expected AWS_CA_BUNDLE, or ca_bundle in ~/.aws/config, to be a file with the "
            "certificate of the authority that signed the server's"
        )
    if isinstance(error, errors.ParamValidationError):
        return "Expected s3://BUCKET/PREFIX with the name of an existing bucket"
    if isinstance(error, errors.ConnectionError | errors.HTTPClientError):
        return (
            "Is the service reachable from this machine, and are AWS_ENDPOINT_URL, for servers "
            "other than Amazon S3, and AWS_REGION right?"
        )
    return (
        "Are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), AWS_REGION and, for "
        "servers other than Amazon S3, AWS_ENDPOINT_URL set?"
    )


@functools.cache
def _transfer_config() -> Any:
    """Multipart uploads above this size, with few threads beside the actual work."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=MULTIPART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
    )


def checked_key(key: str) -> str:
    """Return the key if it is a relative path within the store; raise MuvaError otherwise."""
    if not key or key.startswith("/") or not set(key.split("/")).isdisjoint({"", ".", ".."}):
        raise MuvaError(
            f"store: {key!r} is not a key; expected a relative path with forward slashes"
        )
    return key


def delete_local_copies() -> None:
    """Delete the copies of bucket content that this user has cached on this machine."""
    for copy in _cache_folder().glob("*"):
        copy.unlink(missing_ok=True)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "muva" / "s3"


def _move_into_place(temporary: Path, target: Path, move: Callable[[Path, Path], None]) -> None:
    """Move or link a finished file to its final name, and flush the folder to disk."""
    for attempt in range(_MOVE_ATTEMPTS):
        last = attempt == _MOVE_ATTEMPTS - 1
        # Another process may delete the empty folder at any moment: between the two checks that
        # `mkdir` makes, or before the file is moved into it.
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if last:
                raise
            continue
        try:
            move(temporary, target)
            break
        except FileNotFoundError:
            if last:
                raise
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # SMB and some FUSE file systems flush files, but no folders.
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)


_MOVE_ATTEMPTS = 10
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What file systems answer to an operation that they do not have (link(2), fsync(2))."""


STALE_PARTIAL_S = 3600.0
"""Age after which files of interrupted writes are swept; younger ones may still be in use."""
