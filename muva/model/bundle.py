"""Model bundles: everything that embedding an image needs, in one folder.

`model.safetensors` holds all parameters, including the prompts and CLIP's text encoder, so that a
training can start from a bundle. `bundle.json` describes them: configuration, sizes and provenance.
`load_bundle` returns an embedder, as `pretrained_clip` does for CLIP without further training.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Bool, Float, Shaped
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import normalize

from muva.config import ModelConfig, PromptConfig
from muva.data import formats
from muva.data.images import ImageLike, resized_rgb
from muva.errors import MuvaError
from muva.hub.card import CARD, Results, is_unedited, model_card
from muva.hub.upload import Pushed, push_bundle
from muva.model.bundle_description import (
    DESCRIPTION,
    SHIPPED_MODELS,
    TRAINING_IDENTITIES,
    WEIGHTS,
    parse_description,
)
from muva.model.clip import ClipShape, empty_clip, image_size_of, load_clip, normalisation
from muva.model.muva_model import MuvaModel, build_model
from muva.model.precision import Precision, autocast, exact_convolutions

Encoder = Callable[[Tensor], Tensor]


@dataclass(kw_only=True)
class Embedder:
    """Embeds images as features for retrieval."""

    module: nn.Module
    encode: Encoder
    """Maps normalised images (B, 3, H, W) to features (B, F) of unit length."""
    image_height: int
    image_width: int
    mean: Sequence[float]
    std: Sequence[float]
    feature_dim: int

    @property
    def device(self) -> torch.device:
        """The device on which images are encoded."""
        return next(self.module.parameters()).device

    def to(self, device: torch.device | str) -> Embedder:
        """Move to a device, in place."""
        self.module.to(device)
        return self

    def embed(
        self,
        images: Sequence[ImageLike],
        *,
        batch_size: int = 64,
        precision: Precision = "fp32",
        decoders: int = 0,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Float[np.ndarray, " B F"]:
        """Features of unit length, float32, of images of any size.

        An image is a path, encoded bytes, a PIL image, or a uint8 array (height, width, 3); the
        same picture gives the same feature in each of these forms, see `as_rgb`. It is resized
        bilinearly to the model's input size, as the authors do at test time.

        Args:
            images: a batch at a time is taken from the sequence, which may read its images then.
            decoders: threads that decode and resize the next batch while the model computes, for
                devices that would otherwise wait; 0: decode in the calling thread.
            progress: called with the number of finished images after each batch.

        Raises:
            MuvaError: an image cannot be read.
        """
        features = [np.empty((0, self.feature_dim), np.float32)]
        done = 0
        for batch in self._batches(images, batch_size, decoders):
            features.append(self.embed_pixels(batch, precision=precision))
            done += len(batch)
            progress(done)
        return np.concatenate(features)

    def pixels(self, images: Sequence[ImageLike]) -> Float[Tensor, " B 3 H W"]:
        """Images as `embed` takes them, resized and normalised for the model's modules."""
        return self._normalised(self._resized(images))

    @torch.inference_mode()
    def embed_pixels(
        self, pixels: Shaped[Tensor, " B 3 H W"], *, precision: Precision = "fp32"
    ) -> Float[np.ndarray, " B F"]:
        """Features of images of the model's input size: uint8, or floating point from 0 to 1."""
        if tuple(pixels.shape[-2:]) != (self.image_height, self.image_width):
            raise MuvaError(
                f"images of {pixels.shape[-2]} x {pixels.shape[-1]}: this model expects "
                f"{self.image_height} x {self.image_width} (height x width)"
            )
        with autocast(precision, self.device):
            features = self.encode(self._normalised(pixels))
        return features.float().cpu().numpy()

    def _normalised(self, pixels: Tensor) -> Tensor:
        values = pixels.to(self.device)
        values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
        mean, std = (
            torch.tensor(statistic, device=self.device)[:, None, None]
            for statistic in (self.mean, self.std)
        )
        return (values - mean) / std

    def _batches(
        self, images: Sequence[ImageLike], batch_size: int, decoders: int
    ) -> Iterator[Tensor]:
        """(B, 3, H, W) uint8 each; with decoders, the next one is prepared in the background."""
        batches = (
            images[start : start + batch_size] for start in range(0, len(images), batch_size)
        )
        if not decoders:
            yield from map(self._resized, batches)
            return
        with ThreadPoolExecutor(decoders) as threads:
            made = deque()
            for batch in batches:
                made.append([threads.submit(self._resized_one, image) for image in batch])
                if len(made) > 1:
                    yield _stacked([one.result() for one in made.popleft()])
            for batch in made:
                yield _stacked([one.result() for one in batch])

    def _resized(self, images: Sequence[ImageLike]) -> Tensor:
        """(B, 3, H, W) uint8."""
        return _stacked([self._resized_one(image) for image in images])

    def _resized_one(self, image: ImageLike) -> np.ndarray:
        size = {"height": self.image_height, "width": self.image_width}
        return resized_rgb(image, **size, interpolation="bilinear")


