from __future__ import annotations

import torch
from torch.nn.functional import normalize

from muva.training.visual_memory import VisualMemory, identity_centroids

LABELS = torch.tensor([2, 0, 2, 0, 0, 4, 2, 2])


def memory_and_batch(*, hard: bool) -> tuple[VisualMemory, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centroids = normalize(torch.randn(5, 16, generator=generator))
    features = normalize(torch.randn(len(LABELS), 16, generator=generator))
    return VisualMemory(centroids, temperature=0.01, momentum=0.2, hard_update=hard), features


def test_centroids_are_the_normalised_means_of_each_identity() -> None:
    features = torch.randn(8, 16)
    centroids = identity_centroids(features, LABELS, 5)
    for identity in (0, 2, 4):
        mean = features[identity == LABELS].mean(dim=0)
        torch.testing.assert_close(centroids[identity], mean / mean.norm())


def test_the_hard_update_takes_each_identitys_least_similar_feature() -> None:
    memory, features = memory_and_batch(hard=True)
    before = memory.centroids.clone()
    memory.update(features, LABELS)
    for identity in range(5):
        own = [row for row, label in enumerate(LABELS.tolist()) if label == identity]
        expected = before[identity]
        if own:
            hardest = min(own, key=lambda row: float(features[row] @ before[identity]))
            expected = normalize(0.2 * expected + 0.8 * features[hardest], dim=0)
        torch.testing.assert_close(memory.centroids[identity], expected)


def test_the_soft_update_takes_every_feature_in_the_order_of_the_batch() -> None:
    memory, features = memory_and_batch(hard=False)
    expected = memory.centroids.clone()
    for feature, identity in zip(features, LABELS.tolist(), strict=True):
        expected[identity] = normalize(0.2 * expected[identity] + 0.8 * feature, dim=0)
    memory.update(features, LABELS)
    torch.testing.assert_close(memory.centroids, expected)


def test_an_update_leaves_the_centroids_that_a_loss_has_seen() -> None:
    memory, features = memory_and_batch(hard=True)
    features.requires_grad_()
    seen = memory.centroids
    logits = memory.logits(features)
    memory.update(features.detach(), LABELS)
    assert not torch.equal(seen, memory.centroids)
    logits.sum().backward()
    torch.testing.assert_close(features.grad, (seen.sum(dim=0) / 0.01).expand_as(features))
