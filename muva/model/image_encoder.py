"""The image encoder: CLIP's vision transformer with part tokens and masked attention.

The class token and R part tokens precede the patches. If part masks are given, they decide which
patches a part attends to in every block; otherwise the mask predictor does (Sec. 3.2, 3.3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from muva.config import ModelConfig
from muva.model.attention import attention_weights, run_block, transformer_blocks
from muva.model.checks import check_part_tokens
from muva.model.clip import image_size_of, vision_tower
from muva.model.mask_predictor import MaskPredictor
from muva.model.part_gate import PartGate, hard_gate
from muva.model.position_embedding import add_part_positions
from muva.model.precision import at_least_float32, exact_convolutions

PART_TOKEN_STD = 0.02

Call = Callable[..., Any]
"""Calls a function, its first argument, with the other arguments."""


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """The image encoder's outputs for a batch of images.

    `feature` is the concatenation of the projected class token and part tokens, before the BN neck.
    The mask logits M_i and probabilities P_i of every block are None if the predictor did not run.
    """

    feature: Float[Tensor, " B F"]
    mask_logits: Float[Tensor, " blocks B R L"] | None = None
    mask_probabilities: Float[Tensor, " blocks B R L"] | None = None


def call_directly(function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
    """Call the function without compiling or checkpointing it."""
    return function(*args, **named)


class ImageEncoder(nn.Module):
    """Encodes images as features of the person and its parts, with open_clip's modules of CLIP.

    `call` runs each block. It can be replaced to compile a block or to recompute it in the backward
    pass.
    """

    call: Call

    def __init__(self, clip: open_clip.CLIP, settings: ModelConfig):
        super().__init__()
        self.call = call_directly
        visual = vision_tower(clip)
        built_for = (*image_size_of(clip), visual.conv1.stride[0])
        if built_for != (settings.image_height, settings.image_width, settings.stride):
            raise ValueError(
                f"the CLIP was built for a different image size or stride: {built_for}"
            )
        self.parts = len(settings.parts)
        self.grid: tuple[int, int] = (visual.grid_size[0], visual.grid_size[1])
        self.part_token_init = settings.part_token_init
        self.gating = settings.gating
        self.mask_max_value = settings.mask_max_value
        self.mask_temperature = settings.mask_temperature

        self.conv1 = visual.conv1.requires_grad_(False)
        self.class_embedding = visual.get_parameter("class_embedding")
        self.positional_embedding = nn.Parameter(
            add_part_positions(visual.positional_embedding.detach(), self.parts).clone()
        )
        self.ln_pre = visual.ln_pre
        self.transformer = visual.transformer
        self.ln_post = visual.ln_post
        self.proj = visual.get_parameter("proj")

        check_part_tokens(settings, rows=self.grid[0])
        self.part_tokens = self._new_part_tokens()
        self.mask_predictor = None
        if self.parts:
            self.mask_predictor = MaskPredictor(
                width=len(self.class_embedding),
                patches=self.grid[0] * self.grid[1],
                blocks=len(transformer_blocks(self.transformer)),
                settings=settings,
            )

    def forward(
        self,
        images: Float[Tensor, " B 3 H W"],
        part_masks: Bool[Tensor, " B R L"] | None = None,
    ) -> ImageFeatures:
        """Encode normalised images, with the given part masks or else with predicted ones."""
        tokens = self._embed(images)
        if self.mask_predictor is None:
            return ImageFeatures(feature=self._run_blocks(tokens, gate=None))
        if part_masks is not None:
            gate = PartGate(hard_gate(part_masks))
            return ImageFeatures(feature=self._run_blocks(tokens, gate=gate))
        return self._run_blocks_predicting(tokens, self.mask_predictor)

    @torch.no_grad()
    def attention(self, images: Float[Tensor, " B 3 H W"]) -> Float[Tensor, " B G L"]:
        """Attention of the class token and each part token to the patches in the last block.

        Averaged over heads. Rows sum to less than 1: the rest goes to the class and part tokens.
        """
        seen: list[Tensor] = []

        def record_attention(
            function: Callable[..., Any], block: Any, *args: Any, **named: Any
        ) -> Any:
            result = function(block, *args, **named)
            if (outputs := named.get("outputs")) is not None:
                gate = named["gate"] if "gate" in named else PartGate(self._gate(result[2]))
                bias = None if gate is None else gate.bias
                seen.append(attention_weights(block, args[-1], bias=bias, outputs=outputs))
            return result

        before, self.call = self.call, record_attention
        try:
            self(images)
        finally:
            self.call = before
        return seen[0][:, :, 1 + self.parts :]

    def _new_part_tokens(self) -> nn.Parameter | None:
        if not self.parts:
            return None
        if self.part_token_init == "cls":
            return nn.Parameter(self.class_embedding.detach().repeat(self.parts, 1))
        if self.part_token_init == "random":
            tokens = torch.empty(self.parts, len(self.class_embedding))
            return nn.Parameter(nn.init.trunc_normal_(tokens, std=PART_TOKEN_STD))
        return None

    def _embed(self, images: Float[Tensor, " B 3 H W"]) -> Float[Tensor, " B T D"]:
        patches = exact_convolutions(self.conv1, images).flatten(2).mT
        batch = patches.shape[0]  # not len(), which becomes a constant in an exported graph
        leading = [self.class_embedding.expand(batch, 1, -1)]
        if self.part_tokens is not None:
            leading.append(self.part_tokens.expand(batch, -1, -1))
        elif self.parts:
            leading.append(patches.unflatten(1, (self.parts, -1)).mean(dim=2))
        tokens = torch.cat([*leading, patches], dim=1)
        return self.ln_pre(tokens + self.positional_embedding)

    def _run_blocks(
        self, tokens: Float[Tensor, " B T D"], gate: PartGate | None
    ) -> Float[Tensor, " B F"]:
        *blocks, last = transformer_blocks(self.transformer)
        for block in blocks:
            tokens = self.call(run_block, block, tokens, gate=gate)
        return self._project(self.call(run_block, last, tokens, gate=gate, outputs=1 + self.parts))

    def _run_blocks_predicting(
        self, tokens: Float[Tensor, " B T D"], predictor: MaskPredictor
    ) -> ImageFeatures:
        logits, probabilities = [], []
        blocks = transformer_blocks(self.transformer)
        for block, predict in zip(blocks, predictor.blocks, strict=True):
            tokens, block_logits, block_probabilities = self.call(
                self._predict_and_run,
                block,
                predict,
                tokens,
                before=logits[-1] if logits else None,
                outputs=1 + self.parts if block is blocks[-1] else None,
            )
            logits.append(block_logits)
            probabilities.append(block_probabilities)
        return ImageFeatures(
            feature=self._project(tokens),
            mask_logits=torch.stack(logits),
            mask_probabilities=torch.stack(probabilities),
        )

    def _predict_and_run(
        self,
        block: ResidualAttentionBlock,
        predict: nn.Module,
        tokens: Float[Tensor, " B T D"],
        *,
        before: Float[Tensor, " B R L"] | None,
        outputs: int | None,
    ) -> tuple[Float[Tensor, " B outputs D"], Float[Tensor, " B R L"], Float[Tensor, " B R L"]]:
        """A block's output tokens, and the mask logits and probabilities that it ran with."""
        _, parts, patches = tokens.split([1, self.parts, self.grid[0] * self.grid[1]], dim=1)
        estimate = predict(parts, patches)
        logits = estimate if before is None else before + estimate
        probabilities = torch.sigmoid(logits / self.mask_temperature)
        gate = PartGate(self._gate(probabilities))
        return run_block(block, tokens, gate=gate, outputs=outputs), logits, probabilities

    def _gate(self, probabilities: Float[Tensor, " B R L"]) -> Float[Tensor, " B R L"]:
        if self.gating == "online":
            return 2 * self.mask_max_value * probabilities - self.mask_max_value
        return hard_gate(probabilities > 0.5)

    def _project(self, leading: Float[Tensor, " B G D"]) -> Float[Tensor, " B F"]:
        return at_least_float32((self.ln_post(leading) @ self.proj).flatten(1))
