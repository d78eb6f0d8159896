"""Pre-train the CLIPs shipped with muva: `python -m muva.pretraining.clip small --out FOLDER`.

A CLIP with the architecture of the real one, which runs on a laptop: `tiny` for the demo and the
tests, `small` for better features. Both are trained contrastively (Radford et al. 2021, Sec. 2.3)
on rendered people of the open world and captions of their attributes, and between images of a
person from two cameras (NT-Xent, Chen et al. 2020, Sec. 2.1); half of the patches are dropped (Li
et al. 2023, FLIP). A batch holds people of a few networks, so that neither light nor place tells
them apart. Writes `model.safetensors`, `config.json` and a model card with zero-shot results.

The same command continues an interrupted training. The same seed and number of threads give the
same weights.
"""

from __future__ import annotations

import argparse
import math
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from muva.memory import freed_memory_kept
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
from muva.pretraining.crowd import HEIGHT, WIDTH, Crowd, rendered_crowd
from muva.pretraining.variation import varied
from muva.retrieval import RetrievalResult, evaluate
from muva.synthetic import DOMAINS, test_records
from muva.synthetic.caption import vocabulary_texts
from muva.synthetic.sensor import decode_jpeg
from muva.training.checkpoints import load_checkpoint, save_checkpoint

NETWORKS, PEOPLE, VIEWS = 400, 24, 6
"""Networks of the open world, people of each, and images of each person."""
BATCH_NETWORKS, BATCH_PEOPLE = 4, 16
"""A batch has so many networks, and two images of so many people of each."""
KEPT_PATCHES = 0.5
"""Share of the patches that an image is encoded from in training."""

PEAK_LR, WEIGHT_DECAY, WARMUP = 5e-4, 0.05, 0.1
BETAS = (0.9, 0.98)
"""Decay rates of AdamW's moments, as CLIP was trained with (Radford et al. 2021, Table 18)."""
GRADIENT_NORM = 1.0
LARGEST_LOGIT_SCALE = math.log(100)
IMAGE_TEMPERATURE = 0.1
"""Temperature of the loss between images; the one between images and captions is learned."""
CHECKPOINT_EVERY = 100

EVALUATED_AT_ONCE = 128
TRAIN_PEOPLE = TEST_PEOPLE = 100
"""The split of the named domains: the first people are for training, the next ones for testing."""
IMAGES_PER_CAMERA = 2
"""Zero-shot evaluation: one query and one gallery image per camera, across cameras."""

PROMPT_WORDS = (
    "A photo of a * * * * person, head of a person, upper body of a person, legs of a person",
    "taken at night, by day, in the morning, in the evening, indoors, outdoors",
    "in spring, in summer, in autumn, in winter, in the rain, in snow, in sunlight, under lamps",
    "in a shopping mall, on a campus, on a boulevard, at a station, at a harbour, in an airport",
    "from a high camera, from the front, from behind, from the side, blurred, dark, bright",
    "on a plaza, in a concourse, in the world, taken by a camera, in a square, on a street",
)
"""Texts of prompts and domain contexts whose words are part of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The dimensions of a CLIP, and how long it is trained."""

    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    embed_dim: int
    steps: int


SIZES = {
    "tiny": Size(
        vision_width=128,
        vision_layers=4,
        text_width=64,
        text_layers=3,
        embed_dim=64,
        steps=3000,
    ),
    "small": Size(
        vision_width=256,
        vision_layers=5,
        text_width=128,
        text_layers=3,
        embed_dim=256,
        steps=5000,
    ),
}


