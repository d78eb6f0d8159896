"""The inputs that a training process opens: the sources' images with their masks, and a model.

It cannot reach the images of a target: see `muva.data.sources`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.config import AugmentationConfig, ExecutionConfig, ExperimentConfig, ModelConfig
from muva.data.artifacts import Artifact, open_artifact
from muva.data.lineage import Role
from muva.data.sources import Sources

if TYPE_CHECKING:  # a driver of finished steps opens no inputs and needs no PyTorch
    import torch

    from muva.data.protocols import Pool
    from muva.data.training_images import TrainingImages
    from muva.grounding.labels import LabelSet
    from muva.grounding.part_masks import BoxMasks
    from muva.model.muva_model import MuvaModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """Addresses of what a training process opens, so that no data are sent with the task."""

    sources: Sources
    labels: tuple[str, ...]
    """URIs of the pseudo-labels of the training domains; empty without parts."""
    init: str | None
    """URI of a model to start from instead of CLIP."""
    config: ExperimentConfig
    """The experiment without its targets and execution settings."""

    @classmethod
    def of(
        cls,
        config: ExperimentConfig,
        *,
        sources: Sequence[Artifact],
        labels: Sequence[Artifact] | None,
        init: Artifact | None = None,
    ) -> TrainingInputs:
        """The inputs of an experiment; `labels` are those of all sources, None without parts."""
        divided = Sources.of(sources, config)
        labelled = dict(zip((source.uri for source in sources), labels or (), strict=False))
        return cls(
            sources=divided,
            labels=tuple(labelled[uri].uri for uri in divided.domains) if labels else (),
            init=init.uri if init else None,
            config=config.model_copy(
                update={"targets": (), "tune": None, "execution": ExecutionConfig()}
            ),
        )

    def step_inputs(self) -> dict[Role, list[Artifact]]:
        """The inputs of both stages; a held-out domain is an input of stage 2 only."""
        inputs = {
            Role.SOURCE: [open_artifact(uri) for uri in self.sources.domains],
            Role.LABELS: [open_artifact(uri) for uri in self.labels],
        }
        if self.init is not None:
            inputs[Role.INIT] = [open_artifact(self.init)]
        return inputs

    def as_json(self) -> dict[str, Any]:
        """JSON-compatible data, from which `read` makes the same object."""
        return {
            **vars(self),
            "sources": self.sources.as_json(),
            "config": self.config.model_dump(mode="json"),
        }

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> TrainingInputs:
        """The inverse of `as_json`."""
        return cls(
            sources=Sources.from_json(stored["sources"]),
            labels=tuple(stored["labels"]),
            init=stored["init"],
            config=ExperimentConfig.model_validate(stored["config"]),
        )

    def open(self, *, predicts_masks: bool) -> tuple[MuvaModel, TrainingImages]:
        """A new model for the identities of the sources, and their images with part masks.

        Stage 1 predicts no masks: its model has the predictor's default settings, and its images
        are not augmented.
        """
        import muva
        from muva.data.training_images import TrainingImages

        model, augmentation = self.config.model, self.config.augmentation
        if not predicts_masks:
            model, augmentation = without_mask_settings(model), AugmentationConfig()
        pooled = self.sources.pool()
        fresh = self.fresh_model(identities=len(pooled.identities), model=model)
        if self.init is not None:
            start = muva.load(self.init)
            known = knows_the_same(
                start.metadata, start.model.identities, self.sources.domains, fresh.identities
            )
            fresh.start_from(
                start.model, mask_predictor=predicts_masks, classifier=known and predicts_masks
            )
        masks = moved_masks = None
        if model.parts:
            patch = fresh.clip_shape.patch
            masks = self._part_masks(pooled, model, patch)
            moved_masks = self._box_masks(pooled, model, patch) if augmentation.pad else None
        images = TrainingImages(
            pooled,
            height=model.image_height,
            width=model.image_width,
            mean=model.mean,
            std=model.std,
            part_masks=masks,
            grid=fresh.grid,
            augmentation=augmentation,
            moved_masks=moved_masks,
        )
        return fresh, images

    def fresh_model(self, *, identities: int, model: ModelConfig | None = None) -> MuvaModel:
        """An untrained model on top of CLIP."""
        from muva.model.clip import load_clip
        from muva.model.muva_model import build_model

        model = model or self.config.model
        size = (model.image_height, model.image_width)
        prompts = self.config.prompts
        domains = (
            [domain for domain, _ in self.sources.pool().identities]
            if prompts.differ_by_domain
            else ()
        )
        return build_model(
            load_clip(model.clip, image_size=size, stride=model.stride),
            model=model,
            prompts=prompts,
            identities=identities,
            seed=self.config.seed,
            domains=domains,
        )

    def _part_masks(self, pooled: Pool, model: ModelConfig, patch: int) -> torch.Tensor:
        """The pooled images' masks on the model's patch grid (M, R, L)."""
        import torch

        centres = _patch_centres(model, patch)
        return torch.cat(
            [
                labels.masks(image_ids, **centres, parts=model.parts)
                for labels, image_ids in self._labels(pooled)
            ]
        )

    def _box_masks(self, pooled: Pool, model: ModelConfig, patch: int) -> BoxMasks:
        """The same for images that move within their frame."""
        import torch

        from muva.grounding.part_masks import BoxMasks

        centres = _patch_centres(model, patch)
        found = [
            labels.boxes_of_masks(image_ids, **centres, parts=model.parts)
            for labels, image_ids in self._labels(pooled)
        ]
        boxes, was_found = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        return BoxMasks(boxes=boxes, found=was_found, **centres)

    def _labels(self, pooled: Pool) -> Iterator[tuple[LabelSet, list[str]]]:
        """The labels of each source, and the ids of its pooled images."""
        from muva.grounding.labels import open_labels

        for dataset, uri in zip(pooled.datasets, self.labels, strict=True):
            labels = open_labels(open_artifact(uri), dataset=dataset)
            yield labels, pooled.image_ids_of(dataset)


def _patch_centres(model: ModelConfig, patch: int) -> dict[str, torch.Tensor]:
    """The centres of the model's patches, as arguments of functions that make masks."""
    from muva.grounding.part_masks import patch_centres

    return {
        "row_centres": patch_centres(model.image_height, patch=patch, stride=model.stride),
        "column_centres": patch_centres(model.image_width, patch=patch, stride=model.stride),
    }


def knows_the_same(
    metadata: Mapping[str, Any], known: int, sources: Sequence[str], identities: int
) -> bool:
    """Whether the classes of a model are the identities of these sources (URIs), in this order.

    This is known only of models that were trained here, not of imported ones.
    """
    return known == identities and metadata.get("sources") == [Path(uri).name for uri in sources]


def without_mask_settings(model: ModelConfig) -> ModelConfig:
    """The settings that stage 1 depends on; it uses the pseudo-labels instead of predicted masks.

    Experiments that differ only in the gating or the predictor therefore share their prompts.
    """
    plain = ModelConfig()
    unused = ("gating", "mask_max_value", "mask_temperature", "predictor_heads",
              "predictor_layer_norm", "predictor_shortcut")  # fmt: skip
    return model.model_copy(update={key: getattr(plain, key) for key in unused})
