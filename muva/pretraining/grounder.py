"""Pre-train a tiny grounding MLLM: `python -m muva.pretraining.grounder --out FOLDER`.

Florence-2's architecture (Xiao et al. 2024) at a hundredth of its size, with a vocabulary of the
words in the phrases and 1,000 locations. It learns to answer a phrase with a box, from rendered
people and their exact boxes, using only the pre-training domains. Writes a folder for
`from_pretrained`. The same seed and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import (
    affine_grid,
    binary_cross_entropy_with_logits,
    grid_sample,
    log_softmax,
)
from transformers import (
    BartConfig,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from muva.config import PARTS, PHRASES
from muva.model.precision import autocast, resolve_precision
from muva.pretraining.clip import learning_rate_factor
from muva.synthetic import VARIED, render
from muva.synthetic.sensor import Sensor, expose

HEIGHT, WIDTH = 128, 64
LOCATIONS = 1000
TASK = "<CAPTION_TO_PHRASE_GROUNDING>"
QUESTION_WORDS = "Locate the phrases in the caption:"
"""The text into which Florence-2's processor expands the task token."""

PEOPLE, STEPS, BATCH = 19_200, 5000, 32
"""People in both domains, with one image each; a step has all phrases for `BATCH` images."""
PEAK_LR, WEIGHT_DECAY, GRADIENT_NORM, WARMUP = 1e-3, 0.02, 1.0, 0.05
FIRST_SPREAD, LAST_SPREAD = 40.0, 6.0
"""Standard deviations in bins, decreasing until the middle step: near locations count as well."""
LOCATION_STD, POSITION_STD = 0.05, 0.5
COVERAGE_WEIGHT = 4.0
LEFT_PX = 0.25
"""The renderer samples the part at the right one of a pixel's two rays (`cutout`), so boxes are
shifted slightly to the left. Boxes of flipped images get the same shift, to be consistent."""
TOKEN_WIDTH = 128
CELL = 16
"""Side in pixels of the cell that an image token covers."""

BEGIN, PAD, END, UNKNOWN, IMAGE = "<s>", "<pad>", "</s>", "<unk>", "<image>"
ANSWERS = {"head": "head", "upper_body": "upper body", "legs": "legs"}
"""Part -> the words before its four locations in an answer."""
ANSWER_TOKENS = 8
"""The longest answer: start, two words, four locations, end."""


@dataclass(frozen=True)
class Shots:
    """M images of people with the boxes of their parts."""

    images: NDArray[np.uint8]
    """(M, H, W, 3)"""
    boxes: NDArray[np.float32]
    """(M, R, 4) as fractions; NaN for a part that is not visible."""


