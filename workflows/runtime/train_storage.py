"""Ray Train's folder in a bucket, through the same connection as the store.

Ray Train would open a bucket with Arrow's own S3 client, which reads environment variables but not
the endpoint, region, keys and CA bundle in `~/.aws/config`: import and grounding worked there, and
the training failed (Ray 2.60, pyarrow 25). `StoreFiles` shows a store as Arrow's file system
instead, so that boto3 alone resolves these settings, in each process for itself; no key is sent to
another process.

Ray Train's controller unpickles this, and should import no more than it needs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pyarrow import NativeFile, PythonFile
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from muva.data.store import MissingKeyError, Store, open_store

_S3 = "s3://"


def train_storage(uri: str) -> tuple[str, PyFileSystem | None]:
    """The path and the file system that Ray Train gets for a folder in a store.

    For a local folder, they are the folder itself and Ray Train's own file system, None.
    """
    if not uri.startswith(_S3):
        return uri, None
    bucket, _, path = uri.removeprefix(_S3).partition("/")
    return path, PyFileSystem(StoreFiles(open_store(f"{_S3}{bucket}")))


class StoreFiles(FileSystemHandler):
    """A store as a file system of Arrow: keys are files, and prefixes of keys are folders.

    A folder exists as long as a file is in it, as on S3.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreFiles) and other._store == self._store

    def __ne__(self, other: object) -> bool:  # Arrow compares handlers with it
        return not self == other

    def __hash__(self) -> int:
        return hash((StoreFiles, self._store.uri))

    def get_type_name(self) -> str:
        """The name that Arrow shows."""
        return "muva-store"

    def normalize_path(self, path: str) -> str:
        """The path without slashes at its ends."""
        return path.strip("/")

    def get_file_info(self, paths: Sequence[str]) -> list[FileInfo]:
        """What is at each of these paths."""
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        """The files and folders in a folder; with `recursive`, also those further below."""
        base = selector.base_dir.strip("/")
        keys = list(self._store.list(f"{base}/" if base else ""))
        if not keys and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        found: dict[str, FileInfo] = {}
        for key in keys:
            for path, is_file in _below(base, key):
                if not selector.recursive and PurePosixPath(path).parent != PurePosixPath(base):
                    continue
                if path not in found:
                    found[path] = self._file(path) if is_file else _folder(path)
        return list(found.values())

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: a folder exists as soon as a file is in it."""

    def delete_dir(self, path: str) -> None:
        """Delete a folder and everything below it."""
        self.delete_dir_contents(path, missing_dir_ok=False)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Delete everything below a folder, which thereby ceases to exist."""
        keys = list(self._store.list(f"{path.strip('/')}/"))
        if not keys and not missing_dir_ok:
            raise FileNotFoundError(path)
        for key in keys:
            self._store.delete(key)

    def delete_root_dir_contents(self) -> None:
        """Refused: the bucket holds more than the files of Ray Train."""
        raise OSError("the contents of a whole bucket are not deleted")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        if not self._store.exists(path):
            raise FileNotFoundError(path)
        self._store.delete(path)

    def move(self, src: str, dest: str) -> None:
        """Move a file."""
        self.copy_file(src, dest)
        self._store.delete(src)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file."""
        self._store.write(dest, self._content(src))

    def open_input_stream(self, path: str) -> NativeFile:
        """The content of a file, to be read from its beginning."""
        return PythonFile(io.BytesIO(self._content(path)), mode="r")

    def open_input_file(self, path: str) -> NativeFile:
        """The content of a file, to be read anywhere."""
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Mapping[str, str]) -> NativeFile:
        """A file that is written when it is closed."""
        return PythonFile(_Upload(lambda content: self._store.write(path, content)), mode="w")

    def open_append_stream(self, path: str, metadata: Mapping[str, str]) -> NativeFile:
        """Refused, as on S3."""
        raise NotImplementedError("nothing can be appended to a file in a store")

    def _content(self, path: str) -> bytes:
        try:
            return self._store.read(path)
        except MissingKeyError as error:
            raise FileNotFoundError(path) from error

    def _info(self, path: str) -> FileInfo:
        key = path.strip("/")
        if key and self._store.exists(key):
            return self._file(key)
        if not key or next(iter(self._store.list(f"{key}/")), None) is not None:
            return _folder(key)
        return FileInfo(key, FileType.NotFound)

    def _file(self, key: str) -> FileInfo:
        return FileInfo(key, FileType.File, size=self._store.size(key))


class _Upload(io.BytesIO):
    """Bytes in memory that are handed over when the file is closed."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        super().__init__()
        self._write = write

    def close(self) -> None:
        if not self.closed:
            self._write(self.getvalue())
        super().close()


def _folder(path: str) -> FileInfo:
    return FileInfo(path, FileType.Directory)


def _below(base: str, key: str) -> Iterator[tuple[str, bool]]:
    """The folders between a base and a key, and the key itself: path, and whether it is a file."""
    path = PurePosixPath(key)
    folders = [folder for folder in path.parents if folder.is_relative_to(base)]
    for folder in reversed(folders[:-1]):
        yield folder.as_posix(), False
    yield key, True
