from __future__ import annotations

import torch
from torch import Tensor, nn

from muva.model.cast_weights import with_cast_weights


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))


def test_weights_are_cast_as_autocast_casts_them() -> None:
    module, tokens = layers(), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_cast_weights(module, tokens, modules=[module])
        expected = module(tokens)
    assert torch.equal(found, expected)
    gradients = [
        torch.autograd.grad(result.float().square().sum(), list(module.parameters()))
        for result in (found, expected)
    ]
    assert all(gradient.dtype == torch.float32 for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_the_weights_of_products_are_in_half_precision_inside_alone() -> None:
    module = layers()

    def dtypes() -> list[torch.dtype]:
        return [weight.dtype for weight in module.parameters()]

    with torch.autocast("cpu", torch.bfloat16):
        inside = with_cast_weights(dtypes, modules=[module])
    half, full = torch.bfloat16, torch.float32
    assert inside == [half, half, full, full, half, half]
    assert dtypes() == [full] * 6


def test_without_autocast_nothing_is_cast() -> None:
    module = layers()

    def weight() -> Tensor:
        return module.get_parameter("0.weight")

    assert with_cast_weights(weight, modules=[module]) is weight()


def test_a_frozen_weight_gets_no_gradient() -> None:
    module, tokens = layers(), torch.randn(3, 8)
    module[0].requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        with_cast_weights(module, tokens, modules=[module]).float().sum().backward()
    assert module.get_parameter("0.weight").grad is None
    assert module.get_parameter("2.weight").grad is not None