@dataclass(kw_only=True)
class Bundle(Embedder):
    """A trained model with its provenance."""

    model: MuvaModel
    metadata: Mapping[str, Any]

    @torch.inference_mode()
    def predicted_masks(self, images: Sequence[ImageLike]) -> Bool[np.ndarray, " B R L"]:
        """The predicted part masks of the last block: which patches each part token attends to.

        Patches are row-major over `model.grid`.

        Raises:
            MuvaError: the model has no parts.
        """
        encoded = self.model.encode_images(self.pixels(images))
        if encoded.mask_probabilities is None:
            raise MuvaError("this is a global-only model (parts: []), which predicts no part masks")
        return (encoded.mask_probabilities[-1] > 0.5).cpu().numpy()

    @torch.inference_mode()
    def attention(self, images: Sequence[ImageLike]) -> Float[np.ndarray, " B G L"]:
        """Attention of the class token and each part token to the patches in the last block."""
        return self.model.image_encoder.attention(self.pixels(images)).cpu().numpy()

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | None = None,
        licence: str | None = None,
        results: Results | None = None,
    ) -> Pushed:
        """Push weights, configuration and a card to the Hugging Face Hub, in one commit.

        Nothing is committed if the hub has the same content already. The arguments and errors are
        those of `push_bundle`; the result's `uri`, `hf://ORG/NAME@COMMIT`, is for `muva.load`.
        """
        with tempfile.TemporaryDirectory() as folder:
            save_bundle(self.model, Path(folder), metadata=self.metadata)
            return push_bundle(
                Path(folder),
                repository,
                private=private,
                revision=revision,
                commit_message=commit_message,
                token=token,
                licence=licence,
                results=results,
            )

    def save(
        self,
        folder: str | Path,
        *,
        compact: bool = False,
        licence: str | None = None,
        results: Results | None = None,
    ) -> None:
        """Write weights, configuration and a card to a folder, which `muva.load` opens.

        A bundle that is already there is replaced; a card that somebody has edited stays.

        Args:
            compact: half-precision weights, and neither prompts nor classes of the training
                identities. Features stay the same but for rounding. A training can start from such
                a model as from any other, but takes no classes from it.
            licence: see `model_card`.
            results: see `model_card`.

        Raises:
            MuvaError: the folder holds other files.
        """
        folder = Path(folder)
        _check_replaceable(folder)
        save_bundle(self.model, folder, metadata=self.metadata, compact=compact)
        card = folder / CARD
        if card.exists() and not is_unedited(card.read_text(encoding="utf-8")):
            return
        description = _read_description(folder)
        text = model_card(description, _address(folder), licence=licence, results=results)
        card.write_text(text, encoding="utf-8")


def _address(folder: Path) -> str:
    """What opens a model in this folder: the name of a shipped one, or the path from beside it."""
    folder = folder.resolve()
    shipped = SHIPPED_MODELS.get(folder.name)
    return folder.name if shipped and shipped.resolve() == folder else f"./{folder.name}"


