"""Features of all training images under their pseudo-label masks: stage 1's and the memory's."""

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from muva.model.distributed import rank, world_size
from muva.model.muva_model import MuvaModel
from muva.model.precision import Precision, autocast
from muva.training.compute import Compute
from muva.training.divergence import check_features
from muva.training.loader import Loader, TrainingImages

Progress = Callable[[int, int], None]


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
    compute: Compute | None = None,
    loader: Loader | None = None,
) -> Float[Tensor, " M F"]:
    """Features of all training images with their part masks, in eval mode, without augmentation.

    `necked`: after the BN neck and of unit length (the memory's); else before it (stage 1's). With
    several workers each encodes its share and all get the whole. `loader`: of these images, where
    there is one already. Raises NotFiniteError that names the images whose features are not finite.
    """
    compute = compute or Compute()
    loader = loader or Loader(images, processes=compute.loaders, device=device)
    size = compute.at_once(batch_size)
    count = len(images.labels)
    share = np.array_split(np.arange(count), world_size())[rank()]
    batches = [(share[at : at + size], None) for at in range(0, len(share), size)]
    features = torch.zeros(
        count, model.feature_dim, device=device, dtype=model.classifier.weight.dtype
    )
    was_training = model.training
    model.eval()
    for done, (pixels, part_masks) in enumerate(loader.batches(batches)):
        with autocast(precision, device):
            masks = None if part_masks is None else part_masks.to(device)
            encoded = model.encode_images(compute.pixels(pixels, device), masks)
        feature = normalize(model.neck(encoded.feature)) if necked else encoded.feature
        features[torch.as_tensor(batches[done][0], device=device)] = feature
        if progress:
            progress(done + 1, len(batches))
    model.train(was_training)
    if world_size() > 1:
        dist.all_reduce(features)
    check_features(features, images.image_ids)
    return features
