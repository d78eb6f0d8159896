"""Infers a model's settings from a checkpoint, the user's options, and defaults.

It is an error if the file contradicts an option of the user. A setting that the user did not give
is taken from the file if the file records it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from muva.config import PARTS, ModelConfig, Part, PromptConfig
from muva.errors import MuvaError, SettingsError
from muva.model.checks import patch_grid
from muva.model.clip import OPENAI_MEAN, OPENAI_STD
from muva.model.foreign.form import (
    BN_NECK,
    CLASSIFIER,
    CONTEXTS,
    MASK_PREDICTOR,
    PART_TOKENS,
    VISUAL,
    Translation,
)
from muva.model.foreign.plain_clip import SidecarConfig

Origin = Literal["the file", "beside the file", "the form", "given", "the recipe", "assumed"]


IMPORTED = "imported"
"""The name of a CLIP that came from the imported file."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of the model and where its value comes from."""

    name: str
    value: Any
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """The user's options for an import. None, and settings not set, are inferred from the file."""

    model: ModelConfig
    """Fields that are set count as given, the others as the recipe's defaults."""
    prompts: PromptConfig
    quick_gelu: bool | None = None
    grid: tuple[int, int] | None = None
    """The patch grid of the file's position embedding."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A checkpoint with the settings inferred for it."""

    translation: Translation
    model: ModelConfig
    prompts: PromptConfig
    identities: int
    patch: int
    """Side of a patch in pixels."""
    file_grid: tuple[int, int]
    """The patch grid of the position embedding in the file."""
    grid: tuple[int, int]
    """The patch grid of the model."""
    quick_gelu: bool
    vision_heads: int | None
    text_heads: int | None
    settings: tuple[Setting, ...]


def fit(translation: Translation, options: ImportOptions, sidecar: SidecarConfig) -> Fit:
    """Infer the settings of a checkpoint's model.

    Raises:
        MuvaError: the file contradicts itself.
        SettingsError: an option contradicts the file, or is needed and was not given.
    """
    settings = _Settings(translation, options)
    settings.check_dimensions()
    parts = settings.parts()
    patch = settings.patch
    stride, grid, file_grid = settings.stride(parts, patch, sidecar)
    inferred: dict[str, Any] = {"parts": parts, "stride": stride}
    inferred |= settings.predictor() | settings.normalisation(sidecar)
    model = (
        options.model.model_dump() | inferred | {"clip": IMPORTED}
    )  # a name would say another patch size
    prompts = settings.prompts()
    quick_gelu = settings.quick_gelu(sidecar)
    for name in ("image_height", "image_width", *(_PREDICTED if parts else ())):
        settings.from_recipe(name)
    return Fit(
        translation=translation,
        model=ModelConfig.model_validate(model),
        prompts=prompts,
        identities=settings.identities(len(parts)),
        patch=patch,
        file_grid=file_grid,
        grid=grid,
        quick_gelu=quick_gelu,
        vision_heads=sidecar.vision_heads,
        text_heads=sidecar.text_heads,
        settings=tuple(settings.found),
    )


_PREDICTED = ("gating", "mask_max_value", "mask_temperature", "predictor_heads",
              "predictor_shortcut")  # fmt: skip
"""Settings of the part masks that weights do not record."""


_DIMENSIONS = {
    f"{VISUAL}conv1.weight": ("width", "3", "patch", "patch"),
    f"{VISUAL}positional_embedding": ("positions", "width"),
    f"{VISUAL}proj": ("width", "feature"),
    "positional_embedding": ("positions", "width"),
    "text_projection": ("width", "feature"),
    PART_TOKENS: ("parts", "width"),
    f"{BN_NECK}weight": ("feature",),
    CLASSIFIER: ("identities", "feature"),
    CONTEXTS: ("identities", "grains", "tokens", "width"),
}


def _example_of(count: int) -> list[str]:
    """Names of so many parts."""
    return [*PARTS[:count], *(f"part_{number}" for number in range(len(PARTS) + 1, count + 1))]


