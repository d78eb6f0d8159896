from __future__ import annotations

import pytest
import torch

from muva.config import PromptConfig
from muva.errors import MuvaError
from muva.model.prompts import prompt_texts, tokenise
from muva.model.text_encoder import TextEncoder, encode_text
from tests.model.small import small_clip

PARTS = ("head", "legs")


def contexts_of(clip, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The embeddings of the placeholders themselves, as contexts of three identities."""
    return clip.token_embedding(ids[:, 5 : 5 + count]).detach().expand(3, -1, -1, -1)


def test_the_prompts_of_both_templates() -> None:
    assert prompt_texts(("head", "upper_body", "legs"), PromptConfig()) == [
        "A photo of a * * * * person",
        "A photo of a * * * * head of a person",
        "A photo of a * * * * upper body of a person",
        "A photo of a * * * * legs of a person",
    ]
    night = PromptConfig(domain_context="taken at night", context_tokens=2)
    assert prompt_texts(PARTS, night) == [
        "A photo of a * * person, taken at night",
        "A photo of a * * head of a person, taken at night",
        "A photo of a * * legs of a person, taken at night",
    ]
    agnostic = PromptConfig(template="part-agnostic", domain_context="taken at night")
    assert prompt_texts(PARTS, agnostic) == ["A photo of a * * * *, taken at night"] * 3


@pytest.mark.parametrize("context_tokens", [1, 4])
def test_features_are_those_of_clip_on_its_whole_length(context_tokens: int) -> None:
    clip = small_clip().eval()
    prompts = PromptConfig(context_tokens=context_tokens, domain_context="taken at night")
    encoder = TextEncoder(clip, parts=PARTS, prompts=prompts)
    ids = tokenise(prompt_texts(PARTS, prompts), context_length=32)
    assert torch.equal(encoder.token_ids, ids)
    features = encoder(contexts_of(clip, ids, context_tokens))
    expected = clip.encode_text(ids).flatten().expand(3, -1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_a_context_changes_its_own_grain_only_and_gets_a_gradient() -> None:
    clip = small_clip().eval()
    encoder = TextEncoder(clip, parts=PARTS, prompts=PromptConfig())
    contexts = torch.randn(2, 3, 4, 64, requires_grad=True)
    features = encoder(contexts).unflatten(1, (3, 32))
    (gradient,) = torch.autograd.grad(features[0, 1].sum(), contexts)
    assert gradient[0, 1].any()
    gradient[0, 1] = 0
    assert not gradient.any()
    assert not [p for p in encoder.parameters() if p.requires_grad]


def test_texts_on_their_own_length_are_those_on_the_whole_length() -> None:
    clip = small_clip().eval()
    ids = tokenise(["a photo", "a photo of a person taken at night"], context_length=32)
    torch.testing.assert_close(encode_text(clip, ids), clip.encode_text(ids), rtol=1e-4, atol=1e-5)


def test_a_domain_context_that_is_too_long_is_refused() -> None:
    with pytest.raises(
        MuvaError, match=r"shorten the text; for a prompt, shorten prompts\.domain_context"
    ):
        TextEncoder(small_clip(), parts=PARTS, prompts=PromptConfig(domain_context="night " * 30))


@pytest.mark.parametrize(
    "prompts",
    [
        PromptConfig(domain_context="at night", domain_contexts={"b": ""}),
        PromptConfig(domain_contexts={"a": "at night", "b": ""}),
    ],
)
def test_each_domains_identities_have_its_context(prompts: PromptConfig) -> None:
    clip = small_clip().eval()
    encoder = TextEncoder(clip, parts=PARTS, prompts=prompts, domains=["a", "b", "a"])
    contexts = torch.randn(3, 3, 4, 64)
    features = encoder(contexts)
    for context, ids in (("at night", [0, 2]), ("", [1])):
        alone = TextEncoder(clip, parts=PARTS, prompts=PromptConfig(domain_context=context))
        torch.testing.assert_close(features[ids], alone(contexts[ids]), rtol=1e-4, atol=1e-5)
    some = torch.tensor([2, 1])
    torch.testing.assert_close(encoder(contexts[some], some), features[some], rtol=1e-4, atol=1e-5)


def test_a_domain_context_may_name_the_domain() -> None:
    prompts = PromptConfig(domain_context="at the {domain}", domain_contexts={"b": "by night"})
    assert prompts.context_of("syn-old-harbour") == "at the old harbour"
    assert prompts.context_of("b") == "by night"
    with pytest.raises(MuvaError, match="the domains of the identities are unknown"):
        TextEncoder(small_clip(), parts=PARTS, prompts=prompts)
