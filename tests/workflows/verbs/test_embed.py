"""Images to a file of features, and searches in it, by the command line."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import muva
import muva.data.images as images_module
from muva.data.artifacts import Artifact
from muva.data.images import decode_rgb
from muva.data.shards import open_dataset
from muva.data.store import open_store
from muva.model.bundle import Embedder
from muva.retrieval.features import read_features
from muva.synthetic import render
from tests.model.small import stored_model
from workflows.cli import main

Run = Callable[..., Any]
CROPS = [(pid, camid) for pid in (1, 2, 3, 4) for camid in (1, 2)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with two models."""
    for seed, name in enumerate(("mine", "other")):
        stored_model(tmp_path / "runs", f"{name}-{seed:016x}", seed=seed)
    return tmp_path / "runs"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb; gives its JSON, or what it says where it fails."""

    def run_verb(*words: str, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as stop:
            main([*words, "--json", "--home", f"{home}"])
        printed = capsys.readouterr()
        assert stop.value.code == code, printed.err
        return json.loads(printed.out) if code == 0 else " ".join(printed.err.split())

    return run_verb


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Four people before two cameras, a folder each."""
    folder = tmp_path / "crops"
    for pid, camid in CROPS:
        file = folder / f"cam{camid}" / f"{pid:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = render("syn-station", pid=pid, camid=camid, index=0, height=96, width=40)
        Image.fromarray(picture.image).save(file)
    return folder


def test_a_folder_becomes_features_and_what_cannot_be_read_is_named(
    run: Run, home: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "workflows.steps.embed_folder.CHUNK_IMAGES", 3
    )  # the last stretch is a short one
    (crops / "cam1" / "0002b.jpg").write_bytes(b"no image")
    (crops / "notes.txt").write_text("no image either, and not called one")
    (crops / "cam3").symlink_to(tmp_path / "not_mounted")
    (crops / "cam2").rename(tmp_path / "elsewhere")
    (crops / "cam2").symlink_to(tmp_path / "elsewhere")
    out = tmp_path / "crops.parquet"
    found = run("embed", f"{crops}", "--model", "mine", "--out", f"{out}")
    assert found["images"] == 8
    assert [entry["image_id"] for entry in found["quarantined"]] == ["cam3", "cam1/0002b.jpg"]
    assert found["skipped"] == {"ending .txt": 1}
    table = pq.read_table(out)
    ids = table["ids"].to_pylist()
    assert ids == sorted(f"cam{camid}/{pid:04d}.png" for pid, camid in CROPS)
    bundle = muva.load(home / "store" / "models" / f"mine-{0:016x}")
    expected = bundle.embed([crops / image_id for image_id in ids])
    np.testing.assert_allclose(np.stack(table["features"].to_pylist()), expected, atol=1e-6)
    recorded = json.loads(table.schema.metadata[b"muva"])
    assert recorded["model"] == found["model"]
    assert (recorded["image_height"], recorded["image_width"]) == (48, 24)
    assert (recorded["feature_dim"], recorded["folder"]) == (128, f"{crops}")


