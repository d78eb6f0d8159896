"""Compare muva with recorded numbers of the authors' release.

    python -m benchmarks.parity FILE.json [FILE.json ...] [retrieval.npz]

FILE.json has the settings of a recording, and FILE.npz next to it the parameters, inputs and
results; a single .npz is a recording of retrieval. muva loads the same parameters and runs its
public functions. Prints one line per recorded quantity: name, difference, limit, ok or FAIL. The
exit status is 1 if any fails, and a recorded quantity that is not compared fails too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.baseline import Table, benchmark_parser, write_results
from muva.config import PARTS, ModelConfig, PromptConfig, Section, Stage1Config, Stage2Config
from muva.errors import MuvaError
from muva.model.clip import build_clip, clip_shape
from muva.model.muva_model import MuvaModel, TrainingOutputs, build_model
from muva.model.part_gate import attention_bias, hard_gate
from muva.retrieval import evaluate
from muva.retrieval.distances import squared_distances
from muva.retrieval.reranking import Reranking, reranked_distances
from muva.training.losses import Stage2Losses, dice_loss
from muva.training.optimisers import (
    set_learning_rate,
    stage1_lr,
    stage1_optimiser,
    stage2_lr,
    stage2_optimiser,
    trained_parameters,
)
from muva.training.stage1 import prompt_loss, prompt_step
from muva.training.stage2 import training_step
from muva.training.visual_memory import VisualMemory, identity_centroids, new_memory

EXACT = 0.0
OUTPUT_LIMIT = 2e-5
GRADIENT_LIMIT = 1e-4
LEARNING_RATE_LIMIT = 1e-12
METRIC_LIMIT = 1e-6
RERANKED_DISTANCE_LIMIT = 2e-3
RERANKED_MAP_LIMIT = 5e-4
ADAM_SUM_LIMIT, ADAM_SQUARES_LIMIT = 0.01, 0.02
NOISY_ADAM_LIMIT = 0.1
"""For `attn.in_proj_bias`: the key third has a true gradient of zero, so its step is noise."""

STAGE1_EPOCH, STAGE2_EPOCH = 3, 5
"""The epochs whose learning rates the recorded Adam steps use."""

JUNK_PID = -1

KNOWN_SETTINGS = frozenset(
    {"N", "B", "R", "L", "grid", "clip", "parts", "template", "domain_context", "context_tokens"}
    | {"gating", "mask_max_value", "mask_loss", "part_token_init", "predictor_heads"}
    | {"predictor_layer_norm", "predictor_shortcut", "i2t_normalised", "i2t_temperature"}
    | {"memory_hard_update", "memory_temperature", "memory_momentum", "losses", "arrays"}
)

RELEASE_NAMES = {
    "image_encoder.part_tokens": "local_token",
    "image_encoder.mask_predictor.": "residual_mask_predictor.",
    "bn_neck.": "bnneck.",
    "classifier.": "fc.",
}
"""Our parameter names, or prefixes, and the release's; all others are the same."""

RECORDED_PARAMETERS = {
    "image_encoder.part_tokens": "part_tokens",
    "image_encoder.positional_embedding": "visual_positional_embedding",
    "image_encoder.mask_predictor.": "mask_predictor.",
    "bn_neck.": "bn.",
    "contexts": "contexts",
    "classifier.": "classifier.",
}
"""Our parameter names, or prefixes, and those of the recorded `muva/*` arrays."""


