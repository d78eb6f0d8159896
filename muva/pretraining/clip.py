"""Pre-train the tiny CLIP shipped with muva: `python -m muva.pretraining.clip --out FOLDER`.

A small CLIP with the architecture of the real one, which runs on a laptop. It is trained by
contrastive learning (Radford et al. 2021, Sec. 2.3) on rendered people and captions of their
attributes, using only the pre-training domains, and then evaluated on people and domains that it
has not seen. Writes `model.safetensors`, `config.json` and a model card. The same seed and number
of threads give the same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from muva.model.attention import run_block, transformer_blocks
from muva.model.clip import (
    load_clip,
    new_clip,
    normalisation,
    save_clip,
    token_ids_in,
    vision_tower,
)
from muva.model.precision import autocast, resolve_precision
from muva.model.text_encoder import encode_text
from muva.pretraining.options import pretraining_options
from muva.retrieval import RetrievalResult, evaluate
from muva.synthetic import DOMAINS, PRETRAINING, render, test_records
from muva.synthetic.caption import caption, vocabulary_texts
from muva.synthetic.identity import identity
from muva.synthetic.sensor import decode_jpeg

HEIGHT, WIDTH = 128, 64
IMAGES_PER_CAMERA = 2
PEOPLE_PER_TASK = 25

PEOPLE, STEPS = 2000, 2000
"""Number of people in both domains together."""

BATCH = 128
"""Images per step, each of a different person, so that captions within a batch differ."""
PEAK_LR, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 0.05
GRADIENT_NORM = 1.0
LARGEST_LOGIT_SCALE = math.log(100)

TRAIN_PEOPLE = TEST_PEOPLE = 100
"""The split of the benchmark domains; zero-shot evaluation uses people after the first ones."""

PROMPT_WORDS = (
    "A photo of a * * * * person, head of a person, upper body of a person, legs of a person",
    "taken at night, by day, in the morning, in the evening, indoors, outdoors",
    "in spring, in summer, in autumn, in winter, in the rain, in snow, in sunlight, under lamps",
    "in a shopping mall, on a campus, on a boulevard, at a station, at a harbour, in an airport",
    "from a high camera, from the front, from behind, from the side, blurred, dark, bright",
)
"""Texts of prompts and domain contexts whose words are part of the vocabulary."""


@dataclass(frozen=True)
class People:
    """Images and captions of P people, V views of each."""

    images: NDArray[np.uint8]
    """(P, V, H, W, 3)"""
    captions: list[str]


def main() -> None:
    """Pre-train, evaluate and save."""
    arguments = pretraining_options(__doc__, people=PEOPLE, steps=STEPS)
    torch.set_num_threads(arguments.threads)

    started = time.perf_counter()
    per_domain = arguments.people // len(PRETRAINING)
    people = render_people(per_domain, processes=arguments.threads)
    print(
        f"{people.images.shape[0]} people rendered in {time.perf_counter() - started:.0f} s",
        flush=True,
    )

    token_ids = token_ids_in([*vocabulary_texts(), *PROMPT_WORDS, *people.captions])
    clip = new_clip(token_ids=token_ids, seed=arguments.seed, image_size=(HEIGHT, WIDTH))
    parameters = sum(parameter.numel() for parameter in clip.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(token_ids)} tokens")
    for report in pretrain(clip, people, steps=arguments.steps, seed=arguments.seed):
        if report.step % 20 == 0 or report.step == arguments.steps:
            print(
                f"step {report.step}/{arguments.steps}  loss {report.loss:.3f}  "
                f"accuracy {report.accuracy:.2f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )

    save_clip(clip, arguments.out, name="tiny")
    shipped = load_clip(str(arguments.out), image_size=(HEIGHT, WIDTH), stride=8)
    results = {
        domain: zero_shot(shipped, domain, pids=unseen_people(domain, pretrained_on=per_domain))
        for domain in DOMAINS
    }
    for domain, result in results.items():
        print(f"{domain:15s} rank-1 {result.cmc[1]:.3f}  mAP {result.mean_ap:.3f}")
    seconds = time.perf_counter() - started
    card = model_card(
        results,
        people=people,
        parameters=parameters,
        tokens=len(token_ids),
        arguments=arguments,
        seconds=seconds,
    )
    (arguments.out / "README.md").write_text(card)
    print(f"{arguments.out} written after {seconds:.0f} s")


def render_people(people_per_domain: int, *, processes: int) -> People:
    """Render the first people of each pre-training domain, seen by all its cameras."""
    people = [(domain, pid) for domain in PRETRAINING for pid in range(1, people_per_domain + 1)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        views = list(pool.map(_views, *zip(*people, strict=True), chunksize=PEOPLE_PER_TASK))
    return People(np.stack(views), [caption(identity(domain, pid)) for domain, pid in people])


def _views(domain: str, pid: int) -> NDArray[np.uint8]:
    return np.stack(
        [
            render(domain, pid=pid, camid=camid, index=index, height=HEIGHT, width=WIDTH).image
            for camid in range(1, DOMAINS[domain].cameras + 1)
            for index in range(IMAGES_PER_CAMERA)
        ]
    )


@dataclass(frozen=True)
class StepReport:
    """The loss of a step, and the fraction of images matched to their own caption."""

    step: int
    loss: float
    accuracy: float


def pretrain(
    clip: open_clip.CLIP, people: People, *, steps: int, seed: int
) -> Iterator[StepReport]:
    """Train with a contrastive loss between images and captions, yielding after each step."""
    optimiser = torch.optim.AdamW(clip.parameters(), lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    own = torch.arange(min(BATCH, len(people.captions)))
    precision = resolve_precision("auto", torch.device("cpu"))
    clip.train()
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = PEAK_LR * learning_rate_factor(step, steps)
        rng = np.random.default_rng([seed, step])
        images, texts = draw_batch(people, clip, rng, size=len(own))
        with autocast(precision, images.device):
            image_features = encode_images(clip, images)
            text_features = encode_text(clip, texts)
        image_features = normalize(image_features.float(), dim=1)
        text_features = normalize(text_features.float(), dim=1)
        logits = clip.logit_scale.exp() * image_features @ text_features.T
        loss = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), GRADIENT_NORM)
        optimiser.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=LARGEST_LOGIT_SCALE)
        accuracy = (logits.argmax(dim=1) == own).float().mean()
        yield StepReport(step, float(loss.detach()), float(accuracy))
    clip.eval()


def encode_images(clip: open_clip.CLIP, pixels: Tensor) -> Tensor:
    """CLIP's features (B, D) of images, faster than CLIP's own method.

    The last block computes only the class token, and attention has a fast backward pass in bf16.
    """
    visual = vision_tower(clip)
    patches = visual.conv1(pixels).flatten(2).mT
    first = visual.get_parameter("class_embedding").expand(len(pixels), 1, -1)
    tokens = torch.cat([first, patches], dim=1) + visual.positional_embedding
    tokens = visual.ln_pre(tokens)
    *blocks, last = transformer_blocks(visual.transformer)
    for block in blocks:
        tokens = run_block(block, tokens)
    tokens = run_block(last, tokens, outputs=1)
    return visual.ln_post(tokens[:, 0]) @ visual.get_parameter("proj")


def learning_rate_factor(step: int, steps: int) -> float:
    """Learning rate at a step, counted from 1, as a fraction of the peak: warm-up and cosine."""
    warmup = max(1, round(WARMUP * steps))
    if step <= warmup:
        return step / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def draw_batch(
    people: People, clip: open_clip.CLIP, rng: np.random.Generator, *, size: int
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) of `size` different people, and the token ids of their captions."""
    chosen = rng.choice(len(people.captions), size, replace=False)
    views = rng.integers(people.images.shape[1], size=size)
    images = to_pixels(people.images[chosen, views], clip)
    mirrored = torch.from_numpy(rng.random(size) < 0.5)
    images[mirrored] = images[mirrored].flip(3)
    return shift_colours(images, rng), open_clip.tokenize(
        [phrase(people.captions[person], rng) for person in chosen]
    )


