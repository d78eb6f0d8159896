"""A gallery that grows, by the command line: from folders, lists, data sets and features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import muva
import workflows.steps.gallery_images as gallery_images
from muva.data.artifacts import find_artifact
from muva.data.shards import open_dataset
from muva.data.store import open_store
from muva.retrieval.gallery_table import open_gallery
from tests.workflows.verbs.test_embed import CROPS, Run, crops, home, run

__all__ = ["crops", "home", "run"]


@pytest.fixture
def mall(run: Run, crops: Path) -> str:
    """A gallery with the crops, of which a list says who they show, and when."""
    lines = ["path,pid,camid,time,place,hat"]
    for pid, camid in CROPS:
        known = (pid, camid, f"2026-11-30T0{pid}:00", f"gate {camid}", "red" if pid == 1 else "")
        lines.append(",".join([f"cam{camid}/{pid:04d}.png", *map(str, known)]))
    listed = crops.parent / "crops.csv"
    listed.write_text("\n".join(lines))
    made = run("gallery", "create", "mall", "--model", "mine")
    assert made["gallery"] == "mall"
    added = run("gallery", "add", "mall", f"{crops}", "--list", f"{listed}")
    assert (added["images"], added["present"], added["total"]) == (8, 0, 8)
    return "mall"


def test_a_search_finds_what_the_features_say(
    run: Run, home: Path, crops: Path, mall: str, tmp_path: Path
) -> None:
    bundle = muva.load(home / "store" / "models" / f"mine-{0:016x}")
    ids = [f"cam{camid}/{pid:04d}.png" for pid, camid in CROPS]
    features = bundle.embed([crops / one for one in ids]).astype(float)
    query = tmp_path / "query.png"
    Image.open(crops / "cam2" / "0003.png").rotate(2).save(query)
    cosines = features @ bundle.embed([query])[0].astype(float)
    found = run("gallery", "search", mall, "--query", f"{query}", "--top", "3")
    order = np.argsort(-cosines)[:3]
    assert [one["image_id"] for one in found["matches"]] == [ids[i] for i in order]
    np.testing.assert_allclose(
        [one["similarity"] for one in found["matches"]], cosines[order], atol=1e-5
    )
    first = run(
        "search", "--gallery", mall, "--query", "cam1/0001.png", "--top", "1", "--camid", "1"
    )
    [match] = first["matches"]
    assert match["camid"] == 1
    assert match["image_id"] != "cam1/0001.png"
    assert first["query"] == {
        "image_id": "cam1/0001.png",
        "pid": 1,
        "camid": 1,
        "time": "2026-11-30T01:00:00+00:00",
        "place": "gate 1",
        "hat": "red",
    }
    between = ("--after", "2026-11-30T02:00", "--before", "2026-11-30T04:00+01:00")
    seen = run("search", "--gallery", mall, "--query", f"{query}", "--place", "gate 2", *between)
    assert [one["image_id"] for one in seen["matches"]] == ["cam2/0002.png"]


def test_the_sheet_shows_the_images_where_they_are(run: Run, mall: str, tmp_path: Path) -> None:
    sheet = tmp_path / "ranked.png"
    query = ("--query", "cam1/0001.png", "--sheet", f"{sheet}")
    assert run("gallery", "search", mall, *query)["sheet"] == f"{sheet}"
    assert Image.open(sheet).width > 100


def test_only_what_is_new_is_embedded_and_an_interruption_loses_little(
    run: Run, home: Path, crops: Path, mall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        Image.new("RGB", (40, 96), (number, 90, 200)).save(crops / f"new{number}.png")
    (crops / "broken.jpg").write_bytes(b"no image")
    monkeypatch.setattr("workflows.steps.embed_folder.CHUNK_IMAGES", 2)
    monkeypatch.setattr(gallery_images, "COMMITTED_IMAGES", 2)
    decode, decoded = gallery_images.embedded_chunks, []

    def interrupted(*arguments: object, **options: object) -> object:
        for chunk in decode(*arguments, **options):  # pyright: ignore[reportArgumentType]
            if len(decoded) == 2:
                raise KeyboardInterrupt
            decoded.append(chunk)
            yield chunk

    with monkeypatch.context() as patched:
        patched.setattr(gallery_images, "embedded_chunks", interrupted)
        run("gallery", "add", mall, f"{crops}", code=130)
    [before] = run("gallery", "list")
    assert before["images"] == 8 + 3  # of the first chunk, one image cannot be read
    added = run("gallery", "add", mall, f"{crops}", "--camid", "7")
    assert (added["images"], added["present"], added["total"]) == (3, 11, 14)
    assert [entry["image_id"] for entry in added["quarantined"]] == ["broken.jpg"]
    [listed] = run("gallery", "list")
    assert listed["camids"] == [1, 2, 7]
    assert listed["people"] == 4
    assert listed["model"].startswith(f"{home}")


def test_ids_of_two_folders_do_not_collide(run: Run, crops: Path, mall: str) -> None:
    other = crops.parent / "tuesday"
    (other / "cam1").mkdir(parents=True)
    Image.new("RGB", (40, 96), (9, 90, 200)).save(other / "cam1" / "0001.png")
    said = run("gallery", "add", mall, f"{other}", code=1)
    assert "1 images of the same ids from elsewhere (cam1/0001.png)" in said
    added = run("gallery", "add", mall, f"{other}", "--root", f"{crops.parent}")
    assert added["total"] == 9
    found = run("search", "--gallery", mall, "--query", "tuesday/cam1/0001.png", "--top", "1")
    assert found["query"]["image_id"] == "tuesday/cam1/0001.png"


def test_features_of_another_model_are_refused(
    run: Run, crops: Path, mall: str, tmp_path: Path
) -> None:
    out = tmp_path / "other.parquet"
    run("embed", f"{crops}", "--model", "other", "--out", f"{out}")
    assert "Features of two models cannot be compared" in run(
        "gallery", "add", mall, f"{out}", code=1
    )
    assert "expected features by" not in run("gallery", "list", mall)[0]["uri"]
    run("embed", f"{crops}", "--model", "mine", "--out", f"{out}")
    added = run("gallery", "add", mall, f"{out}", "--place", "hall")
    assert (added["images"], added["present"], added["total"]) == (0, 8, 8)
    crops.rename(tmp_path / "moved")
    run("embed", f"{tmp_path}/moved", "--model", "mine", "--out", f"{out}")
    assert "which these would replace" in run("gallery", "add", mall, f"{out}", code=1)
    run("gallery", "create", "other", "--model", "mine")
    assert run("gallery", "add", "other", f"{out}", "--place", "hall")["total"] == 8
    found = run("search", "--gallery", "other", "--query", "cam1/0001.png", "--place", "hall")
    assert len(found["matches"]) == 7
    filtered = run(
        "search", "--gallery", f"{out}", "--query", "cam1/0001.png", "--camid", "1", code=1
    )
    assert "searched as a whole" in filtered


def test_a_person_is_forgotten(run: Run, crops: Path, mall: str) -> None:
    assert run("gallery", "forget", mall, "--pid", "2") == {
        "gallery": "mall",
        "forgotten": False,
        "images": 2,
        "left": 8,
        "folders": [f"{crops}"],
    }
    chosen = ("--pid", "2", "--image", "cam1/0004.png")
    assert run("gallery", "forget", mall, *chosen, "--yes")["left"] == 5
    found = run("search", "--gallery", mall, "--query", "cam1/0001.png")["matches"]
    assert {one["image_id"] for one in found} == {
        "cam2/0001.png",
        "cam1/0003.png",
        "cam2/0003.png",
        "cam2/0004.png",
    }
    assert "contains nothing" in run("gallery", "forget", mall, "--pid", "2", code=1)
    assert "nobody is given" in run("gallery", "forget", mall, code=2)


def test_a_list_comes_before_what_is_said_of_all_images(run: Run, crops: Path) -> None:
    listed = crops.parent / "listed.csv"
    listed.write_text("path;pid;camid\ncam1/0001.png;9007199254740993;5\n")
    run("gallery", "create", "mall", "--model", "mine")
    run("gallery", "add", "mall", f"{crops}", "--list", f"{listed}", "--camid", "3")
    known = run("search", "--gallery", "mall", "--query", "cam1/0001.png", "--top", "1")["query"]
    assert (known["pid"], known["camid"]) == (9007199254740993, 5)
    other = run("search", "--gallery", "mall", "--query", "cam1/0002.png", "--top", "1")["query"]
    assert (other["pid"], other["camid"]) == (None, 3)


def test_what_a_list_says_is_checked(run: Run, crops: Path, mall: str, tmp_path: Path) -> None:
    listed = tmp_path / "listed.csv"
    for text, said in [
        ("path,jacket colour\na.png,red\n", "column 'jacket colour': expected a name of letters"),
        ("path,pid\ncam1/0001.png,Ann\n", "row 1: expected an integer as pid, found 'Ann'"),
        ("path,time\ncam1/0001.png,noon\n", "row 1: time 'noon': expected ISO 8601"),
        ("name,pid\ncam1/0001.png,1\n", "expected a column image_id or path"),
        ("path,pid\na.png,1\na.png,1\n", "found a.png twice"),
        ("path,pid\na.png,1\n", "none of the 1 images of the list is in"),
    ]:
        listed.write_text(text)
        assert said in run("gallery", "add", mall, f"{crops}", "--list", f"{listed}", code=1)


def test_who_is_forgotten_in_a_data_set_leaves_galleries_too(
    ray_session: None, run: Run, home: Path
) -> None:
    size = ("synthetic.train_people=3", "synthetic.test_people=4")
    overrides = [word for setting in size for word in ("--set", setting)]
    run("data", "import", "syn-station", "--recipe", "demo", *overrides)
    dataset = open_dataset(find_artifact(open_store(home / "store"), "datasets", "syn-station"))
    rows = dataset.rows(["image_id", "pid"], splits=["query", "gallery"]).to_pylist()
    pid = next(one["pid"] for one in rows if one["pid"] > 0)
    theirs = [one["image_id"] for one in rows if one["pid"] == pid]
    run("gallery", "create", "platform", "--model", "mine")
    run("gallery", "create", "empty", "--model", "mine")
    added = run("gallery", "add", "platform", "syn-station")
    assert added["total"] == len(rows)
    found = run("search", "--gallery", "platform", "--query", theirs[0], "--top", "1")
    assert found["matches"]

    listed = run("data", "forget", "syn-station", "--pid", f"{pid}")
    assert listed["galleries"] == [{"gallery": "platform", "images": len(theirs)}]
    run("data", "forget", "syn-station", "--pid", f"{pid}", "--yes")
    gallery = open_gallery(f"{home}/store/galleries/platform.lance")
    assert gallery.ids() == {one["image_id"] for one in rows} - set(theirs)
