"""The complete model: image encoder, prompts, BN neck and classifier."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from muva.config import ModelConfig, PromptConfig
from muva.errors import MuvaError
from muva.model.clip import shape_of
from muva.model.image_encoder import ImageEncoder, ImageFeatures
from muva.model.micro_batches import encode_in_micro_batches
from muva.model.neck import BatchNormNeck
from muva.model.text_encoder import TextEncoder

CLASSIFIER_STD = 0.001

NON_ARCHITECTURAL_SETTINGS = ("clip", "gating", "mask_max_value", "mask_temperature")
"""Settings that no parameter depends on: a model can start from one that differs in them."""


TEXT_SIDE = ("text_", "context_length", "vocabulary", "reduced_vocabulary")
"""Prefixes of the sizes of CLIP's text encoder, which a model never takes from another one."""

DIFFERENT_ARCHITECTURE = "cannot start from a model of a different architecture"


@dataclass(frozen=True, kw_only=True)
class TrainingOutputs:
    """Outputs of a training pass: features before and after the BN neck, logits and masks."""

    feature: Float[Tensor, " B F"]
    necked: Float[Tensor, " B F"]
    logits: Float[Tensor, " B N"]
    mask_logits: Float[Tensor, " blocks B R L"] | None
    mask_probabilities: Float[Tensor, " blocks B R L"] | None