def to_pixels(images: NDArray[np.uint8], clip: open_clip.CLIP) -> Tensor:
    """Convert pixels (B, H, W, 3) to images (B, 3, H, W) with the CLIP's normalisation."""
    mean, std = (torch.tensor(channels)[:, None, None] for channels in normalisation(clip))
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    return (pixels / 255 - mean) / std


def shift_colours(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary exposure and white balance, as between cameras."""
    contrast = rng.uniform(0.7, 1.3, (len(pixels), 1, 1, 1))
    tint = rng.uniform(-0.2, 0.2, (len(pixels), 3, 1, 1))
    return pixels * torch.from_numpy(contrast).float() + torch.from_numpy(tint).float()


def phrase(text: str, rng: np.random.Generator) -> str:
    """Vary a caption: sometimes with the prefix of the prompts, sometimes with `person`."""
    if rng.random() < 0.25:
        for noun in (" woman ", " man ", " girl ", " boy "):
            text = text.replace(noun, " person ", 1)
    return f"A photo of {text}" if rng.random() < 0.5 else text


def zero_shot(clip: open_clip.CLIP, domain: str, *, pids: Iterable[int]) -> RetrievalResult:
    """Evaluate a CLIP without further training on these people of a domain, across cameras."""
    records = test_records(
        domain, pids=pids, images_per_camera=IMAGES_PER_CAMERA, height=HEIGHT, width=WIDTH
    )
    features: dict[str, list[Tensor]] = {"query": [], "gallery": []}
    pids_of: dict[str, list[int]] = {"query": [], "gallery": []}
    camids_of: dict[str, list[int]] = {"query": [], "gallery": []}
    with torch.inference_mode():
        while chunk := list(islice(records, BATCH)):
            images = np.stack([decode_jpeg(record.read()) for record in chunk])
            pixels = to_pixels(images, clip)
            for record, feature in zip(chunk, clip.encode_image(pixels), strict=True):
                features[record.split].append(feature)
                pids_of[record.split].append(record.pid)
                camids_of[record.split].append(record.camid or 0)
    return evaluate(
        query_features=torch.stack(features["query"]),
        query_pids=pids_of["query"],
        query_camids=camids_of["query"],
        gallery_features=torch.stack(features["gallery"]),
        gallery_pids=pids_of["gallery"],
        gallery_camids=camids_of["gallery"],
    )


def unseen_people(domain: str, *, pretrained_on: int) -> range:
    """People that the tiny CLIP has not seen: the test split, or those after the rendered ones."""
    first = pretrained_on if domain in PRETRAINING else TRAIN_PEOPLE
    return range(first + 1, first + TEST_PEOPLE + 1)


def model_card(
    results: Mapping[str, RetrievalResult],
    *,
    people: People,
    parameters: int,
    tokens: int,
    arguments: argparse.Namespace,
    seconds: float,
) -> str:
    """The README of the model's folder."""
    rows = "\n".join(
        f"| {domain} | {'people unseen' if domain in PRETRAINING else 'domain unseen'} "
        f"| {100 * result.cmc[1]:.1f} | {100 * result.mean_ap:.1f} |"
        for domain, result in results.items()
    )
    count, views = people.images.shape[:2]
    return f"""# The tiny CLIP

A CLIP of {parameters / 1e6:.2f} M parameters in OpenAI's layout, small enough to fine-tune on a
laptop. It has the architecture of the real one and is used in the demo, the tests and the
benchmarks on synthetic people. It was trained only on rendered pedestrians; the setting
`model.clip` replaces it, for example by `ViT-B-16` with OpenAI's weights.

- Image encoder: {HEIGHT} x {WIDTH} pixels, patch 8, width 128, 4 layers, 2 heads; mean and std 0.5.
- Text encoder: width 64, 3 layers, 1 head, context 77; CLIP's tokeniser, of whose vocabulary the
  {tokens} tokens in use are stored. Embedding 64; QuickGELU. Weights are stored in float16.
- Trained contrastively on {count * views:,} images of {count:,} people of
  {" and ".join(PRETRAINING)} with captions of their attributes: {arguments.steps:,} steps of
  {BATCH} different people, AdamW, peak rate {PEAK_LR:g}, weight decay {WEIGHT_DECAY:g}; flips,
  exposure and white balance vary. No image of a benchmark domain was seen.
- Made in {seconds / 60:.0f} minutes by
  `python -m muva.pretraining.clip --out muva/model/tiny {_settings(arguments)}`.

## Zero-shot retrieval

`python -m benchmarks.zero_shot`: the projected class token without training, {TEST_PEOPLE} people,
per camera one query and {IMAGES_PER_CAMERA - 1} gallery image, across cameras, in per cent.

| domain | | rank-1 | mAP |
|---|---|---|---|
{rows}

## Limits

It has seen only people from one renderer, so its results say little about CLIP or real images.
Words of prompts and domain contexts that occur in no caption have untrained rows in the vocabulary.
"""


def _settings(arguments: argparse.Namespace) -> str:
    return " ".join(f"--{name} {value}" for name, value in vars(arguments).items() if name != "out")


if __name__ == "__main__":
    main()
