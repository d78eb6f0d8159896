"""Identity centroids over all training images, for stage 1 and for the visual memory."""

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from muva.data.draw import Draw
from muva.model.cast_weights import with_cast_weights
from muva.model.distributed import rank, world_size
from muva.model.muva_model import MuvaModel
from muva.model.precision import Precision, autocast
from muva.training.compute import Compute
from muva.training.divergence import check_features
from muva.training.loader import Loader, TrainingImages
from muva.training.visual_memory import mean_directions

Progress = Callable[[int, int], None]


@torch.no_grad()
def dataset_centroids(
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
) -> Float[Tensor, " N F"]:
    """The mean feature of each identity, of unit length, over all M training images.

    Images are encoded with their part masks, in eval mode and without augmentation. Features are
    accumulated and never stored. With several workers, each encodes its share of the images, and
    all of them get the result.

    Args:
        necked: take unit-length features after the BN neck, as the memory does, instead of features
            before it, as stage 1 does.
        loader: an existing loader of these images to reuse.

    Raises:
        NotFiniteError: features are not finite; the message names their images.
    """
    compute = compute or Compute()
    loader = loader or Loader(images, processes=compute.loaders, device=device)
    size = compute.images_per_pass(batch_size)
    labels = torch.as_tensor(images.labels, device=device)
    share = np.array_split(np.arange(len(labels)), world_size())[rank()]
    batches = [Draw(share[at : at + size]) for at in range(0, len(share), size)]
    dtype = model.classifier.weight.dtype
    sums = torch.zeros(model.identities, model.feature_dim, device=device, dtype=dtype)
    finite = torch.ones(len(labels), device=device, dtype=torch.int8)

    def add_features() -> None:
        for done, (pixels, part_masks) in enumerate(loader.batches(batches)):
            masks = None if part_masks is None else part_masks.to(device)
            encoded = model.encode_images(compute.pixels(pixels, device), masks)
            with torch.autocast(device.type, enabled=False):
                feature = normalize(model.neck(encoded.feature)) if necked else encoded.feature
            rows = torch.as_tensor(batches[done].indices, device=device)
            sums.index_add_(0, labels[rows], feature.to(dtype))
            finite[rows] = feature.isfinite().all(dim=1).to(finite.dtype)
            if progress:
                progress(done + 1, len(batches))

    was_training = model.training
    model.eval()
    with autocast(precision, device):
        with_cast_weights(add_features, modules=[] if compute.compile else [model.image_encoder])
    model.train(was_training)
    if world_size() > 1:
        dist.all_reduce(sums)
        dist.all_reduce(finite, dist.ReduceOp.MIN)
    check_features(finite.bool(), images.image_ids)
    return mean_directions(sums, labels)
