from __future__ import annotations

from typing import Any

import pytest
import torch

from muva.errors import SettingsError
from muva.model.mask_predictor import PartCrossAttention
from muva.model.muva_model import MuvaModel
from muva.model.part_gate import attention_bias
from tests.model.small import IMAGE_SIZE, small_clip, small_model

PATCHES = 6 * 3


def images(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *IMAGE_SIZE, generator=generator)


def predicted(model: MuvaModel) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = model.encode_images(images())
    assert encoded.mask_logits is not None and encoded.mask_probabilities is not None
    return encoded.mask_logits, encoded.mask_probabilities


def masks(parts: int = 3) -> torch.Tensor:
    return torch.rand(2, parts, PATCHES, generator=torch.Generator().manual_seed(1)) < 0.5


def test_without_parts_the_feature_is_clips_own() -> None:
    model = small_model(parts=()).eval()
    encoded = model.encode_images(images())
    torch.testing.assert_close(encoded.feature, small_clip().eval().encode_image(images()))
    assert encoded.mask_logits is None and encoded.mask_probabilities is None
    assert not [name for name, _ in model.named_parameters() if "predictor" in name]


@torch.no_grad()
def test_masked_patch_gets_no_attention_from_its_part() -> None:
    outside = ~masks()[0, 1]
    alone = torch.zeros(1, 3, PATCHES, dtype=torch.bool)
    alone[0, 1] = masks()[0, 1]
    changed = images()[:1].clone()
    patches = changed.unfold(2, 8, 8).unfold(3, 8, 8)  # a view: (1, 3, 6, 3, 8, 8)
    row, column = divmod(int(outside.nonzero()[0]), 3)
    patches[:, :, row, column] = 9.0
    # One block: what reaches the part through other tokens needs a second one.
    single = small_model(vision_layers=1).eval()
    features = [single.encode_images(x, alone).feature for x in (images()[:1], changed)]
    grains = [feature.unflatten(1, (4, 32)) for feature in features]
    assert torch.equal(grains[0][:, 2], grains[1][:, 2])
    assert not torch.equal(grains[0][:, 0], grains[1][:, 0])


def test_given_masks_are_hard_also_when_gating_is_online() -> None:
    offline, online = small_model().eval(), small_model(gating="online").eval()
    for model in (offline, online):
        assert model.encode_images(images(), masks()).mask_logits is None
    torch.testing.assert_close(
        online.encode_images(images(), masks()).feature,
        offline.encode_images(images(), masks()).feature,
    )


def test_an_offline_gate_lets_no_gradient_through_and_an_online_gate_does() -> None:
    for gating, expected in {"offline": False, "online": True}.items():
        model = small_model(gating=gating, mask_max_value=2.0)
        model.encode_images(images()).feature.sum().backward()
        weight = model.get_parameter("image_encoder.mask_predictor.blocks.0.mlp.2.weight")
        assert (weight.grad is not None and bool(weight.grad.any())) == expected


def test_each_blocks_logits_add_to_the_ones_before() -> None:
    model = small_model().eval()
    logits, probabilities = predicted(model)
    with torch.no_grad():
        for parameter in model.get_submodule(
            "image_encoder.mask_predictor.blocks.1.mlp.2"
        ).parameters():
            parameter.zero_()
    silent, _ = predicted(model)
    torch.testing.assert_close(silent[1], logits[0])
    torch.testing.assert_close(probabilities, logits.sigmoid())


def test_the_mask_temperature_divides_the_logits() -> None:
    logits, probabilities = predicted(small_model(mask_temperature=0.25).eval())
    torch.testing.assert_close(probabilities, (logits / 0.25).sigmoid())


def test_part_tokens_start_as_configured() -> None:
    random = small_model().get_parameter("image_encoder.part_tokens")
    assert random.std().item() == pytest.approx(0.02, rel=0.2)
    copied = small_model(part_token_init="cls")
    class_token = copied.get_parameter("image_encoder.class_embedding")
    part_tokens = copied.get_parameter("image_encoder.part_tokens")
    assert torch.equal(part_tokens, class_token.expand(3, -1))
    assert small_model(part_token_init="patch_avg").image_encoder.part_tokens is None


def test_bands_that_do_not_fit_the_grid_are_refused() -> None:
    with pytest.raises(SettingsError, match="its 7 rows do not divide by 3"):
        small_model(part_token_init="patch_avg", stride=7, image_height=50)
    small_model(part_token_init="patch_avg", parts=("head", "legs"))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(SettingsError, match="predictor_heads 3 does not divide"):
        small_model(predictor_heads=3)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_the_cheap_cross_attention_is_the_projected_one(heads: int) -> None:
    torch.manual_seed(0)
    attention = PartCrossAttention(64, heads).double()
    parts, patches = torch.randn(2, 3, 64).double(), torch.randn(2, PATCHES, 64).double()
    q, k, v = (
        projection(tokens).view(2, -1, heads, 64 // heads).transpose(1, 2)
        for projection, tokens in [
            (attention.to_q, parts),
            (attention.to_k, patches),
            (attention.to_v, patches),
        ]
    )
    weights = (q @ k.mT / (64 // heads) ** 0.5).softmax(dim=-1)
    expected = attention.to_out((weights @ v).transpose(1, 2).reshape(2, 3, 64))
    torch.testing.assert_close(attention(parts, patches), expected)


@pytest.mark.parametrize(
    "changed",
    [{}, {"gating": "online"}, {"part_token_init": "patch_avg"}, {"parts": ()}, {"stride": 5}],
)
def test_bf16_gives_float32_features_close_to_float32s(changed: dict[str, Any]) -> None:
    model = small_model(**changed).eval()
    given = torch.ones(2, len(model.config.parts), model.grid[0] * model.grid[1]).bool()
    with torch.no_grad():
        full = model.encode_images(images(), given).feature
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model.encode_images(images(), given).feature
            predicted = model.encode_images(images())
    assert half.dtype == predicted.feature.dtype == torch.float32
    assert (half - full).abs().max() < 0.03 * full.abs().max()


@pytest.mark.parametrize("gating", ["offline", "online"])
@torch.no_grad()
def test_attention_is_that_of_pytorchs_own_module(gating: str) -> None:
    model = small_model(gating=gating).eval()
    encoder = model.image_encoder
    seen: list[tuple[Any, torch.Tensor]] = []
    before = encoder.call

    def looking(function: Any, block: Any, *args: Any, **named: Any) -> Any:
        seen.append((block, args[-1]))
        return function(block, *args, **named)

    encoder.call = looking
    probabilities = predicted(model)[1][-1]
    encoder.call = before
    block, tokens = seen[-1]
    bias = attention_bias(encoder._gate(probabilities))
    normed = block.ln_1(tokens)
    heads = block.attn.num_heads
    _, weights = block.attn(
        normed, normed, normed, attn_mask=bias.repeat_interleave(heads, 0), need_weights=True
    )

    found = encoder.attention(images())

    torch.testing.assert_close(found, weights[:, :4, 4:])
    assert found.shape == (2, 4, PATCHES)
    assert (found[:, 1:][~(probabilities > 0.5)] == 0).all() or gating == "online"


def test_attention_of_a_model_without_parts_is_the_class_tokens() -> None:
    found = small_model(parts=()).eval().image_encoder.attention(images())
    assert found.shape == (2, 1, PATCHES)
    assert (found.sum(dim=-1) <= 1).all() and (found > 0).all()