def main() -> None:
    """Render, pre-train, evaluate and save."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    size = SIZES[arguments.size]
    steps = arguments.steps or size.steps
    crowd = rendered_crowd(
        range(arguments.networks),
        people=PEOPLE,
        views=VIEWS,
        folder=arguments.people,
        processes=arguments.threads,
        progress=lambda done, total: print(f"network {done}/{total} rendered", flush=True),
    )
    clip = untrained(arguments.size, crowd, seed=arguments.seed)
    parameters = sum(parameter.numel() for parameter in clip.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(crowd.captions):,} people")
    started = time.perf_counter()
    checkpoints = arguments.out / "checkpoints"
    with freed_memory_kept():
        for report in pretrain(
            clip, crowd, steps=steps, seed=arguments.seed, checkpoints=checkpoints
        ):
            if report.step % 20 == 0 or report.step == steps:
                print(
                    f"step {report.step}/{steps}  captions {report.caption_loss:.3f}  images "
                    f"{report.image_loss:.3f}  accuracy {report.accuracy:.2f}  "
                    f"{time.perf_counter() - started:.0f} s",
                    flush=True,
                )
    save_clip(clip, arguments.out, name=arguments.size)
    shipped = load_clip(str(arguments.out), image_size=(HEIGHT, WIDTH), stride=8)
    results = {domain: unseen(class_tokens(shipped), domain) for domain in DOMAINS}
    for domain, result in results.items():
        print(f"{domain:15s} rank-1 {result.cmc[1]:.3f}  mAP {result.mean_ap:.3f}")
    card = model_card(
        arguments.size,
        results,
        crowd=crowd,
        parameters=parameters,
        steps=steps,
        tokens=len(vocabulary(crowd)),
    )
    (arguments.out / "README.md").write_text(card)
    shutil.rmtree(checkpoints, ignore_errors=True)
    print(f"{arguments.out} written")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("size", choices=SIZES, help="which CLIP")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--people", type=Path, required=True, help="folder in which rendered people are kept"
    )
    parser.add_argument("--networks", type=int, default=NETWORKS)
    parser.add_argument("--steps", type=int, help="default: that of the size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def untrained(size: str, crowd: Crowd, *, seed: int) -> open_clip.CLIP:
    """A CLIP of this size with the vocabulary of all captions and prompts."""
    shape = SIZES[size]
    return new_clip(
        token_ids=vocabulary(crowd),
        seed=seed,
        image_size=crowd.images.shape[2:4],
        vision_width=shape.vision_width,
        vision_layers=shape.vision_layers,
        text_width=shape.text_width,
        text_layers=shape.text_layers,
        embed_dim=shape.embed_dim,
    )


def vocabulary(crowd: Crowd) -> list[int]:
    """The token ids of all captions and prompts."""
    return token_ids_in([*vocabulary_texts(), *PROMPT_WORDS, *crowd.captions])


@dataclass(frozen=True)
class StepReport:
    """The losses of a step, and the fraction of images matched to their own caption."""

    step: int
    caption_loss: float
    image_loss: float
    accuracy: float


def pretrain(
    clip: open_clip.CLIP,
    crowd: Crowd,
    *,
    steps: int,
    seed: int,
    checkpoints: Path | None = None,
) -> Iterator[StepReport]:
    """Train, yielding after each step; continue from the last checkpoint, if there is one.

    What is drawn in a step depends only on (seed, step), so a continued training gives what an
    uninterrupted one gives.
    """
    optimiser = torch.optim.AdamW(
        clip.parameters(), lr=PEAK_LR, betas=BETAS, weight_decay=WEIGHT_DECAY
    )
    done = _restored(checkpoints, clip, optimiser) if checkpoints else 0
    precision = resolve_precision("auto", torch.device("cpu"))
    clip.train()
    for step in range(done + 1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = PEAK_LR * learning_rate_factor(step, steps, warmup=WARMUP)
        rng = np.random.default_rng([seed, step])
        images, texts = draw_batch(crowd, clip, rng)
        own = torch.arange(len(texts))
        with autocast(precision, images.device):
            image_features = encode_images(clip, images, kept=_kept_patches(clip, images, rng))
            text_features = encode_text(clip, texts)
        image_features = normalize(image_features.float(), dim=1)
        text_features = normalize(text_features.float(), dim=1)
        logits = clip.logit_scale.exp() * image_features @ text_features.T
        caption_loss = torch.stack(
            [
                (cross_entropy(view, own) + cross_entropy(view.T, own)) / 2
                for view in logits.chunk(2)
            ]
        ).mean()
        image_loss = nt_xent(image_features)
        optimiser.zero_grad()
        (caption_loss + image_loss).backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), GRADIENT_NORM)
        optimiser.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=LARGEST_LOGIT_SCALE)
        if checkpoints and (step % CHECKPOINT_EVERY == 0 or step == steps):
            _save(checkpoints, clip, optimiser, step)
        accuracy = (logits.argmax(dim=1) == own.repeat(2)).float().mean()
        yield StepReport(
            step, float(caption_loss.detach()), float(image_loss.detach()), float(accuracy)
        )
    clip.eval()


def nt_xent(features: Tensor) -> Tensor:
    """Loss between two views of B people: normalised features (2 B, D), the first views first.

    Each image is to find the other view of its person among all other images of the batch.
    """
    count = len(features)
    logits = features @ features.T / IMAGE_TEMPERATURE
    logits = logits.masked_fill(torch.eye(count, dtype=torch.bool), -math.inf)
    return cross_entropy(logits, (torch.arange(count) + count // 2) % count)


def draw_batch(
    crowd: Crowd, clip: open_clip.CLIP, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Two images each of B people, first views first, (2 B, 3, H, W), and B captions' token ids."""
    people = draw_people(crowd, rng)
    views = np.stack([rng.permutation(crowd.images.shape[1])[:2] for _ in people], axis=1)
    levels = np.concatenate([crowd.images[people, view] for view in views])
    texts = [phrase(crowd.captions[person], rng) for person in people]
    return _normalised(varied(_unit(levels), rng), clip), open_clip.tokenize(texts)


