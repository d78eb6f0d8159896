"""In processes of their own: this one may have imported everything already."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("timm", "torch._dynamo", "torchvision.models", "transformers")
SHOWS = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


def printed(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import muva\n{code}"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    ["muva.model.muva_model", "muva.model.bundle", "muva.training.stage2", "muva.training.stage1"],
)
def test_a_worker_imports_no_other_models(module: str) -> None:
    assert printed(f"import {module}; {SHOWS}") == "[]"


def test_everything_else_of_the_packages_is_there_when_it_is_asked_for() -> None:
    code = """
import open_clip.model, open_clip
light = open_clip.CLIP, open_clip.tokenize, open_clip.OPENAI_DATASET_MEAN
assert open_clip.create_model.__module__ == "open_clip.factory"
assert light == (open_clip.CLIP, open_clip.tokenize, open_clip.OPENAI_DATASET_MEAN)
assert open_clip.__version__ and "CLIP" in dir(open_clip)
import torchvision.transforms, torchvision
assert torchvision.ops.nms and torchvision.models.resnet18
from open_clip.timm_model import TimmModel
from open_clip.hf_model import HFTextEncoder
print(isinstance(TimmModel, type), isinstance(HFTextEncoder, type))
"""
    assert printed(code) == "True True"


def test_a_tower_of_timm_is_built_by_its_class() -> None:
    code = """
import open_clip.model
tower = open_clip.model.TimmModel("resnet18", embed_dim=8, image_size=32)
print(type(tower).__module__, type(tower).__name__)
"""
    assert printed(code) == "open_clip.timm_model TimmModel"


def test_python_looks_at_a_module_without_running_it() -> None:
    code = f"""
import open_clip, inspect, warnings
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
hasattr(open_clip, "__warningregistry__"), inspect.getmodule(printed := print)
{SHOWS}
"""
    assert printed(code) == "[]"


def test_packages_that_were_imported_before_stay_as_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import open_clip, muva; print(type(open_clip).__name__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "module"
