"""Ray Train's folder in a bucket: the settings of boto3 hold, wherever they are."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow.fs
import pytest
from pyarrow.fs import FileSelector, FileType

from muva.data.store import Store, open_store
from workflows.runtime.train_storage import StoreFiles, train_storage


@pytest.fixture
def configured(s3: Store, s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URI of a folder in a bucket whose server and keys are in ~/.aws/config alone."""
    config = tmp_path / "config"
    config.write_text(
        f"[default]\nregion = us-east-1\nendpoint_url = {s3_server}\n"
        "aws_access_key_id = test\naws_secret_access_key = test\n"
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return f"{s3.uri}/models/muva-0123456789abcdef/ray"


def test_a_local_folder_is_left_to_ray(tmp_path: Path) -> None:
    assert train_storage(str(tmp_path)) == (str(tmp_path), None)


def test_settings_in_the_configuration_file_are_enough(configured: str, tmp_path: Path) -> None:
    path, files = train_storage(configured)
    assert files is not None
    files = pickle.loads(pickle.dumps(files))
    (tmp_path / "checkpoint" / "inner").mkdir(parents=True)
    (tmp_path / "checkpoint" / "epoch.json").write_bytes(b"{}")
    (tmp_path / "checkpoint" / "inner" / "empty").write_bytes(b"")
    pyarrow.fs.copy_files(str(tmp_path / "checkpoint"), f"{path}/c1", destination_filesystem=files)
    assert list(open_store(configured).list()) == ["c1/epoch.json", "c1/inner/empty"]
    pyarrow.fs.copy_files(f"{path}/c1", str(tmp_path / "back"), source_filesystem=files)
    assert (tmp_path / "back" / "epoch.json").read_bytes() == b"{}"
    assert (tmp_path / "back" / "inner" / "empty").read_bytes() == b""


def test_folders_are_prefixes_of_keys(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for key in ("a/b/c.json", "a/d.json", "ab/e.json"):
        store.write(key, b"123")
    files = pyarrow.fs.PyFileSystem(StoreFiles(store))
    kinds = {info.path: info.type for info in files.get_file_info(["a", "a/d.json", "a/x"])}
    assert kinds == {
        "a": FileType.Directory,
        "a/d.json": FileType.File,
        "a/x": FileType.NotFound,
    }
    names = [info.path for info in files.get_file_info(FileSelector("a"))]
    assert sorted(names) == ["a/b", "a/d.json"]
    every = [info.path for info in files.get_file_info(FileSelector("a", recursive=True))]
    assert sorted(every) == ["a/b", "a/b/c.json", "a/d.json"]
    assert files.get_file_info(FileSelector("no", allow_not_found=True)) == []
    with pytest.raises(FileNotFoundError):
        files.get_file_info(FileSelector("no"))
    with pytest.raises(FileNotFoundError):
        files.open_input_stream("a/x")
    with files.open_output_stream("a/new") as stream:
        stream.write(b"4")
    assert store.read("a/new") == b"4"
    files.move("a/new", "a/moved")
    files.delete_dir("a/b")
    assert list(store.list()) == ["a/d.json", "a/moved", "ab/e.json"]


PROGRAM = """
import sys
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.messages import MessageQueue
from workflows.runtime.train_group import TrainGroup, report_epoch
from workflows.runtime.workers import Workers

def train(_):
    report_epoch(1, {"loss": 0.5}, validate=False)

if __name__ == "__main__":
    with ray_cluster():
        group = TrainGroup(workers=Workers(count=2, cpus_each=1), storage=sys.argv[1])
        group.run(train, {}, queue=MessageQueue(), on_message=print)
"""


def test_two_workers_train_with_a_bucket_that_only_the_configuration_file_knows(
    configured: str, tmp_path: Path
) -> None:
    """A Ray of its own: its processes have the environment of their start."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), configured],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert list(open_store(configured).list())