class MuvaModel(nn.Module):
    """CLIP with part tokens, part masks, and a learned context for each identity and grain.

    A feature is the concatenation of the features of the person and of R parts: F = (1 + R) D.
    """

    def __init__(
        self,
        clip: open_clip.CLIP,
        *,
        model: ModelConfig,
        prompts: PromptConfig,
        identities: int,
        domains: Sequence[str] = (),
    ):
        """`domains`: the domain of each identity, needed only if prompts differ by domain."""
        super().__init__()
        self.config = model
        self.prompt_config = prompts
        self.clip_shape = shape_of(clip)
        self.image_encoder = ImageEncoder(clip, model)
        self.text_encoder = TextEncoder(clip, parts=model.parts, prompts=prompts, domains=domains)
        self.domains = tuple(domains)
        grains = 1 + len(model.parts)
        contexts = torch.empty(identities, grains, prompts.context_tokens, self.text_encoder.width)
        self.contexts = nn.Parameter(nn.init.normal_(contexts, std=prompts.context_std))
        self.feature_dim = grains * self.image_encoder.proj.shape[1]
        self.bn_neck = BatchNormNeck(self.feature_dim)
        with warnings.catch_warnings():  # an imported model may have no identities
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.classifier = nn.Linear(self.feature_dim, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=CLASSIFIER_STD)

    @property
    def identities(self) -> int:
        """The number of training identities, each with a prompt and a class."""
        return len(self.contexts)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return self.image_encoder.grid

    def encode_images(
        self,
        images: Float[Tensor, " B 3 H W"],
        part_masks: Bool[Tensor, " B R L"] | None = None,
    ) -> ImageFeatures:
        """Features before the BN neck, with the given part masks or else with predicted ones."""
        return self.image_encoder(images, part_masks)

    def neck(self, feature: Float[Tensor, " B F"]) -> Float[Tensor, " B F"]:
        """The feature after the BN neck, not normalised to unit length."""
        return self.bn_neck(feature)

    def retrieval_features(self, images: Float[Tensor, " B 3 H W"]) -> Float[Tensor, " B F"]:
        """Unit-length features after the BN neck, with predicted masks: for retrieval."""
        return normalize(self.neck(self.encode_images(images).feature))

    def text_features(
        self, contexts: Float[Tensor, " n G K W"], identities: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n F"]:
        """Text features of these identities (None: all of them) with these contexts."""
        return self.text_encoder(contexts, identities)

    @torch.no_grad()
    def prototypes(self, batch_size: int = 256) -> Float[Tensor, " N F"]:
        """Text features of all identities, with their current contexts."""
        identities = torch.arange(self.identities, device=self.contexts.device)
        return torch.cat(
            [self.text_encoder(self.contexts[ids], ids) for ids in identities.split(batch_size)]
        )

    def forward(
        self, images: Float[Tensor, " B 3 H W"], micro_batch: int | None = None
    ) -> TrainingOutputs:
        """The forward pass of stage 2, with predicted masks; neck and classifier in float32.

        With `micro_batch`, so many images are encoded at a time, which saves memory at the cost of
        a second forward pass. Outputs and gradients are those of the whole batch.
        """
        if micro_batch is None:
            encoded = self.encode_images(images)
        else:
            encoded = encode_in_micro_batches(self.encode_images, images, micro_batch)
        with torch.autocast(images.device.type, enabled=False):
            necked = self.neck(encoded.feature)
            logits = self.classifier(necked)
        return TrainingOutputs(
            feature=encoded.feature,
            necked=necked,
            logits=logits,
            mask_logits=encoded.mask_logits,
            mask_probabilities=encoded.mask_probabilities,
        )

    @torch.no_grad()
    def start_from(
        self, trained: "MuvaModel", *, mask_predictor: bool = True, classifier: bool = False
    ) -> None:
        """Copy the image encoder and BN neck of a trained model of the same architecture.

        Contexts belong to identities and are not copied. Copy the `classifier` only if both models
        have the same identities. Stage 1 does not use the mask predictor: with
        `mask_predictor=False` it is not copied, and its settings may differ.

        Raises:
            MuvaError: the architectures differ; the message says how to match them.
        """
        check_same_settings(self.config, trained.config, mask_predictor=mask_predictor)
        ours, theirs = (asdict(model.clip_shape) for model in (self, trained))
        differing = [
            f"{key} is {theirs[key]!r} in that model, {ours[key]!r} here"
            for key in ours
            if not key.startswith(TEXT_SIDE) and ours[key] != theirs[key]
        ]
        if differing:
            raise MuvaError(
                f"{DIFFERENT_ARCHITECTURE}: {'; '.join(differing)}. Choose a CLIP of the same size "
                "with --set model.clip=…"
            )
        modules = ["image_encoder", "bn_neck", *(["classifier"] if classifier else [])]
        for module in modules:
            weights = trained.get_submodule(module).state_dict()
            self.get_submodule(module).load_state_dict(
                {
                    name: value
                    for name, value in weights.items()
                    if mask_predictor or not name.startswith("mask_predictor.")
                },
                strict=mask_predictor,
            )


def check_same_settings(
    ours: ModelConfig, theirs: ModelConfig, *, mask_predictor: bool = True
) -> None:
    """Check that a model with our settings can start from one with theirs.

    Raises:
        MuvaError: it cannot; the message gives the settings that would match.
    """
    mine, other = (config.model_dump(mode="json") for config in (ours, theirs))
    for settings in (mine, other):  # random and cls both give learned tokens
        settings["part_token_init"] = settings["part_token_init"] == "patch_avg"
    differing = [
        key
        for key in mine
        if key not in NON_ARCHITECTURAL_SETTINGS
        and (mask_predictor or not key.startswith("predictor_"))
        and mine[key] != other[key]
    ]
    if not differing:
        return
    differing_settings = "; ".join(
        f"{k} is {getattr(theirs, k)!r} in that model, {getattr(ours, k)!r} here" for k in differing
    )
    taken = theirs.model_dump(mode="json")
    remedy = " ".join(
        f"--set model.{key}={json.dumps(taken[key], separators=(',', ':'))}" for key in differing
    )
    raise MuvaError(
        f"{DIFFERENT_ARCHITECTURE}: {differing_settings}. To use its settings: {remedy}"
    )


def build_model(
    clip: open_clip.CLIP,
    *,
    model: ModelConfig,
    prompts: PromptConfig,
    identities: int,
    seed: int,
    domains: Sequence[str] = (),
) -> MuvaModel:
    """A model that takes over the modules of this CLIP; the seed initialises everything else."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return MuvaModel(clip, model=model, prompts=prompts, identities=identities, domains=domains)
