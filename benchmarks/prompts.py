"""Identities per second of stage 1 compared with a plain loop: `python -m benchmarks.prompts
--check`.

At the text encoder's size in ViT-B/16 (512 wide, 12 layers, random weights), with four grains and K
images of each of P identities in a batch. The plain loop follows the method's description: each of
the P x K entries has its prompts computed, on all 77 tokens, by open_clip's own transformer. Ours
computes the prompts of each identity once, without padding. Both take the same step, in float32, on
one core, in turns; their losses and gradients must agree.

With `--tasks` instead: one task with two threads is compared with two tasks of one thread each,
which share the identities, as in `muva train --workers 2`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.baseline import (
    DTYPES,
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    per_second,
    write_results,
)
from muva.config import ModelConfig, PromptConfig, Stage1Config
from muva.model.clip import new_clip, token_ids_in
from muva.model.muva_model import MuvaModel, build_model
from muva.model.precision import Precision, resolve_precision
from muva.model.prompts import CONTEXT_START, prompt_texts, tokenise
from muva.training.optimisers import stage1_optimiser
from muva.training.stage1 import learn_prompts, prompt_loss, prompt_step

TEXT_WIDTH, TEXT_LAYERS, EMBED_DIM, TOKENS = 512, 12, 512, 77
PARTS = ("head", "upper_body", "legs")
MODEL = ModelConfig(clip="text alone", image_height=32, image_width=16, stride=8, parts=PARTS)
PROMPTS = PromptConfig()
NAMED = 256
"""Number of identities with centroids."""
NEEDED = 10.0
CLOSE = 1e-4
"""Tolerance of losses and gradients, relative to the largest."""
STEPS = 3
TASKS_IDENTITIES, TASKS_EPOCHS = 32, 2


def main() -> int:
    """Measure and print; with --check, exit with 1 if ours is too slow or its results differ."""
    parser = benchmark_parser("prompts", __doc__, check="exit 1 below 10 times, or apart")
    parser.add_argument("--identities", type=int, default=8, help="P, of a batch")
    parser.add_argument("--images", type=int, default=4, help="K, of each of them")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tasks", action="store_true", help="one task beside two instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    labels = torch.arange(arguments.identities).repeat_interleave(arguments.images)
    if arguments.tasks:
        for name, rate in compare_tasks(arguments.turns).items():
            print(f"{name}: {rate:.1f} identities/s")
        return 0
    figures = compare(labels, arguments.turns)
    print(table(figures))
    write_results(arguments, figures, baseline_tables)
    missed = []
    if figures["times"] < NEEDED:
        missed.append(f"{figures['times']:.1f} times the plain loop's rate, goal {NEEDED:g}")
    missed += [
        f"{what} {value:.1e} from the plain loop's, limit {CLOSE:g}"
        for what, value in figures["apart"].items()
        if not value <= CLOSE
    ]
    return exit_code(arguments, missed)


def compare(labels: Tensor, turns: int) -> dict[str, Any]:
    """Rates of both in identities per second, and the differences of their first steps."""
    clip, model = text_model()
    centroids = some_centroids(model)
    settings = Stage1Config(precision="fp32")
    start = model.contexts.detach()
    plain, ours = (nn.Parameter(start.clone()) for _ in range(2))
    step_plain = _steps(plain, settings, partial(plain_loss, clip, plain, centroids, labels))
    step_ours = _steps(ours, settings, partial(_ours, model, ours, centroids, labels, "fp32"))
    losses = [step() for step in (step_plain, step_ours)]  # also warms up
    assert plain.grad is not None
    assert ours.grad is not None
    apart = {
        "loss": abs(losses[0] - losses[1]) / abs(losses[0]),
        "gradient": float((plain.grad - ours.grad).abs().max() / plain.grad.abs().max()),
    }
    auto = resolve_precision("auto", torch.device("cpu"))
    halved = nn.Parameter(start.clone())
    step_auto = _steps(halved, settings, partial(_ours, model, halved, centroids, labels, auto))
    step_auto()
    seconds: dict[str, list[float]] = {"plain": [], "ours": [], "ours, auto": []}
    for _ in range(turns):
        seconds["plain"].append(_seconds(step_plain, 1))
        seconds["ours"].append(_seconds(step_ours, STEPS))
        seconds["ours, auto"].append(_seconds(step_auto, STEPS))
    identities = len(labels.unique())
    rates = {name: per_second(identities, median_of(taken)) for name, taken in seconds.items()}
    return {
        "identities": identities,
        "entries": len(labels),
        "auto": auto,
        "seconds": seconds,
        "identities_per_s": rates,
        "times": rates["ours"] / rates["plain"],
        "apart": apart,
    }


def baseline_tables(figures: dict[str, Any]) -> dict[str, Table]:
    """`rates`: identities per second of the plain loop and of ours."""
    rates = figures["identities_per_s"]
    rows = [
        {
            "loop": "plain loop" if name == "plain" else "ours",
            "precision": DTYPES[figures["auto"] if name == "ours, auto" else "fp32"],
            "rate": measurement(rate),
            "times": rate / rates["plain"],
        }
        | ({"goal": NEEDED} if name == "ours" else {})
        for name, rate in rates.items()
    ]
    return {"rates": Table(rows=rows, statistic="medians")}


def table(figures: dict[str, Any]) -> str:
    """The results of `compare` as a table."""
    rates = figures["identities_per_s"]
    lines = [
        "| stage 1 | precision | identities/s | times the plain loop's |",
        "|---|---|---:|---:|",
    ]
    for name, rate in rates.items():
        precision = figures["auto"] if name == "ours, auto" else "fp32"
        times = rate / rates["plain"]
        lines.append(f"| {name.split(',')[0]} | {precision} | {rate:.2f} | {times:.1f} |")
    differences = ", ".join(f"{what} {value:.1e}" for what, value in figures["apart"].items())
    return "\n".join([*lines, f"\nFrom the plain loop: {differences}"])


def text_model() -> tuple[open_clip.CLIP, MuvaModel]:
    """A CLIP with ViT-B/16's text encoder and a minimal image encoder, and a model on it."""
    clip = new_clip(
        token_ids=token_ids_in(prompt_texts(PARTS, PROMPTS)),
        seed=0,
        image_size=(MODEL.image_height, MODEL.image_width),
        vision_width=64,
        vision_layers=1,
        text_width=TEXT_WIDTH,
        text_layers=TEXT_LAYERS,
        embed_dim=EMBED_DIM,
        context_length=TOKENS,
    )
    return clip, build_model(clip, model=MODEL, prompts=PROMPTS, identities=NAMED, seed=0)


