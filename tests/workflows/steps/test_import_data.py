"""Imports of folders: what is stored, what is quarantined or skipped, and what is said about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muva.config import SyntheticConfig
from muva.data.artifacts import Artifact
from muva.data.shards import write_shards
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.synthetic import synthetic_records
from tests.data.benchmarks.trees import tree
from workflows.runtime.local import usable_port
from workflows.session import Session, open_session
from workflows.steps.import_data import import_benchmark, import_synthetic, import_tree
from workflows.steps.step import StepResult


def imported(root: Path, home: Path, **options: str) -> StepResult:
    session = Session(home=home, store=open_store(home / "store"), tracking_uri=None)
    return import_tree(
        session, "mine", root, layout="folder", options=options or {"split": "train"}
    )


def test_a_linked_split_is_imported(tmp_path: Path) -> None:
    elsewhere = tree(tmp_path / "elsewhere", {"1": ["a.png"], "2": ["a.png"]})
    root = tree(tmp_path / "town", {"query/7": ["a.png"], "gallery/7": ["b.png"]})
    (root / "train").symlink_to(elsewhere)
    splits = imported(root, tmp_path / "home", camid_regex="(.)").summary["splits"]
    assert splits["train"]["identities"] == 2


def test_links_without_a_target_are_quarantined_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "people", {"1": ["a.png"], "2": ["a.png"]})
    (root / "3").symlink_to(tmp_path / "not_mounted")
    result = imported(root, tmp_path / "home")
    assert (result.summary["images"], result.summary["quarantined"]) == (2, 1)
    store = result.artifact.store
    assert b'"3"' in store.read(result.artifact.key("quarantine.json"))
    assert "not_mounted, which does not exist" in " ".join(capsys.readouterr().err.split())


def test_too_many_links_without_a_target_stop_the_import(tmp_path: Path) -> None:
    root = tree(tmp_path / "people", {"1": ["a.png"], "2": ["a.png"]})
    for name in ("3", "4"):
        (root / name).symlink_to(tmp_path / "not_mounted")
    with pytest.raises(MuvaError, match=r"2 folders and links .* 3: the link leads to .*not_mount"):
        imported(root, tmp_path / "home")


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Folders that the user may not list; a test that runs as root is refused nothing."""
    folders: set[str] = set()
    scandir = os.scandir

    def refusing(place: Any) -> Any:
        if str(place) in folders:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    yield folders


def test_folders_without_permission_are_quarantined_by_name(
    tmp_path: Path, forbidden: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "people", {"1": ["a.png"], "2": ["a.png"], "lost+found": []})
    forbidden |= {f"{root / '2'}", f"{root / 'lost+found'}"}
    result = imported(root, tmp_path / "home")
    assert (result.summary["images"], result.summary["quarantined"]) == (1, 1)
    assert "2 (the folder cannot be opened: Permission denied)" in capsys.readouterr().err
    forbidden.add(f"{root}")
    with pytest.raises(MuvaError, match=r"cannot \(Permission denied\)\. Check its permissions"):
        imported(root, tmp_path / "home")


def test_counts_follow_the_folder_and_the_address_follows_the_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "people", {"1": ["a.jpg"], "2": ["a.jpg"]})
    first = imported(root, tmp_path / "home")
    (root / "1" / "notes.txt").write_text("tall")
    second = imported(root, tmp_path / "home")
    assert second.artifact == first.artifact and not second.computed
    assert (first.summary["skipped"], second.summary["skipped"]) == ({}, {"ending .txt": 1})


def test_an_incomplete_copy_of_a_public_data_set_names_what_cannot_be_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ("bounding_box_train", "query", "bounding_box_test")
    root = tree(tmp_path / "market", {folder: ["0001_c1s1_000001_00.jpg"] for folder in folders})
    (root / "query" / "0002_c1s1_000001_00.jpg").symlink_to(tmp_path / "not_mounted.jpg")
    session = Session(home=tmp_path, store=open_store(tmp_path / "store"), tracking_uri=None)
    with pytest.raises(MuvaError, match="expected the counts of the paper"):
        import_benchmark(session, "market1501", root)
    said = " ".join(capsys.readouterr().err.split())
    assert "query/0002_c1s1_000001_00.jpg (the link leads to" in said


def test_people_are_not_rendered_while_mlflow_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.runtime.cluster.ray_cluster", lambda: pytest.fail("began"))
    address = f"http://127.0.0.1:{usable_port(0)}"
    session = open_session(home=tmp_path, tracking_uri=address)
    with pytest.raises(MuvaError, match="No MLflow server responds"):
        import_synthetic(session, ["syn-station"], SyntheticConfig())


def test_networks_rendered_by_a_task_each_are_the_data_set_of_one_process(
    ray_session: None, tmp_path: Path
) -> None:
    session = Session(home=tmp_path, store=open_store(tmp_path / "store"), tracking_uri=None)
    people = SyntheticConfig(train_people=4, test_people=2, height=32, width=16)
    name = "syn-world-4-6"
    found = import_synthetic(session, [name], people)[name]
    alone = Artifact(open_store(tmp_path / "alone"), "datasets", name, f"{0:016x}")
    summary = write_shards(synthetic_records(name, **people.model_dump()), artifact=alone)
    assert found.summary["images"] == summary.images > 40
    assert found.summary["fingerprint"] == summary.fingerprint
