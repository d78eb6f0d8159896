"""Every expert with its real classes and small random weights: processor, model, answer."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from muva.config import PHRASES, GroundingConfig
from muva.errors import MuvaError
from muva.grounding.chat_client import RetrySettings
from muva.grounding.expert import GroundingImage, RefusedImageError
from muva.grounding.experts import EXPERTS, choose_expert
from muva.grounding.experts.florence2 import Florence2Expert
from muva.grounding.experts.pretrained import pin
from muva.grounding.quality import iou
from muva.synthetic import render
from muva.synthetic.sensor import encode_jpeg
from tests.grounding.small_experts import MAKERS

SIZES = ((128, 64), (117, 71), (61, 33), (300, 401))
"""Heights and widths."""


@pytest.fixture(scope="module")
def images() -> list[GroundingImage]:
    rng = np.random.default_rng(0)
    made = []
    for number, (height, width) in enumerate(SIZES):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        made.append(GroundingImage(image_id=f"{number}", encoded=buffer.getvalue(), annotated=None))
    return made


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def checkpoint(checkpoints: Path, name: str) -> Path:
    folder = checkpoints / name
    if not folder.exists():
        MAKERS[name](folder)
    return folder


def chosen(folder: Path, name: str, **settings: Any) -> Any:
    config = GroundingConfig(expert=name, checkpoint=str(folder), precision="fp32", **settings)
    return choose_expert(config)


@pytest.mark.parametrize("name", MAKERS)
def test_an_image_gets_the_same_answers_alone_and_among_others(
    name: str, images: list[GroundingImage], checkpoints: Path
) -> None:
    expert = chosen(checkpoint(checkpoints, name), name).load()
    together = expert.ground(images, PHRASES)
    assert [len(answers) for answers in together] == [len(PHRASES)] * len(images)
    alone = [expert.ground([image], PHRASES)[0] for image in images]
    for in_batch, one_by_one in zip(together, alone, strict=True):
        for one, other in zip(in_batch, one_by_one, strict=True):
            if one.score is None:
                assert one.answer == other.answer
                assert one.box == other.box
            else:
                assert one.score == pytest.approx(other.score, abs=1e-4)
            assert (one.score is None) == (not EXPERTS[name].gives_scores or one.box is None)
    legs = expert.ground(images[:1], {"legs": PHRASES["legs"]})[0][0]
    assert legs.score == pytest.approx(alone[0][2].score, abs=1e-4)
    assert legs.answer == alone[0][2].answer


def test_there_is_a_small_checkpoint_of_every_expert_with_weights() -> None:
    assert set(MAKERS) == set(EXPERTS) - {"annotated", "http", "tiny"}


def test_florence_encodes_an_image_once_and_answers_like_its_own_pipeline(
    images: list[GroundingImage], checkpoints: Path
) -> None:
    folder = checkpoint(checkpoints, "florence-2")
    expert = chosen(folder, "florence-2").load()
    assert isinstance(expert, Florence2Expert)
    processor, model = expert._processor, expert._model
    for image, answers in zip(images, expert.ground(images, PHRASES), strict=True):
        for phrase, answer in zip(PHRASES.values(), answers, strict=True):
            text = f"<CAPTION_TO_PHRASE_GROUNDING>{phrase}"
            inputs = processor(text=text, images=image.image, return_tensors="pt")
            generated = model.generate(**inputs, max_new_tokens=64, num_beams=1, do_sample=False)
            expected = processor.batch_decode(generated, skip_special_tokens=False)[0]
            assert answer.answer == expected.replace("<pad>", "")


@pytest.mark.parametrize("name", ["kosmos-2", "qwen2.5-vl", "qwen3-vl"])
def test_images_that_are_encoded_once_get_the_answers_of_the_models_own_pipeline(
    name: str, images: list[GroundingImage], checkpoints: Path
) -> None:
    expert = chosen(checkpoint(checkpoints, name), name).load()
    model, processor = expert._model, expert._processor
    encoded: list[int] = []
    tower = model.vision_model if name == "kosmos-2" else model.model.visual
    tower.register_forward_hook(lambda *_: encoded.append(1))
    answers = expert.ground(images, PHRASES)
    assert len(encoded) == 1, "one pass of the vision tower for all phrases"
    expected_texts = []
    for image, of_image in zip(images, answers, strict=True):
        for phrase, answer in zip(PHRASES.values(), of_image, strict=True):
            text = (
                f"<grounding><phrase> {phrase}</phrase>"
                if name == "kosmos-2"
                else expert._question(phrase)
            )
            inputs = processor(text=[text], images=[image.image], return_tensors="pt")
            generated = model.generate(
                **inputs,
                max_new_tokens=16 if name == "kosmos-2" else 128,
                do_sample=False,
            )[:, inputs["input_ids"].shape[1] :]
            [expected] = processor.batch_decode(generated, skip_special_tokens=name != "kosmos-2")
            assert answer.answer == expected, (image.image_id, phrase)
            expected_texts.append(expected)
    assert len(set(expected_texts)) > 1, "the answers depend on image or phrase"


@pytest.mark.parametrize(
    ("generated", "box"),
    [
        ("</s><s>head<loc_100><loc_0><loc_299><loc_199></s>", (0.1005, 0.0005, 0.2995, 0.1995)),
        ("the head<loc_0><loc_0><loc_9><loc_9>the person<loc_0><loc_0><loc_999><loc_999></s>",
         (0.0005, 0.0005, 0.0095, 0.0095)),
        ("legs<loc_0><loc_0><loc_99><loc_99><loc_500><loc_500><loc_900><loc_900></s>",
         (0.5005, 0.5005, 0.9005, 0.9005)),
        ("legs<loc_900><loc_900><loc_500><loc_500></s>", (0.5005, 0.5005, 0.9005, 0.9005)),
        ("legs<loc_1><loc_2><loc_3></s>", None),
        ("</s><s></s>", None),
        ("there are no legs here</s>", None),
    ],
)  # fmt: skip
def test_florences_locations_are_bin_centres(
    generated: str, box: tuple[float, ...] | None, checkpoints: Path
) -> None:
    expert = chosen(checkpoint(checkpoints, "florence-2"), "florence-2").load()
    found = expert._grounding(generated)
    assert found.box == (box and pytest.approx(box))


def test_weights_are_pinned_by_their_content(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint(checkpoints, "owlv2"), folder)
    revision = chosen(folder, "owlv2").revision
    assert revision.startswith("sha256:")
    assert chosen(checkpoint(checkpoints, "owlv2"), "owlv2").revision == revision
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "logit_scale_init_value": 1.0}))
    assert chosen(folder, "owlv2").revision != revision


def test_an_unreachable_hub_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9"
    )  # nothing listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", f"{tmp_path}")
    with pytest.raises(
        MuvaError, match=r"the hub does not respond .* network access and use --set"
    ):
        choose_expert(GroundingConfig(expert="grounding-dino"))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_with_status(status: int) -> Iterator[str]:
    """A hub that answers every request with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with one commit of a model."""
    model = tmp_path / "models--florence-community--Florence-2-base"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    (model / "snapshots" / COMMIT / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", f"{tmp_path}")
    return model


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_a_busy_hub_leads_to_the_cached_commit(
    status: int, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with hub_with_status(status) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
        assert pin("florence-community/Florence-2-base").revision == COMMIT
        assert f"responds with status {status}" in caplog.text
        assert f"the cached commit {COMMIT} is used" in caplog.text
        with pytest.raises(MuvaError, match=f"status {status} .* the local cache is empty"):
            pin("florence-community/Florence-2-large")


def test_only_a_missing_model_is_a_wrong_name(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_with_status(404) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
        with pytest.raises(MuvaError, match=r"has no such model at revision main .* correct"):
            pin("florence-community/Florence-2-base")


def test_wrong_or_incomplete_weights_are_reported(checkpoints: Path, tmp_path: Path) -> None:
    owl = checkpoint(checkpoints, "owlv2")
    with pytest.raises(MuvaError, match="expected the architecture kosmos-2, found owlv2"):
        chosen(owl, "kosmos-2").load()
    with pytest.raises(MuvaError, match="expected an existing folder or a hub's ORG/NAME"):
        chosen(tmp_path / "nowhere", "owlv2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MuvaError, match="expected safetensors in this folder, found nothing"):
        chosen(tmp_path / "empty", "owlv2")
    with pytest.raises(MuvaError, match="expected no revision for a folder, found main"):
        chosen(owl, "owlv2", revision="main")
    shutil.copytree(owl, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MuvaError, match="cannot be loaded"):
        chosen(tmp_path / "cut", "owlv2").load()
    shutil.copytree(owl, tmp_path / "partial")
    from safetensors.torch import load_file, save_file

    tensors = load_file(owl / "model.safetensors")
    tensors.pop("layer_norm.weight")
    save_file(tensors, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MuvaError, match=r"1 tensors of owlv2 are missing.*layer_norm\.weight"):
        chosen(tmp_path / "partial", "owlv2").load()


def test_experts_with_incompatible_settings_are_rejected() -> None:
    with pytest.raises(MuvaError, match="expert 'florence' is unknown; closest: florence-2"):
        choose_expert(GroundingConfig(expert="florence"))
    with pytest.raises(MuvaError, match="annotated has no weights"):
        choose_expert(GroundingConfig(expert="annotated", revision="main"))
    with pytest.raises(MuvaError, match="expected the name of the served model"):
        choose_expert(GroundingConfig(expert="http"))


def test_words_outside_the_small_vocabulary_are_rejected(
    images: list[GroundingImage], checkpoints: Path
) -> None:
    expert = chosen(checkpoint(checkpoints, "florence-2"), "florence-2").load()
    with pytest.raises(
        MuvaError, match="phrase 'the backpack': the small vocabulary of this expert"
    ):
        expert.ground(images[:1], {"bag": "the backpack"})


class Endpoint(ThreadingHTTPServer):
    """A chat endpoint with scripted answers: first these status codes, then this text."""

    text: str = "[[100,200,300,400]]"
    failures: list[int]
    seen: list[dict[str, Any]]
    token: str | None = None


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = cast(Endpoint, self.server)
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.seen.append(content)
        wanted = f"Bearer {server.token}" if server.token else None
        status = 200
        if server.failures:
            status = server.failures.pop()
        elif wanted and self.headers.get("Authorization") != wanted:
            status = 401
        answer = {"choices": [{"message": {"content": server.text}}]}
        body = json.dumps(answer if status == 200 else {"error": "no"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with Endpoint(("127.0.0.1", 0), Handler) as server:
        server.failures, server.seen = [], []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("MUVA_EXPERT_URL", f"http://127.0.0.1:{server.server_port}/v1/")
        monkeypatch.setattr("muva.grounding.chat_client.RETRY", RetrySettings(backoff_s=0.01))
        yield server
        server.shutdown()


def served(**settings: Any) -> Any:
    return choose_expert(GroundingConfig(expert="http", checkpoint="cogvlm", **settings)).load()


def test_a_served_model_is_asked_the_papers_question(
    endpoint: Endpoint, images: list[GroundingImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUVA_EXPERT_TOKEN", "s3cr3t-token")
    endpoint.token = "s3cr3t-token"
    answers = served().ground(images[:2], PHRASES)
    assert {answer.box for row in answers for answer in row} == {(0.1, 0.2, 0.3, 0.4)}
    assert len(endpoint.seen) == 6
    request = endpoint.seen[0]
    assert request["model"] == "cogvlm" and request["temperature"] == 0
    image, question = request["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    questions = {seen["messages"][0]["content"][1]["text"] for seen in endpoint.seen}
    assert question["text"] in questions and len(questions) == 3
    assert any(
        "the location of the legs of the person within the image" in text for text in questions
    )


def test_temporary_failures_are_retried(endpoint: Endpoint, images: list[GroundingImage]) -> None:
    endpoint.failures = [503, 429, 500]
    answers = served(coordinates="pixels").ground(images[:1], {"head": PHRASES["head"]})
    assert len(endpoint.seen) == 4
    # 64 wide, 128 high: all of the box is outside.
    assert answers[0][0].box is None
    assert answers[0][0].answer == "[[100,200,300,400]]"


def test_an_endpoint_that_refuses_is_named_without_its_token(
    endpoint: Endpoint, images: list[GroundingImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUVA_EXPERT_TOKEN", "wrong-s3cr3t")
    endpoint.token = "right"
    with pytest.raises(MuvaError, match=r"cogvlm at http://127.*does not answer.*401") as mistake:
        served().ground(images[:1], PHRASES)
    assert "s3cr3t" not in str(mistake.value)
    monkeypatch.setenv("MUVA_EXPERT_URL", "")
    with pytest.raises(MuvaError, match="MUVA_EXPERT_URL is 'not set'"):
        served()


def test_an_image_that_the_endpoint_refuses_is_reported_with_its_reason(
    endpoint: Endpoint, images: list[GroundingImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUVA_EXPERT_TOKEN", "s3cr3t-token")
    endpoint.failures = [413]
    with pytest.raises(RefusedImageError, match=r'refused by the endpoint: 413 \{"error": "no"\}'):
        served().ground(images[:1], {"head": PHRASES["head"]})


def test_neither_address_nor_token_of_an_endpoint_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUVA_EXPERT_URL", "http://me:s3cr3t@127.0.0.1:9/v1")
    monkeypatch.setenv("MUVA_EXPERT_TOKEN", "t0ken-s3cr3t")
    monkeypatch.setattr("muva.grounding.chat_client.RETRY", RetrySettings(retries=0))
    chosen = choose_expert(GroundingConfig(expert="http", checkpoint="cogvlm"))
    assert "s3cr3t" not in repr(chosen)
    monkeypatch.delenv("MUVA_EXPERT_TOKEN")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    image = GroundingImage(image_id="a", encoded=picture.getvalue(), annotated=None)
    with pytest.raises(MuvaError, match=r"at http://\*\*\*@127") as mistake:
        chosen.load().ground([image], {"head": "the head"})
    assert "s3cr3t" not in str(mistake.value)


def test_weights_that_changed_after_they_were_pinned_are_not_loaded(tmp_path: Path) -> None:
    MAKERS["owlv2"](tmp_path / "owl")
    chosen = choose_expert(GroundingConfig(expert="owlv2", checkpoint=str(tmp_path / "owl")))
    (tmp_path / "owl" / "more.json").write_text("{}")
    with pytest.raises(MuvaError, match=r"expected sha256:\w+, found sha256:.*same files there"):
        chosen.load()
    shutil.rmtree(tmp_path / "owl")
    with pytest.raises(MuvaError, match="found no such folder"):
        chosen.load()


def test_the_shipped_expert_finds_parts_in_an_unseen_camera_network():
    chosen = choose_expert(GroundingConfig(expert="tiny"))
    assert chosen.weights is not None and chosen.weights.location == "shipped:tiny"
    assert chosen.weight_bytes() == pytest.approx(2.06e6 * 4, rel=0.05)
    shots = [
        render("syn-airport", pid=7000 + n, camid=1 + n % 4, index=0, height=128, width=64)
        for n in range(16)
    ]
    images = [
        GroundingImage(image_id=str(n), encoded=encode_jpeg(shot.image, quality=95), annotated=None)
        for n, shot in enumerate(shots)
    ]
    answers = chosen.load().ground(images, PHRASES)
    for column, part in enumerate(PHRASES):
        true = np.array([shot.boxes[part] for shot in shots if shot.boxes[part]])
        generated = np.array(
            [a[column].box for a, shot in zip(answers, shots, strict=True) if shot.boxes[part]]
        )
        assert np.median(iou(true, generated)) > 0.6