def main() -> None:
    """Pre-train and save."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    shots = render_shots(arguments.people, processes=arguments.threads)
    print(f"{len(shots.images)} images, {time.perf_counter() - started:.0f} s", flush=True)
    processor = new_processor()
    model = new_grounder(processor, seed=arguments.seed)
    for step, loss in pretrain(model, processor, shots, steps=arguments.steps, seed=arguments.seed):
        if step % 50 == 0 or step == arguments.steps:
            seconds = time.perf_counter() - started
            print(f"step {step}/{arguments.steps}  loss {loss:.3f}  {seconds:.0f} s", flush=True)
    save(model, processor, arguments.out)
    print(f"{arguments.out} written after {time.perf_counter() - started:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=PEOPLE, help="over both domains")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def render_shots(people: int, *, processes: int) -> Shots:
    """Render people of the varied pre-training domains, equally many per camera, one image each."""
    cameras = [
        (name, camid) for name, domain in VARIED.items() for camid in range(1, domain.cameras + 1)
    ]
    each = max(1, people // len(cameras))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(_shots, *zip(*cameras, strict=True), repeat(each)))
    return Shots(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.boxes for part in parts]),
    )


def _shots(domain: str, camid: int, people: int) -> Shots:
    first = 1 + (camid - 1) * people
    shots = [
        render(domain, pid=pid, camid=camid, index=0, height=HEIGHT, width=WIDTH)
        for pid in range(first, first + people)
    ]
    no_box = (math.nan,) * 4
    boxes = [[shot.boxes[part] or no_box for part in PARTS] for shot in shots]
    return Shots(np.stack([shot.image for shot in shots]), np.array(boxes, np.float32))


def new_processor() -> Florence2Processor:
    """Florence-2's processor for images of 128 x 64, with the vocabulary of our phrases."""
    words = f"{QUESTION_WORDS} {' '.join(PHRASES.values())} {' '.join(ANSWERS.values())}".split()
    special = [BEGIN, PAD, END, UNKNOWN, IMAGE]
    locations = [f"<loc_{number}>" for number in range(LOCATIONS)]
    vocabulary = [*special, *locations, *dict.fromkeys(f"▁{word}" for word in words)]
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in locations])
    images: Any = CLIPImageProcessor(
        size={"height": HEIGHT, "width": WIDTH},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    images.image_seq_length = 1 + (HEIGHT // CELL) * (WIDTH // CELL)
    answers = ("phrase_grounding", "description_with_bboxes_or_polygons", "pure_text")
    return Florence2Processor(
        image_processor=images,
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=BEGIN,
            pad_token=PAD,
            eos_token=END,
            unk_token=UNKNOWN,
            extra_special_tokens={"image_token": IMAGE},
            model_max_length=256,
        ),
        post_processor_config={answer: {} for answer in answers},
    )


def new_grounder(processor: Florence2Processor, *, seed: int) -> Florence2ForConditionalGeneration:
    """A Florence-2 of two million parameters with random weights."""
    tokenizer = processor.tokenizer
    vision = Florence2VisionConfig(
        depths=(1, 1, 2, 1),
        embed_dim=(32, 64, 96, 128),
        num_heads=(2, 4, 6, 8),
        num_groups=(2, 4, 6, 8),
        patch_stride=(4, 2, 1, 2),
        window_size=4,
        drop_path_rate=0.0,
        projection_dim=TOKEN_WIDTH,
    )
    no_words: dict[str, Any] = {"forced_bos_token_id": None, "forced_eos_token_id": None}
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=TOKEN_WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_position_embeddings=256,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        **no_words,
    )
    config = Florence2Config(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.image_token_id,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = Florence2ForConditionalGeneration(config)
        _widen(model)
    _init_positions(model, first_location=tokenizer.convert_tokens_to_ids("<loc_0>"))
    return model


@torch.no_grad()
def _widen(model: torch.nn.Module) -> None:
    """Initialise weights with variance 1 / inputs, which preserves the scale of activations.

    The default of transformers, 0.02, suits a width of 2,500. At 128, question and image would
    contribute too little compared with the decoder's own tokens, and every answer would be the
    average box.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and not name.endswith("lm_head"):
            layer.weight.normal_(std=layer.weight[0].numel() ** -0.5)


@torch.no_grad()
def _init_positions(model: Any, *, first_location: int) -> None:
    """Initialise similar embeddings for neighbouring locations, and distinct rows and columns."""
    table = model.get_input_embeddings().weight
    table[first_location : first_location + LOCATIONS] = LOCATION_STD * _waves(
        LOCATIONS, table.shape[1]
    )
    places = model.model.multi_modal_projector.image_position_embed
    for embedding in (places.row_embeddings, places.column_embeddings):
        embedding.weight.copy_(POSITION_STD * _waves(*embedding.weight.shape))


def _waves(count: int, width: int) -> Tensor:
    """Sinusoidal embeddings (count, width) with variance 1, from half a wave to 64 waves."""
    half_waves = torch.logspace(0, 7, width // 2, 2.0)
    angles = math.pi * torch.arange(count)[:, None] / count * half_waves
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


def pretrain(
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    shots: Shots,
    *,
    steps: int,
    seed: int,
) -> Iterator[tuple[int, float]]:
    """Train the answer to each phrase; yields number and loss of each step.

    An auxiliary layer, dropped afterwards, predicts for each image token how much of its cell each
    part's box covers. So the vision tower learns to find parts before the answers do.
    """
    tokenizer = processor.tokenizer
    words = f"{QUESTION_WORDS} {{}}"
    questions = _token_ids(
        tokenizer,
        [
            IMAGE * processor.num_image_tokens + BEGIN + words.format(PHRASES[part]) + END
            for part in PARTS
        ],
    )
    first_location = tokenizer.convert_tokens_to_ids("<loc_0>")
    cells = torch.nn.Linear(TOKEN_WIDTH, len(PARTS))
    torch.nn.init.zeros_(cells.weight)  # random initialisation depends only on the seed
    torch.nn.init.zeros_(cells.bias)
    optimiser = torch.optim.AdamW(
        [*model.parameters(), *cells.parameters()], lr=PEAK_LR, weight_decay=WEIGHT_DECAY
    )
    precision = resolve_precision("auto", torch.device("cpu"))
    model.train()
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = PEAK_LR * learning_rate_factor(step, steps, warmup=WARMUP)
        rng = np.random.default_rng([seed, step])
        pixels, boxes = draw_batch(shots, rng)
        answers = answer_tokens(boxes, tokenizer)
        with autocast(precision, pixels.device):
            logits, seen = _answers(model, questions, pixels, answers)
            covered = cells(seen[:, 1:])
        loss = answer_loss(
            logits.float(),
            answers,
            first_location=first_location,
            pad=tokenizer.pad_token_id,
            spread=max(LAST_SPREAD, FIRST_SPREAD * (1 - 2 * step / steps)),
        )
        loss = loss + COVERAGE_WEIGHT * binary_cross_entropy_with_logits(
            covered.float(), coverage(boxes)
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimiser.step()
        yield step, float(loss.detach())
    model.eval()


def _answers(
    model: Any, questions: Tensor, pixels: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits (B R, answer, V) and image tokens (B, 1 + L, D); each image is encoded once."""
    images, asked = len(pixels), len(questions)
    seen = model.get_image_features(pixels).pooler_output
    features = seen.repeat_interleave(asked, dim=0)
    ids = questions.repeat(images, 1)
    embedded = model.get_input_embeddings()(ids)
    places = model.get_placeholder_mask(ids, inputs_embeds=embedded, image_features=features)
    embedded = embedded.masked_scatter(places, features.to(embedded.dtype))
    answered = model(
        inputs_embeds=embedded,
        attention_mask=(ids != model.config.text_config.pad_token_id).long(),
        labels=answers,
    )
    return answered.logits, seen


def coverage(boxes: Tensor) -> Tensor:
    """Boxes (B, R, 4) -> the fraction of each image cell that each box covers (B, L, R)."""
    rows, columns = HEIGHT // CELL, WIDTH // CELL
    x0, y0, x1, y1 = boxes.nan_to_num(0.0).unbind(dim=2)
    down, across = _shares(y0, y1, rows), _shares(x0, x1, columns)
    return (down[..., :, None] * across[..., None, :]).flatten(2).mT


def _shares(first: Tensor, last: Tensor, count: int) -> Tensor:
    """The fraction of each of `count` equal intervals of 0 to 1 between `first` and `last`."""
    edges = torch.arange(count + 1) / count
    start, end = (
        torch.maximum(first[..., None], edges[:-1]),
        torch.minimum(last[..., None], edges[1:]),
    )
    return (end - start).clamp(min=0) * count


def answer_tokens(boxes: Tensor, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Boxes (B, R, 4) -> token ids (B R, answer): words and four locations, empty without a box."""
    bins = (boxes * LOCATIONS).floor().clamp(0, LOCATIONS - 1)
    answers = [
        BEGIN + END
        if not math.isfinite(row[0])
        else BEGIN + ANSWERS[part] + "".join(f"<loc_{int(bin)}>" for bin in row) + END
        for image in bins.tolist()
        for part, row in zip(PARTS, image, strict=True)
    ]
    return _token_ids(tokenizer, answers, length=ANSWER_TOKENS)


def answer_loss(
    logits: Tensor, answers: Tensor, *, first_location: int, pad: int, spread: float
) -> Tensor:
    """Cross-entropy of the answers, with targets of locations smoothed over their neighbours.

    logits (B R, answer, V), answers (B R, answer); spread: standard deviation in bins.
    """
    chances = log_softmax(logits, dim=2)
    own = -chances.gather(2, answers.unsqueeze(2)).squeeze(2)
    bins = torch.arange(LOCATIONS)
    located = (answers >= first_location) & (answers < first_location + LOCATIONS)
    distance = (bins - (answers[located] - first_location).unsqueeze(1)).float()
    target = torch.softmax(-0.5 * (distance / spread) ** 2, dim=1)
    among = chances[located][:, first_location : first_location + LOCATIONS]
    losses = own.masked_scatter(located, -(target * among).sum(dim=1))
    return losses[answers != pad].mean()


def draw_batch(shots: Shots, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and boxes (B, R, 4), augmented with random cameras and crops."""
    chosen = rng.choice(len(shots.images), min(BATCH, len(shots.images)), replace=False)
    images = np.stack(
        [expose(image.astype(np.float32), any_sensor(rng), rng) for image in shots.images[chosen]]
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return reframe(pixels, torch.from_numpy(shots.boxes[chosen]), rng)


def any_sensor(rng: np.random.Generator) -> Sensor:
    """A random camera: exposure, tint, blur, noise and compression."""
    return Sensor(
        gain=(rng.uniform(0.8, 1.5) * rng.uniform(0.8, 1.2, 3)).astype(np.float32),
        gamma=rng.uniform(0.7, 1.4),
        saturation=rng.uniform(0.0, 1.1),
        native_height_px=rng.uniform(70, 256),
        blur_px=rng.uniform(0, 1.3),
        noise=rng.uniform(0, 14),
        jpeg_quality=(15, 95),
    )


def reframe(pixels: Tensor, boxes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Randomly flip, shift and scale images with their boxes, which are clipped at the edges."""
    count = len(pixels)
    larger, wider = rng.uniform(0.88, 1.08, (count, 1)), rng.uniform(0.9, 1.1, (count, 2))
    zoom = torch.from_numpy(larger * wider)
    centre = torch.from_numpy(rng.uniform(-0.06, 0.06, (count, 2)))
    mirrored = torch.from_numpy(np.where(rng.random(count) < 0.5, -1.0, 1.0))
    theta = torch.zeros(count, 2, 3, dtype=torch.float64)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom[:, 0] * mirrored, zoom[:, 1], centre
    grid = affine_grid(theta.float(), list(pixels.shape), align_corners=False)
    framed = grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    # The grid maps new to old coordinates, so boxes need the inverse.
    scale = torch.stack([zoom[:, 0] * mirrored, zoom[:, 1]], dim=1)[:, None, None]
    corners = (boxes.double().unflatten(2, (2, 2)) * 2 - 1 - centre[:, None, None]) / scale
    corners = (corners + 1) / 2
    moved = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=2)
    moved[..., 0::2] -= (mirrored < 0)[:, None, None] * 2 * LEFT_PX / pixels.shape[3]
    moved = moved.clamp(0, 1)
    moved[boxes.isnan().any(dim=2)] = math.nan
    out_of_frame = ((moved[..., 2:] - moved[..., :2]) < 0.02).any(dim=2)
    moved[out_of_frame] = math.nan
    return framed, moved.float()


def save(
    model: Florence2ForConditionalGeneration, processor: Florence2Processor, folder: Path
) -> None:
    """Write a folder for `from_pretrained`, with weights in float16."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    model.float()


def _token_ids(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, length: int | None = None
) -> Tensor:
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        padding="max_length" if length else True,
        max_length=length,
        return_tensors="pt",
    ).input_ids


if __name__ == "__main__":
    main()
