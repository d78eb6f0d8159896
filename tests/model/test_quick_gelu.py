from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from muva.model.quick_gelu import quick_gelu_mlp


def mlp(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = OrderedDict(c_fc=nn.Linear(6, 10), gelu=activation, c_proj=nn.Linear(10, 5))
    return nn.Sequential(layers).double()


def gradients(mlp: nn.Sequential, result: Tensor, tokens: Tensor) -> list[Tensor]:
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    return list(torch.autograd.grad(result, [tokens, *mlp.parameters()], upstream))


@pytest.mark.parametrize("activation", [QuickGELU(), nn.GELU()])
def test_it_is_the_mlp_with_its_gradients(activation: nn.Module) -> None:
    module = mlp(activation)
    tokens = (3 * torch.randn(2, 7, 6)).double().requires_grad_()
    expected, found = module(tokens), quick_gelu_mlp(module, tokens)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        gradients(module, found, tokens), gradients(module, expected, tokens)
    )


def test_a_frozen_mlp_passes_the_gradient_on() -> None:
    module = mlp(QuickGELU()).requires_grad_(False)
    tokens = torch.randn(4, 6).double().requires_grad_()
    (found,) = torch.autograd.grad(quick_gelu_mlp(module, tokens).sum(), tokens)
    (expected,) = torch.autograd.grad(module(tokens).sum(), tokens)
    torch.testing.assert_close(found, expected)


def test_autocast_gives_the_gradients_in_the_precision_of_the_weights() -> None:
    module = mlp(QuickGELU()).float()
    tokens = torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = quick_gelu_mlp(module, tokens)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), module(tokens), rtol=0.03, atol=0.03)
    for ours, theirs in zip(
        gradients(module, found, tokens), gradients(module, module(tokens), tokens), strict=True
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.1)