def draw_people(crowd: Crowd, rng: np.random.Generator) -> np.ndarray:
    """Indices (B,) of different people from a few networks."""
    networks = np.unique(crowd.networks)
    chosen = rng.choice(networks, min(BATCH_NETWORKS, len(networks)), replace=False)
    of_network = [np.flatnonzero(crowd.networks == network) for network in chosen]
    return np.concatenate(
        [rng.choice(own, min(BATCH_PEOPLE, len(own)), replace=False) for own in of_network]
    )


def _kept_patches(clip: open_clip.CLIP, images: Tensor, rng: np.random.Generator) -> Tensor:
    """Indices (B, kept) of the patches that each image is encoded from, in order."""
    patches = len(vision_tower(clip).positional_embedding) - 1
    order = rng.random((len(images), patches)).argsort(axis=1)
    return torch.from_numpy(np.sort(order[:, : round(KEPT_PATCHES * patches)], axis=1))


def encode_images(clip: open_clip.CLIP, pixels: Tensor, *, kept: Tensor | None = None) -> Tensor:
    """CLIP's features (B, D) of images, faster than CLIP's own method.

    The last block computes only the class token, and attention has a fast backward pass in bf16.
    kept: indices (B, kept) of the only patches to encode; None: all.
    """
    visual = vision_tower(clip)
    positions = visual.positional_embedding
    patches = visual.conv1(pixels).flatten(2).mT + positions[1:]
    if kept is not None:
        patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
    first = visual.get_parameter("class_embedding") + positions[0]
    tokens = torch.cat([first.expand(len(pixels), 1, -1), patches], dim=1)
    tokens = visual.ln_pre(tokens)
    *blocks, last = transformer_blocks(visual.transformer)
    for block in blocks:
        tokens = run_block(block, tokens)
    tokens = run_block(last, tokens, outputs=1)
    return visual.ln_post(tokens[:, 0]) @ visual.get_parameter("proj")


def learning_rate_factor(step: int, steps: int, *, warmup: float) -> float:
    """Learning rate at a step, counted from 1, as a fraction of the peak: warm-up and cosine.

    `warmup` is the share of the steps in which the rate rises.
    """
    rising = max(1, round(warmup * steps))
    if step <= rising:
        return step / rising
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def phrase(text: str, rng: np.random.Generator) -> str:
    """Vary a caption: sometimes with the prefix of the prompts, sometimes with `person`."""
    if rng.random() < 0.25:
        for noun in (" woman ", " man ", " girl ", " boy "):
            text = text.replace(noun, " person ", 1)
    return f"A photo of {text}" if rng.random() < 0.5 else text