def some_centroids(model: MuvaModel) -> Tensor:
    """Random centroids of unit length."""
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(NAMED, model.feature_dim, generator=generator))


def plain_loss(clip: open_clip.CLIP, contexts: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of a batch's entries, each with separately computed prompts."""
    token_ids = tokenise(prompt_texts(PARTS, PROMPTS), context_length=TOKENS)
    after = CONTEXT_START + PROMPTS.context_tokens
    grains = []
    for grain, ids in enumerate(token_ids):
        words = clip.get_submodule("token_embedding")(ids).expand(len(labels), -1, -1)
        prompts = torch.cat(
            [words[:, :CONTEXT_START], contexts[labels, grain], words[:, after:]], dim=1
        )
        tokens = prompts + clip.get_parameter("positional_embedding")
        tokens = clip.get_submodule("transformer")(tokens, attn_mask=clip.get_buffer("attn_mask"))
        ends = clip.get_submodule("ln_final")(tokens)[:, int(ids.argmax())]
        grains.append(ends @ clip.get_parameter("text_projection"))
    return cross_entropy(normalize(torch.cat(grains, dim=1)) @ centroids.T, labels)


def compare_tasks(turns: int) -> dict[str, float]:
    """Identities per second of one task with two threads and of two tasks with one each."""
    context = get_context("spawn")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(turns):
        for tasks, found in rates.items():
            together, spans = context.Barrier(tasks), context.SimpleQueue()
            started = [
                context.Process(target=_learn_share, args=(task, tasks, together, spans))
                for task in range(tasks)
            ]
            for process in started:
                process.start()
            ends = [spans.get() for _ in started]
            for process in started:
                process.join()
            seconds = max(end for _, end in ends) - min(start for start, _ in ends)
            found.append(TASKS_IDENTITIES * TASKS_EPOCHS / seconds)
    names = {1: "one task of two threads", 2: "two tasks of one thread"}
    return {names[tasks]: statistics.median(found) for tasks, found in rates.items()}


def _learn_share(task: int, tasks: int, together: Any, spans: Any) -> None:
    """Learn a share of the identities in a process, and time it."""
    torch.set_num_threads(2 // tasks)
    _, model = text_model()
    share = TASKS_IDENTITIES // tasks
    epochs = learn_prompts(
        model=model,
        centroids=some_centroids(model),
        labels=np.arange(TASKS_IDENTITIES).repeat(4),
        settings=Stage1Config(epochs=1 + TASKS_EPOCHS, precision="fp32"),
        seed=0,
        identities=range(task * share, (task + 1) * share),
    )
    next(epochs)
    together.wait()
    began_at = time.time()
    for _ in epochs:
        pass
    spans.put((began_at, time.time()))


def _ours(
    model: MuvaModel, contexts: Tensor, centroids: Tensor, labels: Tensor, precision: Precision
) -> Tensor:
    return prompt_loss(model, contexts, centroids, labels, temperature=1.0, precision=precision)


def _steps(
    contexts: nn.Parameter, settings: Stage1Config, loss_of: Callable[[], Tensor]
) -> Callable[[], float]:
    """A function that takes one step of learning these contexts and returns its loss."""
    optimiser = stage1_optimiser(contexts, settings)

    def step() -> float:
        loss = loss_of()
        prompt_step(loss, optimiser)
        return loss.item()

    return step


def _seconds(step: Callable[[], float], repeats: int) -> float:
    began_at = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - began_at) / repeats


if __name__ == "__main__":
    sys.exit(main())
