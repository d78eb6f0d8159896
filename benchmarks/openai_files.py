"""CLIPs with random weights in the two file formats in which OpenAI's weights are distributed.

OpenAI publishes a TorchScript archive of a traced model; others save its state dict as a torch
file. In both, matrices and convolutions are half precision, embeddings and layer norms are full
precision, and `input_resolution`, `context_length` and `vocab_size` are stored with the parameters.
The activation is not stored: it is QuickGELU.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.model import convert_weights_to_fp16
from torch import Tensor, nn

HEAD_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes in which OpenAI's vision transformers differ; all of them have heads 64 wide."""

    patch: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    embed_dim: int
    resolution: int = 224
    context_length: int = 77
    vocabulary: int = 49408


VIT_B_16 = Sizes(
    patch=16, vision_width=768, vision_layers=12, text_width=512, text_layers=12, embed_dim=512
)
VIT_L_14 = Sizes(
    patch=14, vision_width=1024, vision_layers=24, text_width=768, text_layers=12, embed_dim=768
)


def random_clip(sizes: Sizes, *, seed: int = 0) -> open_clip.CLIP:
    """A CLIP of these sizes with the precisions of OpenAI's files, in eval mode."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        clip = open_clip.CLIP(
            sizes.embed_dim,
            vision_cfg=open_clip.CLIPVisionCfg(
                layers=sizes.vision_layers,
                width=sizes.vision_width,
                head_width=HEAD_WIDTH,
                patch_size=sizes.patch,
                image_size=sizes.resolution,
            ),
            text_cfg=open_clip.CLIPTextCfg(
                context_length=sizes.context_length,
                vocab_size=sizes.vocabulary,
                width=sizes.text_width,
                heads=sizes.text_width // HEAD_WIDTH,
                layers=sizes.text_layers,
            ),
            quick_gelu=True,
            cast_dtype=torch.float16,
        )
    convert_weights_to_fp16(clip)
    return clip.eval()


def openai_state_dict(clip: open_clip.CLIP, sizes: Sizes) -> dict[str, Tensor]:
    """The state dict of OpenAI's archive of a CLIP: its parameters and three sizes."""
    return {
        "input_resolution": torch.tensor(sizes.resolution),
        "context_length": torch.tensor(sizes.context_length),
        "vocab_size": torch.tensor(sizes.vocabulary),
        **clip.state_dict(),
    }


def write_archive(clip: open_clip.CLIP, sizes: Sizes, path: Path) -> None:
    """Write a CLIP as OpenAI does: a TorchScript archive, traced on fixed inputs."""
    published = _Published(clip, sizes)
    image = torch.ones(1, 3, sizes.resolution, sizes.resolution)
    text = torch.zeros(1, sizes.context_length, dtype=torch.int32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Python branches on shapes, which are fixed here
        traced = torch.jit.trace_module(
            published,
            {"encode_image": (image,), "encode_text": (text,), "forward": (image, text)},
            check_trace=False,
        )
    torch.jit.save(traced, path)


class _Published(nn.Module):
    """A CLIP with OpenAI's parameter names and the methods of OpenAI's archives."""

    input_resolution: Tensor
    context_length: Tensor
    vocab_size: Tensor

    def __init__(self, clip: open_clip.CLIP, sizes: Sizes):
        super().__init__()
        for name, module in clip.named_children():
            self.add_module(name, module)
        for name, parameter in clip.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        # The archives store the causal mask as a constant, not as a parameter.
        self._causal = clip.attn_mask
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, openai_state_dict(clip, sizes)[name])

    def encode_image(self, image: Tensor) -> Tensor:
        return self.get_submodule("visual")(image.half())

    def encode_text(self, text: Tensor) -> Tensor:
        tokens = self.get_submodule("token_embedding")(text).half()
        tokens = tokens + self.get_parameter("positional_embedding").half()
        tokens = self.get_submodule("transformer")(tokens, attn_mask=self._causal)
        tokens = self.get_submodule("ln_final")(tokens)
        ends = tokens[torch.arange(len(text)), text.argmax(dim=-1)]
        return ends @ self.get_parameter("text_projection")

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        images = nn.functional.normalize(self.encode_image(image), dim=-1)
        texts = nn.functional.normalize(self.encode_text(text), dim=-1)
        logits = self.get_parameter("logit_scale").exp() * images @ texts.T
        return logits, logits.T