def _save(folder: Path, clip: open_clip.CLIP, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint beside the previous one, and delete that."""
    moments = {
        f"{number}.{key}": value
        for number, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }
    weights = {f"clip.{name}": value for name, value in clip.state_dict().items()}
    earlier = _checkpoints(folder)
    save_checkpoint(folder / f"{step:06d}", {"step": step, **weights, **moments})
    for old in earlier:
        shutil.rmtree(old)


def _restored(folder: Path, clip: open_clip.CLIP, optimiser: torch.optim.Optimizer) -> int:
    """Load the last complete checkpoint; returns its step, 0 if there is none."""
    for path in reversed(_checkpoints(folder)):
        if not (path / "state.json").exists():  # the process ended while it was written
            continue
        stored = load_checkpoint(path)
        clip.load_state_dict(
            {
                name.removeprefix("clip."): value
                for name, value in stored.items()
                if name.startswith("clip.")
            }
        )
        own = optimiser.state_dict()
        own["state"] = {
            number: {key: stored[f"{number}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for number in range(len(own["param_groups"][0]["params"]))
        }
        optimiser.load_state_dict(own)
        return int(stored["step"])
    return 0


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir()) if folder.exists() else []


def to_pixels(images: NDArray[np.uint8], clip: open_clip.CLIP) -> Tensor:
    """Convert pixels (B, H, W, 3) to images (B, 3, H, W) with the CLIP's normalisation."""
    return _normalised(_unit(images), clip)


def _unit(images: NDArray[np.uint8]) -> Tensor:
    """Images (B, 3, H, W) with values 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


def _normalised(pixels: Tensor, clip: open_clip.CLIP) -> Tensor:
    mean, std = (torch.tensor(channels)[:, None, None] for channels in normalisation(clip))
    return (pixels - mean) / std


Embed = Callable[[NDArray[np.uint8]], Tensor]
"""Features (B, D) of images (B, H, W, 3)."""


def class_tokens(clip: open_clip.CLIP) -> Embed:
    """The projected class tokens of a CLIP without further training."""
    return lambda images: clip.encode_image(to_pixels(images, clip))


def unseen(
    embed: Embed,
    domain: str,
    *,
    people: int = TEST_PEOPLE,
    promised: Mapping[float, float] | None = None,
) -> RetrievalResult:
    """Evaluate features on the test people of a domain, across cameras; `promised` as there."""
    pids = range(1 + TRAIN_PEOPLE, 1 + TRAIN_PEOPLE + people)
    records = test_records(
        domain, pids=pids, images_per_camera=IMAGES_PER_CAMERA, height=HEIGHT, width=WIDTH
    )
    features: dict[str, list[Tensor]] = {"query": [], "gallery": []}
    pids_of: dict[str, list[int]] = {"query": [], "gallery": []}
    camids_of: dict[str, list[int]] = {"query": [], "gallery": []}
    with torch.inference_mode():
        while chunk := list(islice(records, EVALUATED_AT_ONCE)):
            images = np.stack([decode_jpeg(record.read()) for record in chunk])
            for record, feature in zip(chunk, embed(images), strict=True):
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
        promised=promised,
    )


def model_card(
    name: str,
    results: Mapping[str, RetrievalResult],
    *,
    crowd: Crowd,
    parameters: int,
    steps: int,
    tokens: int,
) -> str:
    """The README of the model's folder."""
    rows = "\n".join(
        f"| {domain} | {100 * result.cmc[1]:.1f} | {100 * result.mean_ap:.1f} |"
        for domain, result in results.items()
    )
    size = SIZES[name]
    people, views = crowd.images.shape[:2]
    networks = len(np.unique(crowd.networks))
    batch = BATCH_NETWORKS * BATCH_PEOPLE
    paragraphs = [
        f"A CLIP of {parameters / 1e6:.2f} M parameters in OpenAI's layout, {_PURPOSE[name]} "
        "It was trained only on rendered people; the setting `model.clip` replaces it, for example "
        "by `ViT-B-16` with OpenAI's weights.",
        f"- Image encoder: {HEIGHT} x {WIDTH} pixels, patch 8, width {size.vision_width}, "
        f"{size.vision_layers} layers of {size.vision_width // 64} heads; mean and std 0.5.",
        f"- Text encoder: width {size.text_width}, {size.text_layers} layers, heads of width 64, "
        f"context 77; CLIP's tokeniser, of whose vocabulary the {tokens} tokens in use are stored. "
        f"Embedding {size.embed_dim}; QuickGELU. Weights are stored in float16.",
        f"- Trained contrastively on {people * views:,} images of {people:,} people in {networks} "
        f"networks of the open world (`syn-world-0-{networks - 1}`), with captions of their "
        f"attributes: {steps:,} steps of two images each of {batch} people from {BATCH_NETWORKS} "
        f"networks, {100 * KEPT_PATCHES:.0f} % of the patches, AdamW, peak rate {PEAK_LR:g}, "
        f"weight decay {WEIGHT_DECAY:g}; framing, light, colour and sharpness vary. No image of a "
        "named domain was seen.",
        f"- Made by `python -m muva.pretraining.clip {name} --out muva/model/{name} "
        "--people FOLDER`, which continues where it was interrupted.",
        f"`python -m benchmarks.zero_shot --clip {name}`: the projected class token without "
        f"training, {TEST_PEOPLE} people, per camera one query and {IMAGES_PER_CAMERA - 1} gallery "
        "image, across cameras, in per cent.",
    ]
    first, *items, about_results = (
        textwrap.fill(
            text, 100, subsequent_indent="  " * text.startswith("- "), break_on_hyphens=False
        )
        for text in paragraphs
    )
    listed = "\n".join(items)
    return f"""# The {name} CLIP

{first}

{listed}

## Zero-shot retrieval

{about_results}

| domain | rank-1 | mAP |
|---|---|---|
{rows}

## Limits

It has seen only people from one renderer, so its results say little about CLIP or real images.
Words of prompts and domain contexts that occur in no caption have untrained rows in the vocabulary.
"""


_PURPOSE = {
    "tiny": "small enough to fine-tune on a laptop: for the demo, the tests and the benchmarks.",
    "small": "which tells people apart much better than the tiny one.",
}


if __name__ == "__main__":
    main()
