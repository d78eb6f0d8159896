"""What training asks of its images, and their features under the pseudo-label masks."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from muva.model.distributed import rank, world_size
from muva.model.muva_model import MuvaModel
from muva.model.precision import Precision, autocast
from muva.training.divergence import check_features

Progress = Callable[[int, int], None]
Batch = tuple[Tensor, Tensor | None]


@runtime_checkable
class TrainingImages(Protocol):
    """Pooled training images: M of them, with dense labels and, if there are parts, masks."""

    @property
    def labels(self) -> np.ndarray:
        """Identities (M,), int64, 0 to N - 1, each present."""
        ...

    @property
    def image_ids(self) -> Sequence[str]:
        """The images' names, M of them, each once: errors name images by them."""
        ...

    def batch(self, indices: np.ndarray, flips: Tensor | None) -> Batch:
        """Normalised images (B, 3, H, W) and part masks (B, R, L), mirrored where told."""
        ...


def in_advance(
    images: TrainingImages, batches: Sequence[tuple[np.ndarray, Tensor | None]]
) -> Iterator[Batch]:
    """The batches in order, each being decoded while the one before is computed on."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(images.batch, *batch) for batch in batches[:1]]
        for following in batches[1:]:
            ready = coming.pop().result()
            coming.append(pool.submit(images.batch, *following))
            yield ready
        for last in coming:
            yield last.result()


@torch.no_grad()
def image_features(
    model: MuvaModel,
    images: TrainingImages,
    *,
    device: torch.device,
    batch_size: int,
    precision: Precision = "fp32",
    necked: bool = False,
    progress: Progress | None = None,
) -> Float[Tensor, " M F"]:
    """Features of all training images with their part masks, in eval mode, without augmentation.

    `necked`: after the BN neck and of unit length (the memory's); else before it (stage 1's). With
    several workers each encodes its share and all get the whole. Raises MuvaError that names the
    images whose features are not finite.
    """
    count = len(images.labels)
    share = np.array_split(np.arange(count), world_size())[rank()]
    batches = [(share[at : at + batch_size], None) for at in range(0, len(share), batch_size)]
    features = torch.zeros(
        count, model.feature_dim, device=device, dtype=model.classifier.weight.dtype
    )
    was_training = model.training
    model.eval()
    for done, (pixels, part_masks) in enumerate(in_advance(images, batches)):
        with autocast(precision, device):
            masks = None if part_masks is None else part_masks.to(device)
            encoded = model.encode_images(pixels.to(device), masks)
        feature = normalize(model.neck(encoded.feature)) if necked else encoded.feature
        features[torch.as_tensor(batches[done][0], device=device)] = feature
        if progress:
            progress(done + 1, len(batches))
    model.train(was_training)
    if world_size() > 1:
        dist.all_reduce(features)
    check_features(features, images.image_ids)
    return features