@dataclass(frozen=True)
class Check:
    """A compared quantity; a `limit` of None means that it is not compared."""

    name: str
    difference: float
    limit: float | None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the difference is within its limit (NaN never is)."""
        return self.limit is not None and self.difference <= self.limit

    def __str__(self) -> str:
        limit = "unknown" if self.limit is None else f"{self.limit:.3g}"
        note = f"  ({self.note})" if self.note else ""
        return f"{self.name:<96} {self.difference:>10.3e} {limit:>9}  {self.verdict}{note}"

    @property
    def verdict(self) -> str:
        """`ok` or `FAIL`."""
        return "ok" if self.ok else "FAIL"

    def as_data(self) -> dict[str, Any]:
        """As plain data for JSON, which has neither NaN nor infinity: such differences are null."""
        apart = self.difference if math.isfinite(self.difference) else None
        return {**asdict(self), "difference": apart, "verdict": self.verdict}


class Recording:
    """The arrays of a file; keeps track of which were read or compared."""

    def __init__(self, path: Path):
        with np.load(path) as archive:
            self.arrays = {name: archive[name] for name in archive.files}
        self.untouched = dict.fromkeys(self.arrays)
        self.not_held: list[str] = []
        """Quantities that could have been compared but were not recorded."""

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def array(self, name: str) -> np.ndarray:
        """An array, which counts as read from now on."""
        self.untouched.pop(name, None)
        return self.arrays[name]

    def tensor(self, name: str) -> Tensor:
        """An array as a tensor, floating point as float32."""
        values = torch.from_numpy(np.array(self.array(name)))
        return values.float() if values.is_floating_point() else values

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All arrays with a prefix, by the rest of the name."""
        names = [name for name in self.arrays if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.tensor(name) for name in names}

    def compare(
        self, name: str, value: Tensor | np.ndarray, limit: float, *, absolute: bool = False
    ) -> Iterator[Check]:
        """Compare with the recorded array of this name, if there is one."""
        if name in self:
            yield Check(name, difference(value, self.array(name), absolute=absolute), limit)
        else:
            self.not_held.append(name)

    def leftovers(self) -> Iterator[Check]:
        """Failing checks for arrays that were not read or compared; prints those not recorded."""
        for name in self.untouched:
            yield Check(name, math.nan, None, "recorded, but not known to this program")
        if self.not_held:
            print(f"# not recorded, so not compared: {', '.join(self.not_held)}")


