"""Every file below a folder is read, quarantined by name, or skipped and counted by reason."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image, features

from muva.data import plug_ins
from muva.data.benchmarks import read_tree
from muva.data.benchmarks.accounting import Account, account_for, many_skipped, sources, warnings
from muva.data.benchmarks.listing import HIDDEN, LOOP, SPECIAL, SYSTEM, entries, image_files
from muva.data.images import decode_rgb
from muva.errors import MuvaError
from tests.data.benchmarks.trees import image_labels, tree

TRAIN = {"split": "train"}


def accounted(root: Path) -> Account:
    return account_for(root, sources(read_tree("folder", root, domain="d", options=TRAIN)))


def names(root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in image_files(root)]


def test_linked_folders_and_files_are_read_under_their_own_names(tmp_path: Path) -> None:
    elsewhere = tree(tmp_path / "e", {"3": ["a.png"], "4/deep": ["b.png"]})
    root = tree(tmp_path / "people", {"1": ["a.png"]})
    (root / "3").symlink_to(elsewhere / "3")
    (root / "4").symlink_to("../e/4")
    (root / "1" / "b.png").symlink_to(elsewhere / "3" / "a.png")
    assert names(root) == ["1/a.png", "1/b.png", "3/a.png", "4/deep/b.png"]
    assert image_labels(read_tree("folder", root, domain="d", options=TRAIN)) == {
        (name, "train", int(name[0]), None) for name in names(root)
    }


def test_links_that_lead_back_are_not_followed_for_ever(tmp_path: Path) -> None:
    root = tree(tmp_path / "people", {"1": ["a.png"], "2/sub": ["a.png"]})
    (root / "1" / "up").symlink_to("..")
    (root / "2" / "sub" / "all").symlink_to(tmp_path)
    (root / "2" / "self").symlink_to(".")
    (root / "root").symlink_to("/")
    assert names(root) == ["1/a.png", "2/sub/a.png"]
    assert accounted(root).skipped == {LOOP: 4}
    other = tree(tmp_path / "other", {"b": ["b.png"]})
    (other / "back").symlink_to(other.parent / "people" / "1")
    (root / "1" / "there").symlink_to(other)  # other/back leads to 1, which is being read
    assert names(root) == ["1/a.png", "1/there/b/b.png", "2/sub/a.png"]


def test_a_link_to_itself_is_unreadable(tmp_path: Path) -> None:
    root = tree(tmp_path / "people", {"1": ["a.png"]})
    (root / "loop").symlink_to("loop")
    assert [entry["image_id"] for entry in accounted(root).unreadable] == ["loop"]


SAVED = ["jpg", "jfif", "jpe", "png", "gif", "bmp", "ppm", "pgm", "webp", "tiff", "tga", "avif"]


@pytest.mark.parametrize("ending", SAVED)
def test_images_are_taken_in_every_format_that_pillow_opens(tmp_path: Path, ending: str) -> None:
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    for pid, name in enumerate((f"a.{ending}", f"b.{ending.upper()}")):
        (tmp_path / f"{pid}").mkdir()
        Image.new("L" if ending == "pgm" else "RGB", (8, 16)).save(tmp_path / f"{pid}" / name)
    assert names(tmp_path) == [f"0/a.{ending}", f"1/b.{ending.upper()}"]
    assert decode_rgb((tmp_path / names(tmp_path)[0]).read_bytes()).size == (8, 16)


def test_a_missing_plug_in_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plug_ins.importlib.util, "find_spec", lambda name: None)
    plug_ins.missing_plug_in.cache_clear()
    root = tree(tmp_path, {"1": ["a.jpg"]})
    (root / "2").mkdir()
    (root / "2" / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    account = accounted(root)
    plug_ins.missing_plug_in.cache_clear()
    assert account.skipped == {"ending .heic, which needs pillow-heif": 1}
    assert account.folders_lost == ["2"]
    said = " ".join(warnings(account))
    assert "pip install pillow-heif" in said
    assert "No file was taken from 2" in said


def test_a_plug_in_that_is_installed_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[str] = []
    module = ModuleType("pillow_heif")
    module.register_heif_opener = lambda: registered.append("heif")  # pyright: ignore
    module.__spec__ = Any  # pyright: ignore
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    plug_ins.missing_plug_in.cache_clear()
    plug_ins.register_plug_ins()
    root = tree(tmp_path, {"1": ["a.jpg"]})
    (root / "1" / "b.heic").write_bytes(b"")
    assert names(root) == ["1/a.jpg", "1/b.heic"]
    plug_ins.missing_plug_in.cache_clear()
    assert set(registered) == {"heif"}


def test_files_of_other_programs_are_not_people(tmp_path: Path) -> None:
    root = tree(tmp_path, {"1": ["a.jpg"], "2": ["a.jpg"]})
    ours = names(root)
    tree(
        root,
        {
            "1/@eaDir/a.jpg": ["SYNOPHOTO_THUMB_M.jpg"],
            "__MACOSX/1": ["a.jpg"],
            "#recycle/1": ["a.jpg"],
            "$RECYCLE.BIN": ["a.jpg"],
            ".ipynb_checkpoints": ["a.jpg"],
            "1": ["._a.jpg"],
        },
    )
    for name in ("Thumbs.db", "1/thumbs.db", ".DS_Store", "desktop.ini"):
        (root / name).write_bytes(b"")
    assert names(root) == ours
    account = accounted(root)
    assert account.skipped == {SYSTEM: 7, HIDDEN: 3}
    assert warnings(account) == []


def test_every_file_is_accounted_for(tmp_path: Path) -> None:
    root = tree(tmp_path / "people", {"1": ["a.jpg"], "2": ["a.jpg", "b.jpg"]})
    for name in ("1/notes.txt", "1/a.txt", "2/README", "x.mp4"):
        (root / name).write_bytes(b"")
    os.mkfifo(root / "2" / "c.jpg")
    account = accounted(root)
    assert account.skipped == {
        "ending .txt": 2,
        "ending .mp4": 1,
        SPECIAL: 1,
        "no ending": 1,
    }
    assert sum(account.skipped.values()) + 3 == len(list(entries(root)))
    assert account.examples["ending .txt"] == "1/a.txt"
    assert warnings(account) == []


def test_more_than_a_handful_of_skipped_files_is_a_warning(tmp_path: Path) -> None:
    root = tree(tmp_path, {"1": ["a.jpg"]})
    for number in range(6):
        (root / "1" / f"{number}.mp4").write_bytes(b"")
    assert warnings(accounted(root)) == [
        "6 files skipped (ending .mp4 6), for example 1/0.mp4 (ending .mp4)."
    ]
    assert not many_skipped({"ending .txt": 5, HIDDEN: 1000, SYSTEM: 1000})


def test_a_person_whose_files_are_all_skipped_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path, {"1": ["a.jpg"], "2/sub": ["a.jpg"]})
    for name in ("2/notes.txt", "3/a.xyz"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    assert accounted(root).folders_lost == ["3"]
    assert "No file was taken from 3. Are these people?" in " ".join(warnings(accounted(root)))


def test_images_outside_a_layout_are_counted(tmp_path: Path) -> None:
    names = ["0003_c1s1_000001_00.jpg"]
    folders = ("bounding_box_train", "query", "bounding_box_test", "gt_bbox")
    root = tree(tmp_path, dict.fromkeys(folders, names))
    records = read_tree("market1501", root, domain="d")
    assert account_for(root, sources(records)).skipped == {"image outside the layout": 1}


def test_names_in_other_encodings_stop_only_where_they_are_needed(tmp_path: Path) -> None:
    root = tree(tmp_path, {"1": ["a.jpg"]})
    (root / "1" / "b\udcff.t\udcfft").write_bytes(b"")
    account = accounted(root)
    assert account.skipped == {r"ending .t\xfft": 1}
    assert account.examples == {r"ending .t\xfft": r"1/b\xff.t\xfft"}
    assert json.dumps(account.examples).encode()


def test_a_folder_of_nothing_but_skipped_files_says_so(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.mp4").write_bytes(b"")
    with pytest.raises(MuvaError, match=r"expected images, found 1; 1 file skipped \(ending \.mp4"):
        read_tree("folder", tmp_path, domain="d")
