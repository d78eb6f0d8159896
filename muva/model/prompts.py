"""The prompts of an identity: one text per grain, with placeholders for the learned context.

`A photo of a * * * * person`, then one per part in the model's order (Sec. 3.1), as `A photo of a
* * * * upper body of a person`. The placeholder
`*` is a token of its own; its embeddings give way to the contexts.
"""

from collections.abc import Sequence

import open_clip
from torch import Tensor

from muva.config import Part, PromptConfig, words_of
from muva.errors import MuvaError

PREFIX = "A photo of a"
PLACEHOLDER = "*"
PERSON = "person"

CONTEXT_START = 5
"""Position of the first placeholder: after the start token and the four words of the prefix."""


def prompt_texts(
    parts: Sequence[Part], prompts: PromptConfig, *, context: str | None = None
) -> list[str]:
    """The texts of the person and of these parts, in this order.

    `context`: the domain context of the identities; None: the one in the settings.
    """
    # CLIP's tokeniser reads `*,` as one token: without a noun, the comma of a domain context gives
    # way to the last context token. The ids are what the tokeniser makes of the whole text.
    nouns = [PERSON, *(f"{words_of(part)} of a {PERSON}" for part in parts)]
    opening = " ".join([PREFIX, *[PLACEHOLDER] * prompts.context_tokens])
    context = prompts.domain_context if context is None else context
    ending = f", {context}" if context else ""
    if prompts.template == "part-agnostic":
        return [opening + ending for _ in nouns]
    return [f"{opening} {noun}{ending}" for noun in nouns]


def tokenise(texts: Sequence[str], *, context_length: int) -> Tensor:
    """Token ids (texts, context_length), int64, padded with 0.

    Raises:
        MuvaError: a text is longer than the context.
    """
    whole = open_clip.tokenize(list(texts), context_length=20 * context_length)
    lengths = whole.argmax(dim=1) + 1
    if int(lengths.max()) > context_length:
        longest = texts[int(lengths.argmax())]
        raise MuvaError(
            f"{longest!r} is {int(lengths.max())} tokens long, but this CLIP reads at most "
            f"{context_length}: shorten the text; for a prompt, shorten prompts.domain_context or "
            f"lower prompts.context_tokens"
        )
    return whole[:, :context_length]