def difference(
    value: Tensor | np.ndarray, reference: np.ndarray, *, absolute: bool = False
) -> float:
    """max|a - b| / max|b| over whole arrays, or max|a - b|; equal infinities do not differ."""
    ours = np.asarray(value.detach() if isinstance(value, Tensor) else value, dtype=np.float64)
    theirs = np.asarray(reference, dtype=np.float64)
    if ours.shape != theirs.shape:
        return math.inf
    differing = ours != theirs
    if not differing.any():
        return 0.0
    if not np.isfinite([ours[differing], theirs[differing]]).all():
        return math.inf
    furthest = np.abs(ours[differing] - theirs[differing]).max()
    finite = np.abs(theirs[np.isfinite(theirs)])
    scale = 1.0 if absolute else finite.max()
    return float(furthest / scale) if scale else float(furthest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare all files; returns 0 if everything is within its limits, else 1."""
    parser = benchmark_parser("parity", __doc__, check="as always: exit 1 if any fails")
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    paths: list[Path] = options.files
    torch.set_float32_matmul_precision("highest")
    compared: dict[str, list[Check]] = {}
    for path in paths:
        if path.suffix == ".npz" and path.with_suffix(".json") in paths:
            continue
        print(f"# {path}")
        compared[str(path)] = checks = []
        for check in file_checks(path):
            print(check, flush=True)
            checks.append(check)
    verdicts = [check.ok for checks in compared.values() for check in checks]
    print(f"# {len(verdicts)} quantities compared, {verdicts.count(False)} failed")
    figures = {path: [check.as_data() for check in checks] for path, checks in compared.items()}
    write_results(options, figures, baseline_tables)
    return 0 if all(verdicts) else 1


def baseline_tables(compared: Mapping[str, list[dict[str, Any]]]) -> dict[str, Table]:
    """`recordings`: how many quantities of each file agree, and the closest to its limit."""
    rows = []
    for path, checks in compared.items():
        shares = {
            check["name"]: check["difference"] / check["limit"]
            for check in checks
            if check["limit"] and check["difference"] is not None
        }
        closest = max(shares, key=lambda name: shares[name])
        rows.append(
            {
                "recording": path,
                "quantities": len(checks),
                "failed": sum(check["verdict"] != "ok" for check in checks),
                "closest": closest,
                "share_of_limit": shares[closest],
                "goal": 0,
            }
        )
    return {"recordings": Table(rows=rows)}


def file_checks(path: Path) -> Iterator[Check]:
    """All checks of a file; an error in muva is a failed check too."""
    try:
        yield from model_checks(path) if path.suffix == ".json" else retrieval_checks(path)
    except (MuvaError, OSError, ValueError) as error:
        yield Check(str(path), math.nan, None, str(error))
    except KeyError as error:
        yield Check(str(path), math.nan, None, f"there is no {error} in it")


def model_checks(path: Path) -> Iterator[Check]:
    """All checks of a recording of the model, in the order of the computation."""
    settings = Settings.read(json.loads(path.read_text()))
    recording = Recording(path.with_suffix(".npz"))
    yield from settings.unknown()
    yield from listed_arrays(settings, recording)
    model = recorded_model(settings, recording)
    yield from settings.sizes(model, recording)
    yield from load_parameters(model, recording)
    model.eval()
    yield from text_checks(model, recording)
    images = (recording.tensor("input/images_u8").float() / 255 - 0.5) / 0.5
    part_masks = recording.tensor("input/part_masks")
    yield from image_checks(model, recording, images, part_masks)
    yield from stage1_checks(model, recording, images, part_masks)
    yield from stage2_checks(model, recording, images, part_masks, settings)
    yield from recording.leftovers()


@dataclass(frozen=True)
class Settings:
    """The settings of a recording, and the corresponding sections of muva's configuration."""

    raw: Mapping[str, Any]
    model: ModelConfig
    prompts: PromptConfig
    stage2: Stage2Config

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Settings:
        """The configuration sections; a setting that is absent or null has its default."""

        def given(section: type[Section]) -> dict[str, Any]:
            return {key: raw[key] for key in section.model_fields if raw.get(key) is not None}

        return cls(
            raw=raw,
            model=ModelConfig(
                **given(ModelConfig)
                | {
                    "clip": "recorded",
                    "stride": raw["clip"]["stride"],
                    "parts": tuple(PARTS[index] for index in raw["parts"]),
                }
            ),
            prompts=PromptConfig(**given(PromptConfig)),
            stage2=Stage2Config(**given(Stage2Config)),
        )

    def unknown(self) -> Iterator[Check]:
        """Settings that are unknown here and therefore cannot be applied."""
        for key in self.raw.keys() - KNOWN_SETTINGS:
            yield Check(f"setting {key}", math.nan, None, "not known to this program")

    def sizes(self, model: MuvaModel, recording: Recording) -> Iterator[Check]:
        """Compare the recorded sizes with the model's."""
        ours = {
            "N": [model.identities],
            "B": [len(recording.arrays["input/pids"])],
            "R": [len(model.config.parts)],
            "L": [model.grid[0] * model.grid[1]],
            "grid": list(model.grid),
        }
        for key, value in ours.items():
            theirs = np.ravel(self.raw[key])
            yield Check(f"setting {key}", difference(np.array(value), theirs), EXACT)


def listed_arrays(settings: Settings, recording: Recording) -> Iterator[Check]:
    """Compare the list of arrays in the JSON with the file; only differences are returned."""
    for name, (shape, dtype) in settings.raw.get("arrays", {}).items():
        found = recording.arrays.get(name)
        if found is None or list(found.shape) != shape or str(found.dtype) != dtype:
            held = "nothing" if found is None else f"{found.dtype} {found.shape}"
            yield Check(name, math.nan, None, f"listed as {dtype} {shape}, the file has {held}")


def recorded_model(settings: Settings, recording: Recording) -> MuvaModel:
    """A model on the recorded CLIP, with the method's own parameters newly initialised."""
    sizes = settings.raw["clip"]
    weights = recording.under("clip/")
    height, width = recording.arrays["input/images_u8"].shape[-2:]
    rows, columns = sizes["pretrained_grid"]
    clip = build_clip(
        weights,
        image_size=(height, width),
        stride=sizes["stride"],
        pretrained_grid=(rows, columns),
        shape=clip_shape(
            weights, vision_heads=sizes["vision_heads"], text_heads=sizes["text_heads"]
        ),
    )
    return build_model(
        clip,
        model=settings.model.model_copy(update={"image_height": height, "image_width": width}),
        prompts=settings.prompts,
        identities=settings.raw["N"],
        seed=0,
    )


def load_parameters(model: MuvaModel, recording: Recording) -> Iterator[Check]:
    """Load the method's parameters and check our resized position embedding."""
    ours = model.image_encoder.positional_embedding.detach()
    yield from recording.compare("muva/visual_positional_embedding", ours.half(), EXACT)
    for name, parameter in model.named_parameters():
        recorded = f"muva/{renamed(name, RECORDED_PARAMETERS)}"
        if recorded in recording and recording.arrays[recorded].shape == parameter.shape:
            parameter.data.copy_(recording.tensor(recorded))
        elif is_recorded(name) and not starts_as_copy(name, model):
            yield Check(recorded, math.nan, None, f"needed for {name} {tuple(parameter.shape)}")
    for name in [name for name in recording.untouched if is_removed(name, model)]:
        recording.array(name)


def is_recorded(name: str) -> bool:
    """Whether a parameter is the method's own, and therefore one of the `muva/*` arrays."""
    return any(name.startswith(ours) for ours in RECORDED_PARAMETERS)


def starts_as_copy(name: str, model: MuvaModel) -> bool:
    """Whether a parameter is initialised from CLIP if a recording lacks it."""
    return name == "image_encoder.part_tokens" and model.config.part_token_init == "cls"


def is_removed(recorded: str, model: MuvaModel) -> bool:
    """Whether the settings disable a parameter, so that its recorded value is irrelevant."""
    if recorded == "muva/part_tokens":
        return model.config.part_token_init == "patch_avg"
    normalises = recorded.startswith("muva/mask_predictor.") and ".ln_" in recorded
    return normalises and not model.config.predictor_layer_norm


def renamed(name: str, names: Mapping[str, str]) -> str:
    """A name with its prefix replaced according to the table."""
    for ours, theirs in names.items():
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return theirs + name.removeprefix(ours)
    return name


def text_checks(model: MuvaModel, recording: Recording) -> Iterator[Check]:
    """Compare prompts and text features."""
    yield from recording.compare("prompts/token_ids", model.text_encoder.token_ids, EXACT)
    yield from recording.compare("text/features", model.prototypes(), OUTPUT_LIMIT)


@torch.no_grad()
def image_checks(
    model: MuvaModel, recording: Recording, images: Tensor, part_masks: Tensor
) -> Iterator[Check]:
    """Compare features in eval mode, with given and predicted masks, and the attention bias."""
    shown = len(recording.arrays["attention_bias/given_masks"])
    bias = attention_bias(hard_gate(part_masks[:shown]))
    yield from recording.compare("attention_bias/given_masks", bias, EXACT)
    for name, masks in {"given": part_masks, "predicted": None}.items():
        encoded = model.encode_images(images, masks)
        values = {"masks": encoded.feature, "masks_bn_eval": model.neck(encoded.feature)}
        flips = gate_flips(encoded.mask_probabilities, model, recording)
        for key, value in values.items():
            checks = recording.compare(f"image/feature_{name}_{key}", value, OUTPUT_LIMIT)
            yield from blaming(flips, checks)


def stage1_checks(
    model: MuvaModel, recording: Recording, images: Tensor, part_masks: Tensor
) -> Iterator[Check]:
    """Compare a step of stage 1 on a copy of the contexts, and the learning rates."""
    rates = "stage1/lr_by_epoch_1_to_120"
    settings = Stage1Config(epochs=len(recording.arrays[rates]))
    by_epoch = [stage1_lr(epoch, settings) for epoch in range(1, settings.epochs + 1)]
    yield from recording.compare(rates, np.array(by_epoch), LEARNING_RATE_LIMIT)
    with torch.no_grad():
        features = model.encode_images(images, part_masks).feature
    centroids = identity_centroids(
        features, recording.tensor("stage1/centroid_pids"), model.identities
    )
    yield from recording.compare("stage1/centroids", centroids, OUTPUT_LIMIT)
    contexts = nn.Parameter(model.contexts.detach().clone())
    optimiser = stage1_optimiser(contexts, settings)
    set_learning_rate(optimiser, stage1_lr(STAGE1_EPOCH, settings))
    loss = prompt_loss(
        model,
        contexts,
        centroids,
        recording.tensor("input/pids"),
        temperature=settings.temperature,
    )
    prompt_step(loss, optimiser)
    yield from recording.compare("stage1/loss", loss, OUTPUT_LIMIT)
    yield from recording.compare("stage1/context_grad", gradient(contexts), GRADIENT_LIMIT)
    after = f"stage1/contexts_after_adam_step_at_epoch_{STAGE1_EPOCH}"
    yield from recording.compare(after, contexts, GRADIENT_LIMIT)


def stage2_checks(
    model: MuvaModel,
    recording: Recording,
    images: Tensor,
    part_masks: Tensor,
    settings: Settings,
) -> Iterator[Check]:
    """Compare a step of stage 2: everything that it computes and changes."""
    stage2 = settings.stage2
    rates = "stage2/lr_by_epoch_1_to_60"
    backbone = np.array([stage2_lr(epoch, stage2) for epoch in range(1, stage2.epochs + 1)])
    by_epoch = np.stack([backbone, backbone * stage2.predictor_lr_factor], axis=1)
    yield from recording.compare(rates, by_epoch, LEARNING_RATE_LIMIT)

    model.contexts.requires_grad_(False)
    with torch.no_grad():
        necked = normalize(model.neck(model.encode_images(images, part_masks).feature))
    centroids = identity_centroids(
        necked, recording.tensor("stage1/centroid_pids"), model.identities
    )
    yield from recording.compare("stage2/memory_before", centroids, OUTPUT_LIMIT)

    optimiser = stage2_optimiser(model, stage2)
    set_learning_rate(optimiser, stage2_lr(STAGE2_EPOCH, stage2))
    memory = new_memory(centroids, stage2)
    model.train()
    outputs, losses = training_step(
        model,
        images=images,
        labels=recording.tensor("input/pids"),
        part_masks=part_masks,
        prototypes=model.prototypes(),
        memory=memory,
        optimiser=optimiser,
        settings=stage2,
    )
    flips = gate_flips(outputs.mask_probabilities, model, recording)
    yield from blaming(flips, output_checks(model, recording, outputs, memory))
    yield from blaming(flips, loss_checks(recording, outputs, losses, part_masks, settings))
    yield from blaming(flips, parameter_checks(model, recording, optimiser))


def output_checks(
    model: MuvaModel, recording: Recording, outputs: TrainingOutputs, memory: VisualMemory
) -> Iterator[Check]:
    """Compare the forward pass in training, the memory and the BN statistics."""
    values = {
        "logits": outputs.logits,
        "feature": outputs.feature,
        "mask_probabilities": outputs.mask_probabilities,
        "mask_logits": outputs.mask_logits,
        "feature_bn_normalised": normalize(outputs.necked),
        "memory_after": memory.centroids,
        "bn_running_mean_after": model.bn_neck.running_mean,
        "bn_running_var_after": model.bn_neck.running_var,
    }
    for name, value in values.items():
        if value is not None:
            yield from recording.compare(f"stage2/{name}", value, OUTPUT_LIMIT)


def loss_checks(
    recording: Recording,
    outputs: TrainingOutputs,
    losses: Stage2Losses,
    part_masks: Tensor,
    settings: Settings,
) -> Iterator[Check]:
    """Compare each loss term and the total, in the arrays and in the JSON.

    A dice term beside the squared error is no part of the total: it is recorded as 0 or as what it
    would have been.
    """
    values = {"total": losses.total, **losses.terms()}
    if losses.dice is None and outputs.mask_probabilities is not None:
        values["dice"] = dice_loss(outputs.mask_probabilities, part_masks)
    json_losses: Mapping[str, float | None] = settings.raw["losses"]
    for name, value in values.items():
        array = f"stage2/loss/{name}"
        unused = losses.dice is None and name == "dice"
        if array in recording:
            absent = unused and not recording.arrays[array].any()
            value_used = torch.zeros(()) if absent else value
            yield from recording.compare(array, value_used, OUTPUT_LIMIT)
        stored = json_losses.get(name)
        if stored is not None:
            value_used = torch.zeros(()) if unused and stored == 0 else value
            apart = difference(value_used, np.array(stored))
            yield Check(f"losses.{name}", apart, OUTPUT_LIMIT)
    for name in json_losses.keys() - values.keys():
        yield Check(f"losses.{name}", math.nan, None, "not known to this program")


def parameter_checks(
    model: MuvaModel, recording: Recording, optimiser: torch.optim.Optimizer
) -> Iterator[Check]:
    """Compare gradient norms, and sums over each parameter after the Adam step."""
    rates = {p: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in trained_parameters(model).items():
        release_name = renamed(name, RELEASE_NAMES)
        norm = torch.linalg.vector_norm(gradient(parameter).double())
        yield from recording.compare(f"stage2/grad_norm/{release_name}", norm, GRADIENT_LIMIT)
        after = f"stage2/param_sum_after_adam_step_at_epoch_{STAGE2_EPOCH}/{release_name}"
        if after not in recording:
            continue
        values, lr = parameter.detach().double(), rates[parameter]
        recorded_sum, recorded_squares = recording.array(after)
        noisy = name.endswith("attn.in_proj_bias")
        yield Check(
            f"{after} sum",
            abs(values.sum().item() - recorded_sum),
            (NOISY_ADAM_LIMIT if noisy else ADAM_SUM_LIMIT) * lr * values.numel(),
        )
        yield Check(
            f"{after} squares",
            abs(values.square().sum().item() - recorded_squares),
            (NOISY_ADAM_LIMIT if noisy else ADAM_SQUARES_LIMIT) * lr * values.abs().sum().item(),
        )


def gate_flips(probabilities: Tensor | None, model: MuvaModel, recording: Recording) -> str:
    """Which hard gates are on the other side of 0.5, as text; empty if there are none."""
    theirs = recording.arrays.get("stage2/mask_probabilities")
    if probabilities is None or theirs is None or model.config.gating != "offline":
        return ""
    ours = probabilities.detach().numpy()
    if ours.shape != theirs.shape:
        return ""
    flipped = np.argwhere((ours > 0.5) != (theirs > 0.5)).tolist()
    return "; ".join(
        f"gate flip: block {block}, image {image}, part {part}, patch {patch}, probability "
        f"{ours[block, image, part, patch]:.9f} here, {theirs[block, image, part, patch]:.9f} there"
        for block, image, part, patch in flipped[:3]
    )


def blaming(flips: str, checks: Iterable[Check]) -> Iterator[Check]:
    """Add the gate flips that explain them to the failing checks; limits do not change."""
    for check in checks:
        yield check if check.ok or not flips else replace(check, note=flips)


def gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient after a step."""
    assert parameter.grad is not None
    return parameter.grad


def retrieval_checks(path: Path) -> Iterator[Check]:
    """Compare distances and metrics, with and without re-ranking."""
    recording = Recording(path)
    query, gallery = recording.tensor("query"), recording.tensor("gallery")
    query_pids, gallery_pids = recording.array("query_pids"), recording.array("gallery_pids")
    kept = torch.from_numpy(gallery_pids != JUNK_PID)
    query_camids, gallery_camids = (recording.array(f"{s}_camids") for s in ("query", "gallery"))
    yield from recording.compare("distance", squared_distances(query, gallery[kept]), OUTPUT_LIMIT)
    ways: dict[str, bool | Reranking] = {"": False}
    if any(name.startswith("rerank_") for name in recording.arrays):
        reranking = ways["rerank_"] = recorded_reranking(recording)
        reranked = reranked_distances(query, gallery[kept], settings=reranking)
        yield from recording.compare(
            "rerank_distance", reranked, RERANKED_DISTANCE_LIMIT, absolute=True
        )
    for prefix, rerank in ways.items():
        ranks = range(1, 1 + len(recording.arrays.get(f"{prefix}cmc", ())))
        result = evaluate(
            query_features=query,
            query_pids=query_pids,
            query_camids=query_camids,
            gallery_features=gallery,
            gallery_pids=gallery_pids,
            gallery_camids=gallery_camids,
            ranks=ranks,
            rerank=rerank,
        )
        cmc = np.array([result.cmc[rank] for rank in ranks])
        # The recorded curve is float32, so values may differ by rounding.
        cmc_limit = 1 / result.valid_queries + METRIC_LIMIT if rerank else METRIC_LIMIT
        map_limit = RERANKED_MAP_LIMIT if rerank else METRIC_LIMIT
        yield from recording.compare(f"{prefix}cmc", cmc, cmc_limit, absolute=True)
        yield from recording.compare(
            f"{prefix}mean_ap", np.array(result.mean_ap), map_limit, absolute=True
        )
    yield from recording.leftovers()


def recorded_reranking(recording: Recording) -> Reranking:
    """The settings of the re-ranking; those not recorded are the paper's."""
    settings = {}
    for ours, theirs, kind in (
        ("k1", "rerank_k1", int),
        ("k2", "rerank_k2", int),
        ("original_weight", "rerank_lambda", float),
    ):
        if theirs in recording:
            settings[ours] = kind(recording.array(theirs))
    return Reranking(**settings)


if __name__ == "__main__":
    sys.exit(main())