class _Settings:
    """Infers the settings one by one; `found` records each value and its origin."""

    def __init__(self, translation: Translation, options: ImportOptions):
        self.translation = translation
        self.weights = translation.weights
        self.form = translation.form
        self.where = translation.where
        self.options = options
        self.found: list[Setting] = []

    def check_dimensions(self) -> None:
        """Check the number of dimensions of the tensors that sizes are inferred from.

        Raises:
            MuvaError: one of them differs from CLIP's.
        """
        for name, expected in _DIMENSIONS.items():
            shape = tuple(self.weights[name].shape) if name in self.weights else None
            if shape is not None and len(shape) != len(expected):
                raise MuvaError(
                    f"{self.where}: {self.translation.origins[name]} has the shape {shape}: "
                    f"expected ({', '.join(expected)})"
                )

    @property
    def patch(self) -> int:
        return self.weights[f"{VISUAL}conv1.weight"].shape[-1]

    def parts(self) -> tuple[Part, ...]:
        asked = self.options.model.parts if self._is_given("parts") else None
        tokens = self.weights.get(PART_TOKENS)
        if tokens is None or not self.form.has_parts:
            return self._decide("parts", asked or (), "the form" if asked is None else "given")
        count = len(tokens)
        if asked is not None and len(asked) != count:
            raise SettingsError(
                f"{self.where}: has {count} part tokens, but model.parts names {len(asked)} "
                f"({', '.join(asked) or 'none'}): expected {count}, for example "
                f"--set model.parts=[{','.join(_example_of(count))}]"
            )
        if asked is None and count != len(PARTS):
            raise SettingsError(
                f"{self.where}: has {count} part tokens but does not record their parts: name "
                f"them, for example with --set model.parts=[{','.join(_example_of(count))}]"
            )
        return self._decide(
            "parts", PARTS if asked is None else asked, "the file" if asked is None else "given"
        )

    def stride(
        self, parts: Sequence[Part], patch: int, sidecar: SidecarConfig
    ) -> tuple[int, tuple[int, int], tuple[int, int]]:
        """The stride, the patch grid of the model, and that of the file's position embedding."""
        leading = 1 + (len(parts) if self.form.has_parts else 0)
        patches = len(self.weights[f"{VISUAL}positional_embedding"]) - leading
        config, asked = self.options.model, self._is_given("stride")
        resizes = not self.form.fixed_grid or (
            self.options.grid is not None and not self.form.has_parts
        )
        if resizes:
            stride = config.stride if asked else patch
            self._decide("stride", stride, "given" if asked else "assumed")
            grid = self._grid(patch, stride)
            return stride, grid, self._file_grid(patches, grid, sidecar)
        fitting = [s for s in range(1, patch + 1) if _count(self._grid(patch, s)) == patches]
        if not fitting or (asked and config.stride not in fitting):
            raise SettingsError(self._other_grid(patches, patch, fitting))
        if not asked and patch not in fitting and len(fitting) > 1:
            raise SettingsError(
                f"{self.where}: {patches} patches at {self._size} could result from any of the "
                f"strides {', '.join(map(str, fitting))}: set the one that it was trained with, "
                "--set model.stride=…"
            )
        alone = patch if patch in fitting else fitting[0]  # overlapping patches are less common
        stride = config.stride if asked else alone
        self._decide("stride", stride, "given" if asked else "the file")
        grid = self._grid(patch, stride)
        if self.options.grid not in (None, grid):
            raise SettingsError(
                f"--grid {'x'.join(map(str, self.options.grid or ()))}: the patch grid of this "
                f"model is {grid[0]}x{grid[1]}, at {self._size} and stride {stride}"
            )
        return stride, grid, grid

    def predictor(self) -> dict[str, Any]:
        """How part tokens are initialised, and whether the mask predictor has layer norms."""
        tokens = self.weights.get(PART_TOKENS)
        if tokens is None or not self.form.has_parts:
            return {}
        means = bool((tokens == 0).all())
        start = self.options.model.part_token_init
        if self._is_given("part_token_init") and (start == "patch_avg") != means:
            raise SettingsError(
                f"{self.where}: model.part_token_init is {start}, but its part tokens are "
                + ("zeros, which means patch_avg" if means else "not zeros: they were learned")
            )
        if means != (start == "patch_avg"):
            start = "patch_avg" if means else "random"
        norms = any(f".{n}." in name for name in self.weights for n in ("ln_attn1", "ln_mlp")
                    if name.startswith(MASK_PREDICTOR))  # fmt: skip
        asked = self.options.model.predictor_layer_norm
        if self._is_given("predictor_layer_norm") and asked != norms:
            raise SettingsError(
                f"{self.where}: model.predictor_layer_norm is {str(asked).lower()}, but its mask "
                f"predictor has {'' if norms else 'no '}LayerNorms"
            )
        self._decide("part_token_init", start, "the file" if means else "the recipe")
        self._decide("predictor_layer_norm", norms, "the file")
        return {"part_token_init": start, "predictor_layer_norm": norms}

    def normalisation(self, sidecar: SidecarConfig) -> dict[str, Any]:
        """Mean and std: the user's, the file's, OpenAI's for a plain CLIP, or the recipe's."""
        inferred = {}
        for name, own, openai in (
            ("mean", sidecar.mean, OPENAI_MEAN),
            ("std", sidecar.std, OPENAI_STD),
        ):
            if self._is_given(name):
                inferred[name] = self._decide(name, getattr(self.options.model, name), "given")
            elif own is not None and not self.form.fixed_grid:
                inferred[name] = self._decide(name, tuple(own), "beside the file")
            elif not self.form.fixed_grid:
                inferred[name] = self._decide(name, tuple(openai), "assumed")
            else:
                inferred[name] = self._decide(name, getattr(self.options.model, name), "the recipe")
        return inferred

    def quick_gelu(self, sidecar: SidecarConfig) -> bool:
        requested = self.options.quick_gelu
        if self.form.fixed_grid:
            if requested is False:
                raise SettingsError(
                    f"{self.where}: --activation gelu, but {self.form.title} uses only quick-gelu"
                )
            self.found.append(Setting(name="activation", value="quick-gelu", origin="the form"))
            return True
        if requested is not None and sidecar.quick_gelu not in (None, requested):
            raise SettingsError(
                f"{self.where}: its config.json says "
                f"{'quick-gelu' if sidecar.quick_gelu else 'gelu'}, but --activation the opposite"
            )
        if requested is not None:
            value, origin = requested, "given"
        elif sidecar.quick_gelu is not None:
            value, origin = sidecar.quick_gelu, "beside the file"
        else:
            value, origin = True, "assumed"
        name = "quick-gelu" if value else "gelu"
        self.found.append(Setting(name="activation", value=name, origin=cast(Origin, origin)))
        return value

    def prompts(self) -> PromptConfig:
        prompts, contexts = self.options.prompts, self.weights.get(CONTEXTS)
        if contexts is None:
            return prompts
        tokens = contexts.shape[2]
        if "context_tokens" in prompts.model_fields_set and prompts.context_tokens != tokens:
            raise SettingsError(
                f"{self.where}: its contexts have {tokens} tokens, but prompts.context_tokens is "
                f"{prompts.context_tokens}: set it to {tokens}"
            )
        self.found.append(Setting(name="prompts.context_tokens", value=tokens, origin="the file"))
        return PromptConfig.model_validate(prompts.model_dump() | {"context_tokens": tokens})

    def identities(self, parts: int) -> int:
        """The number of identities with a class or a context; 0 if the file has neither."""
        counts = {
            name: len(self.weights[name]) for name in (CLASSIFIER, CONTEXTS) if name in self.weights
        }
        if len(set(counts.values())) > 1:
            raise MuvaError(
                f"{self.where}: its classifier has {counts[CLASSIFIER]} identities, but its "
                f"prompts {counts[CONTEXTS]}: expected the same number; two "
                f"checkpoints may be mixed"
            )
        projection = self.weights[f"{VISUAL}proj"]
        width = (1 + parts) * projection.shape[1]
        neck = self.weights.get(f"{BN_NECK}weight")
        if neck is not None and self.form.has_parts and len(neck) != width:
            raise MuvaError(
                f"{self.where}: its BN neck is {len(neck)} wide, but {1 + parts} grains of "
                f"{projection.shape[1]} are {width}: the file contradicts itself"
            )
        return next(iter(counts.values()), 0)

    def from_recipe(self, name: str) -> None:
        """Take a setting that weights do not record from the user's options or the recipe."""
        origin: Origin = "given" if self._is_given(name) else "the recipe"
        self._decide(name, getattr(self.options.model, name), origin)

    def _decide(self, name: str, value: Any, origin: Origin) -> Any:
        self.found.append(Setting(name=f"model.{name}", value=value, origin=origin))
        return value

    def _is_given(self, name: str) -> bool:
        return name in self.options.model.model_fields_set

    @property
    def _size(self) -> str:
        return f"{self.options.model.image_height} x {self.options.model.image_width}"

    def _grid(self, patch: int, stride: int) -> tuple[int, int]:
        size = (self.options.model.image_height, self.options.model.image_width)
        if stride > patch or min(size) < patch:
            raise SettingsError(
                f"{self.where}: its patches are {patch} pixels: expected a model.stride of 1 to "
                f"{patch} and images of at least {patch} pixels, found {stride} at {self._size}"
            )
        return patch_grid(size, patch=patch, stride=stride)

    def _file_grid(
        self, patches: int, grid: tuple[int, int], sidecar: SidecarConfig
    ) -> tuple[int, int]:
        """The user's grid, the one in the file's configuration, a square one, or the model's."""
        side = round(patches**0.5)
        found = self.options.grid or sidecar.grid
        if found is None:
            found = (side, side) if side * side == patches else grid
        if _count(found) != patches:
            raise SettingsError(
                f"{self.where}: its position embedding has {patches} patches, which are neither "
                f"{found[0]} x {found[1]} nor square: give their grid with --grid ROWSxCOLUMNS"
            )
        return found

    def _other_grid(self, patches: int, patch: int, fitting: Collection[int]) -> str:
        stride = self.options.model.stride
        at = ""
        if stride <= patch:
            rows, columns = self._grid(patch, stride)
            at = f"; stride {stride} gives {rows} x {columns} = {rows * columns}"
        remedy = (
            f"use --set model.stride={max(fitting)}"
            if fitting
            else "set the size of its images with --set model.image_height=… and "
            "--set model.image_width=…"
        )
        return (
            f"{self.where}: its position embedding has {patches} patches (of {patch} pixels)"
            f"{at} at {self._size}: {remedy}"
        )


def _count(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]
