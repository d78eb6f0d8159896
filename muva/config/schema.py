"""The settings of an experiment: one frozen section per stage, with the paper's defaults.

Sections are what steps are fingerprinted by: a field here changes a result, except those of
`execution`, which no address depends on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from muva.config.augmentation import AugmentationConfig
from muva.config.parts import PARTS, PHRASES, Part, check_part, in_order, with_papers_phrases
from muva.config.section import Count, Fraction, Positive, Section
from muva.errors import did_you_mean

BoxRule = Literal[
    "drop-whole-image", "drop-tiny", "drop-disordered", "drop-duplicates", "cut-overlap"
]
"""Rules that drop or correct boxes; see `muva.grounding.rules`."""


SHIPPED_CLIPS = ("tiny", "small")
"""The CLIPs that come with the package, with patches of eight pixels."""
CLIP_EDITIONS = {"tiny": 2}
"""The current edition of each shipped CLIP whose weights were replaced."""


class ModelConfig(Section):
    """The image encoder (Sec. 3.2 to 3.4 of the paper)."""

    clip: str = "ViT-B-16"
    """`tiny` or `small` (shipped), an open_clip name with OpenAI's weights, `NAME:TAG` for other
    weights of open_clip, `hf-hub:ORG/NAME`, the path of an OpenAI checkpoint, or `NAME:PATH` for
    others."""
    image_height: Count = 256
    image_width: Count = 128
    stride: Count = 16
    """Stride of the patches in pixels; if it is smaller than a patch, patches overlap."""
    parts: tuple[Part, ...] = PARTS
    """Parts with a token of their own, each of which needs pseudo-labels: the paper's three come
    first, in their fixed order. Empty for the global-only model."""
    part_token_init: Literal["random", "cls", "patch_avg"] = "random"
    gating: Literal["offline", "online"] = "offline"
    """`offline`: a hard gate without gradient; `online`: an additive bias with gradient."""
    mask_max_value: Annotated[float, Field(ge=0)] = 100.0
    """v of the online gate's bias 2 v P - v."""
    mask_temperature: Positive = 1.0
    """tau of P = sigmoid(M / tau)."""
    predictor_heads: Count = 2
    predictor_layer_norm: bool = True
    predictor_shortcut: bool = True
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)

    @field_validator("parts")
    @classmethod
    def _in_order(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(set(parts)) != len(parts):
            raise ValueError(f"names a part twice: {', '.join(parts)}")
        return in_order(parts)

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        patch = patch_size(self.clip)
        if patch is None:
            return self
        if self.stride > patch:
            raise ValueError(
                f"stride {self.stride} leaves gaps between the patches of {patch} pixels of "
                f"{self.clip}: expected a stride of 1 to {patch}"
            )
        if min(self.image_height, self.image_width) < patch:
            raise ValueError(
                f"an image of {self.image_height} x {self.image_width} holds no patch of {patch} "
                f"pixels of {self.clip}"
            )
        return self


def patch_size(clip: str) -> int | None:
    """A CLIP's patch size in pixels, if its name says it (`tiny`, `ViT-B-16:openai`), else None."""
    if clip in SHIPPED_CLIPS:
        return 8
    named = re.fullmatch(r"ViT-\w+-(\d+)(-quickgelu|-\d+)?(:.+)?", clip)
    return int(named.group(1)) if named else None


def clip_editions(*clips: str) -> dict[str, dict[str, int]]:
    """What addresses say of those of these CLIPs that were replaced; {} if none was."""
    editions = {clip: CLIP_EDITIONS[clip] for clip in sorted({*clips} & CLIP_EDITIONS.keys())}
    return {"clip_editions": editions} if editions else {}


DOMAIN = "{domain}"
"""Placeholder for the domain's name in a domain context."""


class PromptConfig(Section):
    """The learnable prompts, one per identity and grain."""

    template: Literal["universal", "part-agnostic"] = "universal"
    domain_context: str = ""
    """Text after a comma at the end of each prompt, for example `taken at night`; `{domain}` in it
    is replaced by the name of an identity's data set, in words."""
    domain_contexts: dict[str, str] = Field(default_factory=dict)
    """Data set -> the domain context of its identities, instead of `domain_context`."""
    context_tokens: Count = 4
    context_std: Positive = 0.002
    """Standard deviation of the contexts' normal initialisation."""

    @property
    def differ_by_domain(self) -> bool:
        """Whether identities of different domains have different prompts."""
        return bool(self.domain_contexts) or DOMAIN in self.domain_context

    def context_of(self, domain: str) -> str:
        """The context of a domain's identities."""
        text = self.domain_contexts.get(domain, self.domain_context)
        return text.replace(DOMAIN, domain.removeprefix("syn-").replace("-", " "))


class TrainingConfig(Section):
    """Settings of both stages. P x K sampling: a batch has P identities with K images each."""

    batch_size: Count = 64
    """Images in the global batch of all workers."""
    images_per_identity: Count = 4
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 if the device has fast instructions for it, else fp16 (GPU) or fp32 (CPU)."""

    @model_validator(mode="after")
    def _whole_identities(self) -> Self:
        if self.batch_size % self.images_per_identity:
            raise ValueError(
                f"images_per_identity {self.images_per_identity} does not divide "
                f"batch_size {self.batch_size}"
            )
        return self


class Stage1Config(TrainingConfig):
    """Stage 1: the prompts are trained, everything else is frozen."""

    epochs: Count = 120
    lr: Positive = 3.5e-4
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    warmup_lr: Positive = 1e-5
    final_lr: Positive = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2, added to the gradient (Adam, not AdamW)."""
    temperature: Positive = 1.0


class Stage2Config(TrainingConfig):
    """Stage 2: the image encoder is trained, the prompts are frozen."""

    epochs: Count = 60
    lr: Positive = 5e-6
    predictor_lr_factor: Positive = 10.0
    """The mask predictor's learning rate as a multiple of `lr`."""
    part_token_lr_factor: Positive = 1.0
    """The part tokens' learning rate as a multiple of `lr`. Tokens that start alike, as with
    `part_token_init: cls`, need far more than the backbone to become different in a few epochs."""
    head_lr_factor: Positive = 1.0
    """The learning rate of BN neck and classifier as a multiple of `lr`."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2, for all trained tensors except the mask predictor's."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 10
    warmup_factor: Fraction = 0.1
    milestones: tuple[int, ...] = (30, 50)
    """Epochs at which the learning rate is multiplied by `decay`."""
    decay: Fraction = 0.1
    label_smoothing: Fraction = 0.1
    mask_loss: Literal["bce+dice", "mse"] = "bce+dice"
    mask_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the masks' cross-entropy or squared error in the total loss."""
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the Dice loss, which is part of `bce+dice`."""
    i2t_normalised: bool = False
    i2t_temperature: Positive = 1.0
    memory_hard_update: bool = True
    memory_temperature: Positive = 0.01
    memory_momentum: Fraction = 0.2
    flip_probability: Fraction = 0.5

    def result_settings(self) -> dict[str, Any]:
        """All settings, but the part tokens' factor only if it has an effect.

        Without it, addresses are those of models that were trained before it existed.
        """
        settings = super().result_settings()
        if self.part_token_lr_factor == 1:
            del settings["part_token_lr_factor"]
        return settings


class GroundingConfig(Section):
    """The visual grounding expert that makes the pseudo-labels."""

    expert: str = "annotated"
    checkpoint: str = ""
    """Its weights: a folder or ORG/NAME on the Hugging Face Hub, for `http` the name of the served
    model; empty: those listed by `muva experts`."""
    revision: str = ""
    """A commit, branch or tag on the Hub; empty: the latest."""
    precision: Literal["default", "fp32", "bf16", "fp16"] = "default"
    coordinates: Literal["fractions", "thousandths", "pixels"] = "thousandths"
    """The unit of the boxes that the model behind `http` returns."""
    requests_in_flight: Count = 32
    """Requests of each actor that the model behind `http` works on at the same time."""
    requests_per_second: Positive | None = None
    """Limit for the requests of each actor to the model behind `http`."""
    phrases: dict[str, str] = Field(default=dict(PHRASES), min_length=1)
    """Part -> what the expert is asked for. In an experiment, the paper's parts that the model has
    and that have no phrase here get the paper's phrases."""
    rules: tuple[BoxRule, ...] = ()
    """Rules of `muva masks refine` that drop or correct boxes afterwards, in this order."""
    quarantine_limit: Fraction = 0.01
    """Largest fraction of the images that may be quarantined."""

    def result_settings(self) -> dict[str, Any]:
        """All settings but the number of requests in flight, which changes no pseudo-label."""
        return self.model_dump(mode="json", exclude={"requests_in_flight"})

    @field_validator("phrases")
    @classmethod
    def _names_and_phrases(cls, phrases: dict[str, str]) -> dict[str, str]:
        for part, phrase in phrases.items():
            check_part(part)
            if not phrase.strip() or set(phrase) & set("<>[]{}\n"):
                raise ValueError(
                    f"phrase {phrase!r} of {part}: expected words such as 'the shoes', without "
                    "brackets"
                )
        return phrases


class SyntheticConfig(Section):
    """Number of synthetic people in a domain, and the size of their images."""

    train_people: Annotated[int, Field(ge=0)] = 100
    test_people: Annotated[int, Field(ge=0)] = 100
    images_per_camera: Annotated[int, Field(ge=2)] = 2
    height: Count = 128
    width: Count = 64


class EvaluationConfig(Section):
    """The metrics on a target."""

    ranks: tuple[Count, ...] = (1, 5, 10, 20)
    rerank: bool = False


class ValidationConfig(Section):
    """Validation of a training on identities or a domain held out from its sources."""

    domain: str = ""
    """The source that is held out as a whole; empty: some identities of every source are."""
    identities: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of each source's identities to hold out if no domain is given."""
    every: Count = 1
    """Epochs of stage 2 between validations; the last epoch is always validated."""
    patience: Count | None = None
    """Stop after this many consecutive validations without improvement; null: never."""


class TuneConfig(Section):
    """A search over settings, validated on source domains that are held out in turn."""

    space: str | dict[str, Any] = Field(
        default={
            "model.gating": ["offline", "online"],
            "stage2.mask_loss": ["bce+dice", "mse"],
            "prompts.template": ["universal", "part-agnostic"],
        }
    )
    """A shipped space, a YAML file, or dotted setting -> values; see `muva.config.search_space`."""
    trials: Count = 4
    concurrent_trials: Count | None = None
    """None: as many as fit on the cluster."""
    budget_hours: Positive | None = None
    """After this time no trial starts or continues; the same command resumes the search."""
    objective: str = "mean"
    """Over the held-out domains: `mean`, `worst`, `both` of these, or the name of one domain."""
    folds: Count | None = None
    """How many of the sources are held out in turn; None: all of them."""
    seeds: Count = 1
    """How many times each trial is trained with different seeds; the objective is the mean."""
    search: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    scheduler: Literal["none", "asha", "median"] = "none"
    """Early stopping of trials that fall behind the others."""
    stage1_epochs: Count | None = None
    """None: the recipe's number of epochs, as for `stage2_epochs`."""
    stage2_epochs: Count | None = None


class ExecutionConfig(Section):
    """How machines compute a training: its speed and memory, never its result beyond rounding.

    No address, run or study depends on this section. The command line's options are generated from
    it, with the fields' docstrings as their help.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    workers: Count = 1
    """Processes that share identities in stage 1 and batches in stage 2."""
    cpus_per_worker: Count | None = None
    """Cores of each worker; by default the cluster's cores, divided among the workers."""
    gpus_per_worker: Literal[0, 1] | None = None
    """GPUs of each worker: 0 trains on CPUs, 1 refuses to train without a GPU; by default 1 if the
    cluster has a GPU for every worker, else 0."""
    micro_batch: Count | None = None
    """Images that each worker encodes at a time, with the same result; by default its whole share
    of the batch."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    compile: bool = False
    """Compile the blocks with torch.compile; needs a C++ compiler."""
    cuda_graphs: bool = False
    """Record the passes of a single worker on a GPU once as CUDA graphs, and replay them."""
    channels_last: bool = False
    """Use the channels-last memory format."""
    deterministic: bool = False
    """Compute bit-identical results every time, also on a GPU."""
    attention: Literal["auto", "fused", "plain"] = "auto"
    """How attention is computed on CPUs: by PyTorch's fused kernel, by plain matrix products, or
    (auto) by whichever was measured to be faster on this processor."""
    loaders: Annotated[int, Field(ge=0)] | None = None
    """Processes of each worker that decode images; 0: a thread. By default a thread on CPUs, and
    with a GPU one process for each of the worker's other cores, at most 8."""
    keep_every: Count | None = None
    """Keep the checkpoint of every N-th epoch of stage 2 for good; by default, keep none."""

    @model_validator(mode="after")
    def _whole_passes(self) -> Self:
        if self.cuda_graphs and self.micro_batch is not None:
            raise ValueError(
                "cuda_graphs replays the pass of a whole batch, micro_batch cuts the batch: leave "
                "out one of them"
            )
        return self


class ExperimentConfig(Section):
    """A whole experiment: domains, seed and one section per stage."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")] = "muva"
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 1234
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    variants: Annotated[tuple[Literal["clip", "global_only", "muva"], ...], Field(min_length=1)] = (
        "muva",
    )
    """Models to compare: zero-shot CLIP, MUVA without parts, MUVA."""
    train_on: Literal["train", "all"] = "train"
    """The images of the sources to train on: their training split, or all images."""
    same_domain: bool = False
    """Allow sources as targets: the supervised setting instead of domain generalisation."""
    synthetic: SyntheticConfig = SyntheticConfig()
    grounding: GroundingConfig | None = GroundingConfig()
    model: ModelConfig = ModelConfig()
    prompts: PromptConfig = PromptConfig()
    stage1: Stage1Config = Stage1Config()
    stage2: Stage2Config = Stage2Config()
    augmentation: AugmentationConfig = AugmentationConfig()
    """None by default, as in the paper, which only flips images."""
    validation: ValidationConfig | None = None
    """None, as in the paper: train on all sources and use the last epoch."""
    evaluation: EvaluationConfig = EvaluationConfig()
    tune: TuneConfig | None = None
    execution: ExecutionConfig = ExecutionConfig()

    def result_settings(self) -> dict[str, Any]:
        """All settings but those of `execution`, and of others only those that have an effect."""
        settings = self.model_dump(mode="json", exclude={"execution", "augmentation"})
        settings["grounding"] = self.grounding and self.grounding.result_settings()
        settings["stage2"] = self.stage2.result_settings()
        return settings | self.augmentation.as_section()

    @model_validator(mode="before")
    @classmethod
    def _papers_phrases(cls, settings: Any) -> Any:
        """A recipe that gives another part a phrase need not repeat the paper's."""
        if not isinstance(settings, Mapping):
            return settings
        model, grounding = settings.get("model", {}), settings.get("grounding")
        if not isinstance(model, Mapping) or not isinstance(grounding, Mapping):
            return settings
        phrases, parts = grounding.get("phrases"), model.get("parts", PARTS)
        if not phrases or not isinstance(phrases, Mapping) or not isinstance(parts, list | tuple):
            return settings
        completed = with_papers_phrases(phrases, parts)
        return {**settings, "grounding": {**grounding, "phrases": completed}}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.model.parts and self.grounding is None:
            raise ValueError(
                f"model.parts is {', '.join(self.model.parts)} but grounding is null: parts need "
                "pseudo-labels; name grounding.expert, or set model.parts=[] for the global-only "
                "model"
            )
        for key in ("sources", "targets", "variants"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} has duplicates: {', '.join(values)}")
        for domain in self.prompts.domain_contexts:
            if self.sources and domain not in self.sources:
                raise ValueError(
                    f"prompts.domain_contexts names {domain}, which is not a source: expected "
                    f"some of {', '.join(self.sources)}{did_you_mean(domain, self.sources)}"
                )
        twice = set(self.sources) & set(self.targets)
        if twice and not self.same_domain:
            raise ValueError(
                f"{', '.join(sorted(twice))} is both a source and a target: expected targets "
                "that the model has not seen; for the supervised setting, set same_domain=true"
            )
        held_out = self.validation.domain if self.validation else ""
        if held_out and (held_out not in self.sources or len(self.sources) < 2):
            raise ValueError(
                f"validation.domain is {held_out}: expected one of at least two sources, found "
                f"sources {', '.join(self.sources) or 'none'}; a target never chooses a model"
            )
        most = min(self.model.image_height, self.model.image_width) // 2
        if self.augmentation.pad > most:
            raise ValueError(
                f"augmentation.pad is {self.augmentation.pad}, which could move most of an image "
                f"of {self.model.image_height} x {self.model.image_width} out of the frame: "
                f"expected at most {most} pixels, half of the shorter side"
            )
        if self.train_on == "all" and twice:
            raise ValueError(
                f"train_on is all, and {', '.join(sorted(twice))} is both a source and a target: "
                "its test people would be used for training. Set train_on=train"
            )
        return self
