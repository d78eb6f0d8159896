"""The text encoder: prompts with learned contexts, encoded by CLIP's frozen text transformer.

The transformer is causal, so padding can be cut off: about twenty tokens per prompt instead of 77
give the same features.
"""

from collections.abc import Sequence

import open_clip
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from muva.config import Part, PromptConfig
from muva.errors import MuvaError
from muva.model.attention import run_block, transformer_blocks
from muva.model.precision import at_least_float32
from muva.model.prompts import CONTEXT_START, prompt_texts, tokenise


class TextEncoder(nn.Module):
    """Encodes the contexts of identities as text features of the person and its parts.

    If prompts differ by domain, `domains` holds the domain of each identity.
    """

    token_ids_by_domain: Tensor
    """Token ids (domain contexts, G, T)."""
    domain_of: Tensor
    """Index of each identity's domain context (N,); empty if all share one context."""

    def __init__(
        self,
        clip: open_clip.CLIP,
        *,
        parts: Sequence[Part],
        prompts: PromptConfig,
        domains: Sequence[str] = (),
    ):
        super().__init__()
        if prompts.differ_by_domain and not domains:
            raise MuvaError(
                "the prompts differ by domain, but the domains of the identities are unknown: set "
                "prompts.domain_contexts={} and a prompts.domain_context without {domain}"
            )
        self.token_embedding = clip.get_submodule("token_embedding")
        self.positional_embedding = clip.get_parameter("positional_embedding")
        self.transformer = clip.get_submodule("transformer")
        self.ln_final = clip.get_submodule("ln_final")
        self.text_projection = clip.get_parameter("text_projection")
        self.context_tokens = prompts.context_tokens
        of_identities = [prompts.context_of(domain) for domain in domains]
        known = list(dict.fromkeys(of_identities)) or [prompts.domain_context]
        texts = [text for one in known for text in prompt_texts(parts, prompts, context=one)]
        token_ids = tokenise(texts, context_length=clip.context_length)
        self.register_buffer(
            "token_ids_by_domain", token_ids.unflatten(0, (len(known), -1)), persistent=False
        )
        places = [known.index(one) for one in of_identities] if len(known) > 1 else []
        domain_of = torch.tensor(places, dtype=torch.int64)
        self.register_buffer("domain_of", domain_of, persistent=False)
        self.requires_grad_(False)

    @property
    def width(self) -> int:
        """The width of a context token."""
        return self.positional_embedding.shape[1]

    @property
    def token_ids(self) -> Tensor:
        """Token ids of the prompts (G, T); of the first domain if they differ by domain."""
        return self.token_ids_by_domain[0]

    def forward(
        self, contexts: Float[Tensor, " n G K W"], identities: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n F"]:
        """Text features of identities: the features of their G prompts, concatenated.

        `identities` are the identities of the contexts; None: all identities, in order.
        """
        count, grains = contexts.shape[:2]
        ends = self.token_ids_by_domain.argmax(dim=2)
        words = self.token_ids_by_domain[:, :, : int(ends.max()) + 1]
        before = self.token_embedding(words[:, :, :CONTEXT_START])
        after = self.token_embedding(words[:, :, CONTEXT_START + self.context_tokens :])
        if len(self.domain_of):
            domain = self.domain_of if identities is None else self.domain_of[identities]
            before, after, ends = before[domain], after[domain], ends[domain]
        shared = (count, -1, -1, -1)
        prompts = torch.cat([before.expand(shared), contexts, after.expand(shared)], dim=2)
        features = _encode_embedded(
            prompts.flatten(0, 1),
            ends.expand(count, -1).flatten(),
            positions=self.positional_embedding,
            transformer=self.transformer,
            ln_final=self.ln_final,
            projection=self.text_projection,
        )
        return at_least_float32(features.view(count, grains * features.shape[1]))


def encode_text(
    clip: open_clip.CLIP, token_ids: Int[Tensor, " B context"]
) -> Float[Tensor, " B D"]:
    """CLIP's features of tokenised texts, computed up to the length of the longest text."""
    ends = token_ids.argmax(dim=1)
    return _encode_embedded(
        clip.get_submodule("token_embedding")(token_ids[:, : int(ends.max()) + 1]),
        ends,
        positions=clip.get_parameter("positional_embedding"),
        transformer=clip.get_submodule("transformer"),
        ln_final=clip.get_submodule("ln_final"),
        projection=clip.get_parameter("text_projection"),
    )


def _encode_embedded(
    embedded: Float[Tensor, " B T W"],
    ends: Int[Tensor, " B"],
    *,
    positions: Float[Tensor, " context W"],
    transformer: nn.Module,
    ln_final: nn.Module,
    projection: Float[Tensor, " W D"],
) -> Float[Tensor, " B D"]:
    tokens = embedded + positions[: embedded.shape[1]]
    for block in transformer_blocks(transformer):
        tokens = run_block(block, tokens, causal=True)
    return ln_final(tokens[torch.arange(len(tokens), device=tokens.device), ends]) @ projection
