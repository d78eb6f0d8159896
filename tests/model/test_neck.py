from __future__ import annotations

import torch

from muva.model.neck import BatchNormNeck


def test_one_pass_moves_the_statistics_as_the_releases_two_do() -> None:
    features = torch.randn(8, 5) * 3 + 1
    ours, theirs = BatchNormNeck(5), torch.nn.BatchNorm1d(5)
    expected = [theirs(features) for _ in range(2)][1]
    torch.testing.assert_close(ours(features), expected)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_the_bias_does_not_train() -> None:
    neck = BatchNormNeck(5)
    assert not neck.bias.requires_grad and neck.weight.requires_grad
