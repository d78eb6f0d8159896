"""The settings of the augmentation of stage 2's training images.

`muva.data.augmentation` applies them.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from muva.config.section import Fraction, Positive, Section

Share = Annotated[float, Field(gt=0, lt=1)]
Quality = Annotated[int, Field(ge=1, le=100)]

STRENGTHS: dict[str, tuple[str, ...]] = {
    "pad": (),
    "jitter": ("brightness", "contrast", "saturation", "hue"),
    "gamma": (),
    "cast": (),
    "grey": (),
    "blur": ("blur_sigma",),
    "low_resolution": ("low_resolution_scale",),
    "sharpen": ("sharpen_amount",),
    "jpeg": ("jpeg_quality",),
    "erase": ("erase_area", "erase_aspect"),
}
"""Setting that switches an augmentation on -> the settings that are used only then."""


class AugmentationConfig(Section):
    """What stage 2 does to its training images apart from flipping them; by default nothing.

    A probability is that of each image to be altered. Pixels are those of an image of the model,
    `model.image_height` x `model.image_width`.
    """

    pad: Annotated[int, Field(ge=0)] = 0
    """Pixels by which an image is padded with black on each side before it is cropped at random to
    its size, as by Luo et al., CVPR Workshops 2019, with 10 pixels at 256 x 128."""
    jitter: Fraction = 0.0
    """Probability of a change of brightness, contrast, saturation and hue. The strengths of these
    are FastReID's (He et al., ACM MM 2023)."""
    brightness: Fraction = 0.15
    """Largest relative change, as of contrast and saturation: 0.15 is a factor of 0.85 to 1.15."""
    contrast: Fraction = 0.15
    saturation: Fraction = 0.1
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest rotation of hue, in turns of the colour circle."""
    gamma: Annotated[float, Field(ge=1)] = 1.0
    """Largest factor g of the exponent, drawn for each image log-uniformly from 1 / g to g."""
    cast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative gain of each colour channel, drawn for each image and channel."""
    grey: Fraction = 0.0
    """Probability of losing all colour."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[Positive, Positive] = (0.5, 1.5)
    """Its standard deviation in pixels, from the least to the most."""
    low_resolution: Fraction = 0.0
    """Probability of being reduced in size and enlarged again, with JPEG artefacts in between."""
    low_resolution_scale: Share = 0.5
    """The smallest scale; scales are drawn uniformly from it to 1."""
    sharpen: Fraction = 0.0
    """Probability of an unsharp mask of one pixel, which leaves halos at edges as cameras do."""
    sharpen_amount: Positive = 1.0
    """Its largest amount: how much of the difference from the blurred image is added."""
    jpeg: Fraction = 0.0
    """Probability of JPEG artefacts."""
    jpeg_quality: tuple[Quality, Quality] = (30, 90)
    """The quality from the least to the most, as libjpeg counts it, from 1 to 100."""
    erase: Fraction = 0.0
    """Probability of a rectangle of noise, which is random erasing (Zhong et al., AAAI 2020)."""
    erase_area: tuple[Share, Share] = (0.02, 0.4)
    """The rectangle's share of the image's area, from the least to the most."""
    erase_aspect: tuple[Positive, Positive] = (0.3, 3.33)
    """The rectangle's height divided by its width, from the least to the most."""

    @field_validator("blur_sigma", "jpeg_quality", "erase_area", "erase_aspect")
    @classmethod
    def _ascending(cls, ends: tuple[float, float]) -> tuple[float, float]:
        least, most = ends
        if least > most:
            raise ValueError(
                f"expected the least value before the most, as in [{most}, {least}], found "
                f"[{least}, {most}]"
            )
        return ends

    @model_validator(mode="after")
    def _jitter_has_an_effect(self) -> Self:
        if self.jitter and not any(getattr(self, name) for name in STRENGTHS["jitter"]):
            raise ValueError(
                f"jitter is {self.jitter}, but brightness, contrast, saturation and hue are all 0, "
                "so that it would have no effect: raise one of them, or set jitter=0"
            )
        return self

    def result_settings(self) -> dict[str, Any]:
        """The settings in effect: of augmentations that are off, nothing decides a result."""
        settings, default = self.model_dump(mode="json"), AugmentationConfig()
        return {
            name: settings[name]
            for switch, strengths in STRENGTHS.items()
            if getattr(self, switch) != getattr(default, switch)
            for name in (switch, *strengths)
        }

    def as_section(self) -> dict[str, Any]:
        """The entry of this section in the settings that an address is computed from.

        It is empty while everything is off, so that addresses are those of models that were trained
        before this section existed.
        """
        settings = self.result_settings()
        return {"augmentation": settings} if settings else {}