def test_no_image_of_a_folder_is_held_at_its_own_size_while_others_are_embedded(
    run: Run, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_size: list[weakref.ref[Image.Image]] = []
    held = []
    upright, embed = images_module._upright_rgb, Embedder.embed

    def remembered(image: Image.Image) -> Image.Image:
        rgb = upright(image)
        full_size.append(weakref.ref(rgb))
        return rgb

    def counted(self: Embedder, images: Any, **options: Any) -> np.ndarray:
        held.append((len(full_size), sum(image() is not None for image in full_size)))
        return embed(self, images, **options)

    monkeypatch.setattr(images_module, "_upright_rgb", remembered)
    monkeypatch.setattr(Embedder, "embed", counted)
    out = tmp_path / "crops.parquet"
    run("embed", f"{crops}", "--model", "mine", "--out", f"{out}")
    assert held == [(8, 0)]


def test_a_data_set_becomes_features_that_evaluation_takes(
    ray_session: None, run: Run, home: Path, tmp_path: Path
) -> None:
    size = ("synthetic.train_people=3", "synthetic.test_people=4")
    overrides = [word for setting in size for word in ("--set", setting)]
    recipe = ("--recipe", "demo", *overrides)
    run("data", "import", "syn-station", *recipe)
    out = tmp_path / "station.parquet"
    found = run("embed", "syn-station", "--model", "mine", "--out", f"{out}")
    assert found["people_known"]
    [artifact] = (home / "store" / "datasets").iterdir()
    dataset = open_dataset(
        Artifact(open_store(home / "store"), "datasets", *artifact.name.rsplit("-", 1))
    )
    rows = dataset.rows(["image_id", "pid", "camid", "split"], splits=["query", "gallery"])
    features = read_features(out)
    assert features.ids.tolist() == rows["image_id"].to_pylist()
    assert features.pids.tolist() == rows["pid"].to_pylist()
    assert features.split is not None
    assert features.split.tolist() == rows["split"].to_pylist()
    images = [decode_rgb(image) for image in dataset.read_images(rows["row"].to_numpy())]
    bundle = muva.load(found["model"])
    np.testing.assert_allclose(features.features, bundle.embed(images), atol=1e-6)

    ours = run("evaluate", "mine", "--targets", "syn-station", *recipe)["syn-station"]
    theirs = run("evaluate", "--features", f"{out}", "--recipe", "demo")["station"]
    for figure in ("mean_ap", "mean_inp", "curve", "camera_pairs"):
        assert theirs[figure] == ours[figure]

    learned = run("embed", "syn-station", "--model", "mine", "--out", f"{out}", "--split", "train")
    train = dataset.rows(["image_id"], splits=["train"])
    assert learned["images"] == len(train)
    assert read_features(out).split is None

    asked = train["image_id"][0].as_py()
    sheet = tmp_path / "ranked.png"
    answer = run("search", "--query", asked, "--gallery", f"{out}", "--sheet", f"{sheet}")
    assert answer["query"]["pid"] == features_pid(out, asked)
    assert sheet.stat().st_size > 10_000


def features_pid(file: Path, image_id: str) -> int:
    features = read_features(file)
    return int(features.pids[features.ids.tolist().index(image_id)])


def test_a_search_ranks_the_gallery_by_cosine(run: Run, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "crops.parquet"
    run("embed", f"{crops}", "--model", "mine", "--out", f"{out}")
    table = pq.read_table(out)
    ids, features = table["ids"].to_pylist(), np.stack(table["features"].to_pylist())
    place = ids.index("cam2/0003.png")
    cosines = features @ features[place]
    expected = [ids[n] for n in np.argsort(-cosines) if n != place]

    within = run("search", "--query", "cam2/0003.png", "--gallery", f"{out}")
    assert [match["image_id"] for match in within["matches"]] == expected
    assert [match["rank"] for match in within["matches"]] == list(range(1, 8))
    similarities = [match["similarity"] for match in within["matches"]]
    np.testing.assert_allclose(similarities, np.sort(np.delete(cosines, place))[::-1], atol=1e-6)

    file = tmp_path / "asked.png"
    file.write_bytes((crops / "cam2" / "0003.png").read_bytes())
    sheet = tmp_path / "ranked.png"
    words = ("--query", f"{file}", "--gallery", f"{out}", "--top", "3", "--sheet", f"{sheet}")
    outside = run("search", *words)
    assert [match["image_id"] for match in outside["matches"]] == [
        "cam2/0003.png",
        *expected[:2],
    ]
    assert outside["matches"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert Image.open(sheet).width > 4 * 104

    moved = crops.rename(tmp_path / "moved")
    assert "with --images" in run("search", *words, code=1)
    assert run("search", *words, "--images", f"{moved}")["matches"] == outside["matches"]


def test_features_of_two_models_are_not_compared(run: Run, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "crops.parquet"
    made = run("embed", f"{crops}", "--model", "mine", "--out", f"{out}")
    asked = ("search", "--query", f"{crops / 'cam1' / '0001.png'}", "--gallery", f"{out}")
    refused = run(*asked, "--model", "other", code=1)
    other = Path(made["model"]).parent / f"other-{1:016x}"
    assert f"were computed by {made['model']}, not by {other}" in refused
    assert run(*asked, "--model", "mine")["matches"] == run(*asked)["matches"]

    Path(made["model"]).rename(tmp_path / "elsewhere")
    assert "give its present place with --model" in run(*asked, code=1)
    assert run("search", "--query", "cam1/0001.png", "--gallery", f"{out}")["matches"]


@pytest.mark.parametrize(
    ("words", "code", "explanation"),
    [
        (("embed", "{empty}", "--model", "mine", "--out", "{out}"), 1, "expected image files"),
        (("embed", "{broken}", "--model", "mine", "--out", "{out}"), 1, "none of its 1 images"),
        (
            ("embed", "nobody", "--model", "mine", "--out", "{out}"),
            1,
            "nobody is not a folder, and no",
        ),
        (("embed", "{empty}", "--model", "mine", "--out", "a.csv"), 2, "ends in .parquet"),
        (("embed", "{empty}", "--model", "mine", "--out", "no/a.parquet"), 1, "does not exist"),
        (
            ("embed", "{empty}", "--model", "mine", "--out", "{out}", "--split", "train"),
            2,
            "--split is for data sets",
        ),
        (("embed", "{empty}", "--model", "mime", "--out", "{out}"), 1, "closest: mine"),
        (("search", "--query", "a", "--gallery", "{out}"), 1, "found neither"),
    ],
)
def test_what_cannot_be_meant_is_explained(
    words: tuple[str, ...], code: int, explanation: str, run: Run, tmp_path: Path
) -> None:
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    places = {name: f"{tmp_path / name}" for name in ("empty", "broken")}
    out = tmp_path / "out.parquet"
    message = run(*(word.format(**places, out=out) for word in words), code=code)
    assert explanation in message
    assert not out.exists()
