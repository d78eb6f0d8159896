"""What CONTRIBUTING.md tells people to write works as written."""

import importlib.util
import io
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from muva.config import PHRASES, GroundingConfig
from muva.data.benchmarks import READERS, read_tree
from muva.errors import MuvaError
from muva.grounding.expert import GroundingImage
from muva.grounding.experts import EXPERTS, ExpertInfo, choose_expert
from workflows.cli import VERBS

ROOT = Path(__file__).parents[1]
GUIDES = ("CONTRIBUTING.md", "clusters/README.md", "docs/mlflow.md")


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


@pytest.mark.parametrize("example", ["muva/data/benchmarks/prid2011.py"], indirect=True)
def test_the_example_of_a_reader_reads_its_tree(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(READERS, "prid2011", example.read_prid2011)
    tree = tmp_path / "single_shot"
    with pytest.raises(MuvaError, match="expected a folder, found nothing"):
        read_tree("prid2011", tree, domain="prid2011")
    for name in (
        "cam_a/person_0001",
        "cam_a/person_0385",
        "cam_b/person_0001",
        "cam_b/person_0749",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(tree / f"{name}.png")
    records = read_tree("prid2011", tree, domain="prid2011")
    assert [(record.image_id, record.split, record.pid, record.camid) for record in records] == [
        ("cam_a/person_0001.png", "query", 1, 1),
        ("cam_b/person_0001.png", "gallery", 1, 2),
        ("cam_b/person_0749.png", "gallery", 749, 2),
    ]


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


@pytest.mark.parametrize("guide", GUIDES)
def test_the_verbs_targets_and_files_that_a_guide_names_exist(guide: str) -> None:
    text = (ROOT / guide).read_text()
    commands = re.findall(r"(?:^|`)muva ([a-z]+)\b", text, re.MULTILINE)
    assert commands
    assert set(commands) <= set(VERBS)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)\b", text, re.MULTILINE)) <= set(targets)
    written = {"muva/data/benchmarks/prid2011.py", "muva/grounding/experts/bands.py"}
    paths = set(
        re.findall(r"`((?:muva|workflows|tracking|tests|clusters|docs)/[a-z0-9_./-]*)`", text)
    )
    assert not [path for path in paths - written if not (ROOT / path).exists()]