def save_bundle(
    model: MuvaModel, folder: Path, *, metadata: Mapping[str, Any], compact: bool = False
) -> None:
    """Write a model and its description; `metadata` is JSON, such as the model's provenance.

    `compact`: see `Bundle.save`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, prompts, identities = model.state_dict(), model.prompt_config, model.identities
    if compact:
        tensors, identities = _compact_weights(model), 0
        prompts = prompts.model_copy(update={"domain_context": "", "domain_contexts": {}})
        trained = metadata.get(TRAINING_IDENTITIES, model.identities)
        metadata = {**metadata, TRAINING_IDENTITIES: trained}
    stored = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    description = {
        "format_version": formats.BUNDLE,
        "sha256": hashlib.sha256(stored).hexdigest(),
        "clip": asdict(model.clip_shape),
        "model": model.config.model_dump(mode="json"),
        "prompts": prompts.model_dump(mode="json"),
        "identities": identities,
        **({"domains": model.domains} if prompts.differ_by_domain else {}),
        "feature_dim": model.feature_dim,
        "metadata": dict(metadata),
    }
    (folder / WEIGHTS).write_bytes(stored)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def _compact_weights(model: MuvaModel) -> dict[str, Tensor]:
    """The state dict without what belongs to identities, and with parameters in float16."""
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {
        name: value.half() if name in parameters else value
        for name, value in model.state_dict().items()
    }
    for name in ("contexts", "classifier.weight"):
        tensors[name] = tensors[name][:0]
    return tensors


def _check_replaceable(folder: Path) -> None:
    others = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others -= {WEIGHTS, DESCRIPTION, CARD}
    if others:
        raise MuvaError(
            f"{folder} holds {sorted(others)[0]}, which belongs to no bundle: expected a new or "
            "empty folder, or one with an earlier bundle"
        )


def load_bundle(folder: Path) -> Bundle:
    """Load a bundle on the CPU, in eval mode.

    Raises:
        MuvaError: the bundle is incomplete, damaged or in an unsupported format.
    """
    description = _read_description(folder)
    weights = _read_weights(folder, description["sha256"])
    try:
        config = ModelConfig.model_validate(description["model"])
        prompts = PromptConfig.model_validate(description["prompts"])
        shape = ClipShape(**description["clip"])
        identities, metadata = description["identities"], description["metadata"]
        domains = description.get("domains", ())
    except (ValidationError, KeyError, TypeError) as error:
        raise MuvaError(
            f"model bundle {folder}: {DESCRIPTION} does not describe a model of this version of "
            f"muva: {error}"
        ) from error
    clip = empty_clip(
        shape, image_size=(config.image_height, config.image_width), stride=config.stride
    )
    token_ids = weights.get("text_encoder.token_embedding.token_ids_used")
    if token_ids is not None:
        clip.get_buffer("token_embedding.token_ids_used").copy_(token_ids)
    model = build_model(
        clip, model=config, prompts=prompts, identities=identities, seed=0, domains=domains
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise MuvaError(
            f"model bundle {folder}: {WEIGHTS} does not match the configuration in {DESCRIPTION}: "
            f"{str(error).splitlines()[1].strip()}"
        ) from error
    return bundle_of_model(model.eval(), metadata=metadata)


def bundle_of_model(model: MuvaModel, *, metadata: Mapping[str, Any]) -> Bundle:
    """A bundle of a model in memory, which must be in eval mode to embed images."""
    return Bundle(
        module=model,
        encode=model.retrieval_features,
        image_height=model.config.image_height,
        image_width=model.config.image_width,
        mean=model.config.mean,
        std=model.config.std,
        feature_dim=model.feature_dim,
        model=model,
        metadata=metadata,
    )


def pretrained_clip(name: str, *, image_height: int, image_width: int, stride: int) -> Embedder:
    """CLIP without further training: the projected class token, with CLIP's own mean and std."""
    clip = load_clip(name, image_size=(image_height, image_width), stride=stride)
    height, width = image_size_of(clip)
    mean, std = normalisation(clip)
    return Embedder(
        module=clip,
        encode=lambda images: normalize(_class_token(clip, images)),
        image_height=height,
        image_width=width,
        mean=mean,
        std=std,
        feature_dim=clip.get_parameter("visual.proj").shape[1],
    )


def _class_token(clip: open_clip.CLIP, images: Tensor) -> Tensor:
    return exact_convolutions(clip.encode_image, images).float()


def _read_description(folder: Path) -> Mapping[str, Any]:
    try:
        stored = (folder / DESCRIPTION).read_bytes()
    except FileNotFoundError as error:
        raise MuvaError(
            f"{folder} is not a model bundle: expected {DESCRIPTION} and {WEIGHTS} in it"
        ) from error
    return parse_description(stored, where=str(folder))


def _read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    try:
        stored = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise MuvaError(
            f"model bundle {folder}: {WEIGHTS} is missing; copy the complete bundle again"
        ) from error
    if hashlib.sha256(stored).hexdigest() != sha256:
        raise MuvaError(
            f"model bundle {folder}: {WEIGHTS} is damaged (its SHA-256 differs from the one in "
            f"{DESCRIPTION}); copy the bundle again. If it is in a store, delete the folder of "
            "its model there, and run the command that made it again"
        )
    try:
        return load(stored)
    except SafetensorError as error:
        raise MuvaError(f"model bundle {folder}: {WEIGHTS} is damaged ({error})") from error


def _stacked(pixels: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
