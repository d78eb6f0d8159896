"""The expert that knows: exact boxes that came with the data, as rendered people have them."""

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
        """See `Expert`; MuvaError for a part or an image without boxes."""
        unknown = [part for part in phrases if part not in PARTS]
        if unknown:
            raise MuvaError(
                f"expert annotated: knows {', '.join(PARTS)}, not {', '.join(unknown)}; another "
                "expert finds what a phrase describes"
            )
        return [
            [Grounding(box=_boxes(image)[part], answer="annotated") for part in phrases]
            for image in images
        ]


def _boxes(image: GroundingImage) -> Mapping[str, tuple[float, float, float, float] | None]:
    if image.annotated is None:
        raise MuvaError(
            f"expert annotated: {image.image_id} came without boxes of its parts. Choose an expert "
            "that looks at the image, or a manifest with boxes"
        )
    return image.annotated
