"""The mask predictor: predicts before every block which patches belong to a part (Sec. 3.3).

Each block's predictor adds its logits to those of the previous block: M_i = M_{i-1} + f_i(x), with
f_i = MLP(LN(CrossAttn(LN(parts), LN(patches)) + parts)).
"""

import torch
from jaxtyping import Float
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from muva.config import ModelConfig
from muva.errors import SettingsError
from muva.model.plain_attention import attention_to_values
from muva.model.precision import at_least_float32
from muva.model.quick_gelu import quick_gelu_mlp


class PartCrossAttention(nn.Module):
    """Cross-attention from parts to patches, without biases for q, k and v.

    With only R queries, keys and values need not be projected: (q W_k^T) x and (a x) W_v^T give the
    same result, at the cost of R instead of L projected tokens.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.scale = (width / heads) ** -0.5
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(
        self, parts: Float[Tensor, " B R D"], patches: Float[Tensor, " B L D"]
    ) -> Float[Tensor, " B R D"]:
        """The attention output of each part."""
        per_head = (self.heads, -1)
        query = self.to_q(parts).unflatten(-1, per_head)
        key_weight = self.to_k.weight.unflatten(0, per_head)
        value_weight = self.to_v.weight.unflatten(0, per_head)
        query_in_patches = torch.einsum("brhd,hdw->bhrw", query * self.scale, key_weight)
        batch, heads, count, width = query_in_patches.shape
        gathered = attention_to_values(
            query_in_patches.reshape(batch, heads * count, width),
            patches.to(query_in_patches.dtype),
        )
        per_part = gathered.view(batch, heads, count, width)
        mixed = torch.einsum("bhrw,hdw->brhd", per_part, value_weight)
        return self.to_out(mixed.flatten(2))


class MaskPredictorBlock(nn.Module):
    """f_i: predicts the mask logits that one block adds."""

    def __init__(self, width: int, patches: int, *, heads: int, layer_norm: bool, shortcut: bool):
        super().__init__()
        self.shortcut = shortcut
        self.cross_attn = PartCrossAttention(width, heads)
        self.ln_attn1, self.ln_attn2, self.ln_mlp = (
            nn.LayerNorm(width) if layer_norm else nn.Identity() for _ in range(3)
        )
        self.mlp = nn.Sequential(
            nn.Linear(width, patches), QuickGELU(), nn.Linear(patches, patches)
        )

    def forward(
        self, parts: Float[Tensor, " B R D"], patches: Float[Tensor, " B L D"]
    ) -> Float[Tensor, " B R L"]:
        """The mask logits that this block adds, at least float32."""
        gathered = self.cross_attn(self.ln_attn1(parts), self.ln_attn2(patches))
        if self.shortcut:
            gathered = gathered + parts
        return at_least_float32(quick_gelu_mlp(self.mlp, self.ln_mlp(gathered)))


class MaskPredictor(nn.Module):
    """One mask predictor block for each block of the image encoder."""

    def __init__(self, *, width: int, patches: int, blocks: int, settings: ModelConfig):
        super().__init__()
        if width % settings.predictor_heads:
            raise SettingsError(
                f"model.predictor_heads {settings.predictor_heads} does not divide the image "
                f"encoder's width {width}"
            )
        self.blocks = nn.ModuleList(
            MaskPredictorBlock(
                width,
                patches,
                heads=settings.predictor_heads,
                layer_norm=settings.predictor_layer_norm,
                shortcut=settings.predictor_shortcut,
            )
            for _ in range(blocks)
        )
