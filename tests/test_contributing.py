"""What CONTRIBUTING.md tells people to write works as written."""

import dataclasses
import importlib.util
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from muva.config import PHRASES, GroundingConfig
from muva.data.artifacts import Artifact
from muva.data.benchmarks import READERS, read_tree
from muva.data.benchmarks.benchmark import counts_differ
from muva.data.records import Record
from muva.data.shards import write_shards
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.grounding.expert import GroundingImage
from muva.grounding.experts import EXPERTS, ExpertInfo, choose_expert
from workflows.cli import muva as muva_command
from workflows.verbs import VERBS

ROOT = Path(__file__).parents[1]
GUIDES = (
    "README.md",
    "CONTRIBUTING.md",
    "clusters/README.md",
    "docs/getting-started.md",
    "docs/mlflow.md",
    "docs/using-the-model.md",
)


@pytest.fixture
def example(tmp_path: Path, request: pytest.FixtureRequest) -> ModuleType:
    """The code block that starts with the path in the test's parameter, as a module."""
    path: str = request.param
    blocks = re.findall(
        r"```python\n# (\S+\.py)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    file = tmp_path / "example.py"
    file.write_text(dict(blocks)[path])
    spec = importlib.util.spec_from_file_location("example", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("example", ["muva/data/benchmarks/sensereid.py"], indirect=True)
def test_the_example_of_a_reader_reads_its_tree(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(READERS, example.SENSEREID.layout, example.read_sensereid)
    tree = tmp_path / "SenseReID"
    with pytest.raises(MuvaError, match="expected a folder, found nothing"):
        read_tree("sensereid", tree, domain="sensereid")
    for name in ("test_probe/1_1", "test_gallery/1_2", "test_gallery/1700_1"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(tree / f"{name}.jpg")
    records = read_tree("sensereid", tree, domain="sensereid")
    assert [(record.image_id, record.split, record.pid, record.camid) for record in records] == [
        ("test_probe/1_1.jpg", "query", 1, 1),
        ("test_gallery/1700_1.jpg", "gallery", 1700, 1),
        ("test_gallery/1_2.jpg", "gallery", 1, 2),
    ]
    difference = str(counts_differ(example.SENSEREID, records, where=str(tree)))
    assert re.search(r"gallery +identities +1717 +2 +differs", difference)
    with pytest.raises(MuvaError, match=r"test_probe is missing, .* Is it .*SenseReID\?"):
        read_tree("sensereid", tree / "test_gallery", domain="sensereid")


@pytest.mark.parametrize("example", ["muva/grounding/experts/bands.py"], indirect=True)
def test_the_example_of_an_expert_answers_every_phrase(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "muva.grounding.experts.bands", example)
    monkeypatch.setitem(EXPERTS, "bands", ExpertInfo(adapter="bands:BandsExpert"))
    expert = choose_expert(GroundingConfig(expert="bands")).load()
    encoded = io.BytesIO()
    Image.fromarray(np.zeros((8, 4, 3), np.uint8)).save(encoded, format="PNG")
    images = [
        GroundingImage(image_id=name, encoded=encoded.getvalue(), annotated=None) for name in "ab"
    ]
    answers = expert.ground(images, PHRASES)
    assert [[answer.box for answer in row] for row in answers] == [
        [(0.25, 0.0, 0.75, 0.2), (0.25, 0.2, 0.75, 0.55), (0.25, 0.55, 0.75, 1.0)]
    ] * 2


@pytest.mark.parametrize("example", ["muva/training/losses.py"], indirect=True)
def test_the_example_of_a_loss_equals_a_naive_loop(example: ModuleType) -> None:
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0])
    expected = []
    for anchor, label in zip(features, labels, strict=True):
        own = [torch.dist(anchor, other) for other in features[labels == label]]
        others = [torch.dist(anchor, other) for other in features[labels != label]]
        expected.append(max(0.0, float(max(own) - min(others)) + 0.3))
    loss = example.hardest_triplet_loss(features, labels, margin=0.3)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("example", ["muva/data/augmentation.py"], indirect=True)
def test_the_example_of_an_augmentation_adds_noise_that_depends_on_the_seed_alone(
    example: ModuleType,
) -> None:
    pixels = np.full((3, 64, 32, 3), 100, np.uint8)
    noisy = example.add_noise(pixels, np.array([5.0, 0.0, 9.0]), np.array([7, 8, 9]))
    assert noisy[0].std() == pytest.approx(5, rel=0.1)
    assert noisy[2].std() == pytest.approx(9, rel=0.1)
    assert noisy[[0, 2]].mean() == pytest.approx(100, abs=0.5)
    assert np.array_equal(noisy[1], pixels[1])
    alone = example.add_noise(pixels[:1], np.array([9.0]), np.array([9]))
    assert np.array_equal(alone[0], noisy[2])
    assert (pixels == 100).all()


@pytest.mark.parametrize("example", ["muva/retrieval/metrics.py"], indirect=True)
def test_the_example_of_a_metric_leaves_out_queries_without_a_match(example: ModuleType) -> None:
    ranks = [3, 0, 1, 8, 0, 2]
    valid = sorted(rank for rank in ranks if rank)
    expected = (valid[len(valid) // 2 - 1] + valid[len(valid) // 2]) / 2
    assert example.median_first_rank(np.array(ranks)) == expected


@pytest.mark.parametrize("example", ["workflows/verbs/cameras.py"], indirect=True)
def test_the_example_of_a_verb_counts_the_images_of_each_camera(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "workflows.verbs.cameras", example)
    monkeypatch.setitem(VERBS, "cameras", "How many images each camera took")
    encoded = io.BytesIO()
    Image.fromarray(np.zeros((8, 4, 3), np.uint8)).save(encoded, format="PNG")
    cameras = [1, 1, 2, 3]
    records = [
        Record(
            domain="mine",
            image_id=f"{number}.png",
            split="train",
            pid=number,
            camid=camid,
            source=encoded.getvalue(),
        )
        for number, camid in enumerate(cameras)
    ]
    artifact = Artifact(open_store(str(tmp_path / "store")), "datasets", "mine", "0" * 16)
    summary = dataclasses.asdict(write_shards(records, artifact=artifact))
    artifact.commit(format_version=1, config={}, inputs={}, summary=summary)
    words = ["cameras", "mine", "--home", str(tmp_path), "--json"]
    answer = CliRunner().invoke(muva_command, words)
    assert answer.exit_code == 0, answer.output
    counted = {row["camid"]: row["images"] for row in json.loads(answer.stdout)}
    assert counted == Counter(cameras)
    assert "cameras" in CliRunner().invoke(muva_command, ["--help"]).output


@pytest.mark.parametrize("guide", GUIDES)
def test_the_verbs_targets_and_files_that_a_guide_names_exist(guide: str) -> None:
    text = (ROOT / guide).read_text()
    commands = re.findall(r"(?:^|`)muva ([a-z]+)\b", text, re.MULTILINE)
    assert commands
    assert set(commands) - {"cameras"} <= set(VERBS)  # that one is the example of a verb
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)\b", text, re.MULTILINE)) <= set(targets)
    written = {
        "muva/data/benchmarks/sensereid.py",
        "muva/grounding/experts/bands.py",
        "workflows/verbs/cameras.py",
    }
    paths = set(
        re.findall(r"`((?:muva|workflows|tracking|tests|clusters|docs)/[a-z0-9_./-]*)`", text)
    )
    assert not [path for path in paths - written if not (ROOT / path).exists()]
