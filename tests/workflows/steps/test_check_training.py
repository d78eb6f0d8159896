"""A training that could not learn anything is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from muva.config import load_recipe
from muva.errors import MuvaError
from tests.data.test_training_images import dataset
from workflows.runtime.workers import Workers
from workflows.steps.train import check_training


def test_training_images_of_one_person_are_refused(tmp_path: Path) -> None:
    alone = dataset(tmp_path, "alone", [7]).artifact
    with pytest.raises(MuvaError, match="training images of alone show only one person"):
        check_training(load_recipe("demo"), [alone], Workers())
