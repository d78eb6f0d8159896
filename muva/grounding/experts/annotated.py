"""The expert that returns the exact boxes of the data set, as synthetic data sets have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muva.config import PARTS
from muva.errors import MuvaError
from muva.grounding.expert import Grounding, GroundingImage


class AnnotatedExpert:
    """Answers with the boxes of the data set itself."""

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`. Raises MuvaError for a part or an image without boxes."""
        unknown = [part for part in phrases if part not in PARTS]
        if unknown:
            raise MuvaError(
                f"expert annotated: expected the parts {', '.join(PARTS)}, found "
                f"{', '.join(unknown)}. Choose another expert, which finds what a phrase describes"
            )
        return [
            [Grounding(box=_boxes(image)[part], answer="annotated") for part in phrases]
            for image in images
        ]


def _boxes(image: GroundingImage) -> Mapping[str, tuple[float, float, float, float] | None]:
    if image.annotated is None:
        raise MuvaError(
            f"expert annotated: {image.image_id} has no boxes of its parts. Choose another expert, "
            "or import a manifest with boxes"
        )
    return image.annotated
