"""`bundle.push_to_hub` with the real huggingface_hub, against a small hub on 127.0.0.1."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

import muva
from muva.errors import MuvaError, SettingsError
from muva.hub.card import is_unedited, model_card
from muva.hub.upload import push_bundle
from muva.model.bundle import Bundle, load_bundle, save_bundle
from tests.hub.hub_server import READER, WRITER, Hub
from tests.model.small import IMAGE_SIZE, small_model

NAME = "team/people"
PICTURES = list(np.random.default_rng(0).integers(0, 256, (2, *IMAGE_SIZE, 3), dtype=np.uint8))
METADATA = {"source_names": ["market1501", "mine"], "epoch": 60}
RESULTS = {"msmt17": {"mAP": 0.25, "rank-1": 0.5}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(small_model(), tmp_path / "bundle", metadata=METADATA)
    return tmp_path / "bundle"


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)


def head(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    repository = hub.repositories[NAME]
    return repository.commits[repository.refs[branch]]


def test_what_is_pushed_gives_the_same_features_when_loaded(hub: Hub, bundle: Bundle) -> None:
    pushed = bundle.push_to_hub(NAME)
    assert pushed.changed
    assert pushed.uri == f"hf://{NAME}@{hub.repositories[NAME].refs['main']}"
    assert pushed.url == f"{hub.url}/{NAME}/commit/{pushed.commit}"
    assert set(head(hub)) == {".gitattributes", "README.md", "bundle.json", "model.safetensors"}
    for uri in (pushed.uri, f"hf://{NAME}"):
        loaded = muva.load(uri)
        np.testing.assert_array_equal(loaded.embed(PICTURES), bundle.embed(PICTURES))
        assert loaded.metadata["hub"]["commit"] == pushed.commit


def test_a_bundle_arrives_byte_by_byte(hub: Hub, bundle: Bundle, folder: Path) -> None:
    bundle.push_to_hub(NAME)
    for file in folder.iterdir():
        assert head(hub)[file.name] == file.read_bytes(), file.name


def test_the_same_content_makes_no_second_commit(
    hub: Hub, bundle: Bundle, folder: Path, cache: Path
) -> None:
    first = bundle.push_to_hub(NAME)
    again = bundle.push_to_hub(NAME)
    assert (again.commit, again.changed) == (first.commit, False)
    assert push_bundle(folder, f"hf://{NAME}").changed is False
    # Nor does a model that was loaded from there, although its metadata says so.
    assert muva.load(f"hf://{NAME}").push_to_hub(NAME).changed is False
    assert len(hub.repositories[NAME].commits) == 2  # with that of the hub's own creation
    uploads = [path for method, path, _ in hub.requests if method == "PUT"]
    assert len(uploads) == 1


def test_only_what_differs_is_uploaded(hub: Hub, bundle: Bundle) -> None:
    first = bundle.push_to_hub(NAME)
    second = bundle.push_to_hub(NAME, results=RESULTS)
    assert second.changed
    assert second.commit != first.commit
    assert len([path for method, path, _ in hub.requests if method == "PUT"]) == 1
    assert b"msmt17" in head(hub)["README.md"]


def test_a_revision_is_a_branch_that_is_created(hub: Hub, bundle: Bundle, tmp_path: Path) -> None:
    bundle.push_to_hub(NAME)
    other = tmp_path / "other"
    save_bundle(small_model(seed=1), other, metadata={})
    pushed = load_bundle(other).push_to_hub(NAME, revision="v2", commit_message="Another seed")
    assert head(hub, "v2")["model.safetensors"] == (other / "model.safetensors").read_bytes()
    assert head(hub) != head(hub, "v2")
    assert muva.load(f"hf://{NAME}@v2").metadata["hub"]["commit"] == pushed.commit
    with pytest.raises(SettingsError, match="expected a branch to push to, found a commit"):
        bundle.push_to_hub(NAME, revision=pushed.commit)


def test_a_private_model_is_never_pushed_to_a_public_repository(hub: Hub, bundle: Bundle) -> None:
    bundle.push_to_hub(NAME, private=True)
    assert hub.repositories[NAME].private
    bundle.push_to_hub(NAME, private=True)
    hub.repositories[NAME].private = False
    before = len(hub.repositories[NAME].commits)
    with pytest.raises(MuvaError, match="is public, and a private one was requested"):
        bundle.push_to_hub(NAME, private=True, results=RESULTS)
    assert len(hub.repositories[NAME].commits) == before


def test_a_card_that_somebody_has_edited_stays(hub: Hub, bundle: Bundle) -> None:
    bundle.push_to_hub(NAME)
    edited = head(hub)["README.md"] + b"\nBy our team.\n"
    hub.add(NAME, {**head(hub), "README.md": edited})
    pushed = bundle.push_to_hub(NAME, results=RESULTS)
    assert (pushed.card_kept, pushed.changed) == (True, False)
    assert head(hub)["README.md"] == edited


def test_a_token_can_be_given_and_is_never_shown(
    hub: Hub, bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(MuvaError, match="rejects the token: it is missing, wrong or expired"):
        bundle.push_to_hub(NAME)
    with pytest.raises(MuvaError, match=r"Expected one with write access to team/people") as one:
        bundle.push_to_hub(NAME, token=READER)
    pushed = bundle.push_to_hub(NAME, token=WRITER)
    everything = caplog.text + str(one.value) + str(pushed)
    everything += "".join(content.decode(errors="ignore") for content in head(hub).values())
    assert READER not in everything
    assert WRITER not in everything


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_tried_again_later(status: int, hub: Hub, bundle: Bundle) -> None:
    hub.status = status
    with pytest.raises(MuvaError, match=f"status {status}, so the model was not pushed"):
        bundle.push_to_hub(NAME)


def test_no_damaged_bundle_is_pushed(hub: Hub, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(MuvaError, match=r"is damaged .* nothing was pushed"):
        push_bundle(folder, NAME)
    weights.unlink()
    with pytest.raises(MuvaError, match="is not a model bundle"):
        push_bundle(folder, NAME)
    assert hub.requests == []


def card_of(folder: Path, **settings: Any) -> str:
    description = json.loads((folder / "bundle.json").read_text())
    return model_card(description, f"hf://{NAME}", **settings)


def test_the_hubs_own_library_reads_the_card(folder: Path) -> None:
    card = ModelCard(card_of(folder, licence="cc-by-nc-4.0", results=RESULTS))
    data: Any = card.data
    assert (data.license, data.library_name) == ("cc-by-nc-4.0", "muva")
    assert data.pipeline_tag == "image-feature-extraction"
    assert "person-reidentification" in data.tags
    assert data.datasets == ["market1501", "mine"]
    assert data.metrics == ["mAP", "rank-1"]
    scores = {one.metric_type: (one.dataset_name, one.metric_value) for one in data.eval_results}
    assert scores == {"mAP": ("msmt17", 0.25), "rank-1": ("msmt17", 0.5)}
    assert f'muva.load("hf://{NAME}")' in card.text
    assert "| msmt17 | 50.0 | 25.0 |" in card.text


def test_a_card_claims_nothing_that_is_unknown(tmp_path: Path) -> None:
    save_bundle(small_model(), tmp_path, metadata={})
    card = card_of(tmp_path)
    metadata = yaml.safe_load(card.split("---")[1])
    assert set(metadata) == {"library_name", "pipeline_tag", "tags"}
    assert "None was stated for these weights" in card
    assert "## Results" not in card
    assert "Trained on" not in card


def test_a_card_names_the_terms_of_public_data_sets(folder: Path) -> None:
    card = card_of(folder)
    assert "Trained on market1501, mine with 4 people." in card
    assert "| market1501 | " in card
    assert "| mine | " not in card  # nothing is known about it


@pytest.mark.parametrize(
    ("sources", "clip", "start", "rendered"),
    [
        (["syn-world-0-9"], "small", {}, True),
        (["syn-world-0-9"], "ViT-B-16", {}, False),
        (["syn-world-0-9"], "small", {"init": "muva-0123456789abcdef"}, False),
        (["syn-world-0-9", "mine"], "small", {}, False),
        ([], "small", {}, False),
    ],
)
def test_a_card_says_that_no_photograph_was_used_only_where_none_was(
    folder: Path, sources: list[str], clip: str, start: dict[str, str], rendered: bool
) -> None:
    description = json.loads((folder / "bundle.json").read_text())
    description["metadata"] = {"source_names": sources, **start}
    description["model"]["clip"] = clip
    card = model_card(description, f"hf://{NAME}")
    assert ("no image of a real person was used" in card) == rendered
    assert ("It has never seen a photograph" in card) == rendered
    assert ("started from the model muva-0123456789abcdef" in card) == bool(start)


def test_a_card_shows_the_thresholds_of_a_calibrated_model(folder: Path) -> None:
    assert "## Same person?" not in card_of(folder)
    description = json.loads((folder / "bundle.json").read_text())
    description["metadata"]["calibration"] = {
        "thresholds": {"0.01": 0.4567},
        "accepted": {"0.01": 0.789},
        "people": 1200,
        "datasets": ["market1501"],
    }
    card = model_card(description, f"hf://{NAME}")
    assert "on 1,200 people of market1501 whom the model was not trained on" in card
    assert "| 1 % | 0.457 | 78.9 % |" in card


def test_a_card_knows_whether_it_was_edited(folder: Path) -> None:
    card = card_of(folder)
    assert card == card_of(folder)
    assert is_unedited(card)
    assert not is_unedited(card.replace("cameras", "cities"))
    assert not is_unedited(f"{card}more\n")
    assert not is_unedited("# My model\n")
