"""The HTML report on part pseudo-labels: statistics, plausibility, and images to inspect."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

Quartiles = tuple[float, float, float]
"""First quartile, median and third quartile."""


@dataclass(frozen=True, kw_only=True)
class PartStatistics:
    """Statistics of a body part over the data set; shares are fractions from 0 to 1."""

    part: str
    found: float
    found_by_camera: Mapping[int, float]
    area: Quartiles | None
    """Fraction of the image covered by its boxes; None if it was never found."""
    centre_x: Quartiles | None
    centre_y: Quartiles | None
    disordered: float
    """Fraction of images in which it is on the wrong side of another part."""
    whole_image: float
    """Fraction of its boxes that cover more than 95 % of the image."""
    confidence: float | None
    """Median of the expert's scores, or of geometric confidences if it gives none."""
    agreement: Mapping[str, Any] | None
    """Agreement with the other label set: both, only_first, only_second, median_iou, half."""


@dataclass(frozen=True, kw_only=True)
class OverlapStatistics:
    """Overlap of two parts of the same image."""

    parts: tuple[str, str]
    median_iou: float | None
    duplicates: float
    """Fraction of pairs with the same box."""


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """An image to inspect."""

    image_id: str
    part: str
    """The part with the lowest confidence."""
    confidence: float
    why: str


@dataclass(frozen=True, kw_only=True)
class MaskStatistics:
    """Statistics of a label set that need no ground truth."""

    dataset: str
    labels: str
    """The address of the label set."""
    against: str | None
    """The address of the other label set."""
    config: Mapping[str, Any]
    images: int
    failed: int
    """How many of the images are quarantined."""
    reasons: Mapping[str, str]
    """Reasons for some of the quarantined images: image -> reason."""
    without_any: float
    """Fraction of images in which no part was found."""
    parts: Sequence[PartStatistics]
    overlaps: Sequence[OverlapStatistics]
    outliers: Sequence[Outlier]

    def metrics(self) -> dict[str, float]:
        """The metrics by which runs can be compared."""
        values: dict[str, float] = {"images": self.images, "failed": self.failed}
        for part in self.parts:
            values[f"found/{part.part}"] = part.found
            values[f"disordered/{part.part}"] = part.disordered
            if part.confidence is not None:
                values[f"confidence/{part.part}"] = part.confidence
            if part.agreement and part.agreement["median_iou"] is not None:
                values[f"agreement/{part.part}/iou"] = part.agreement["median_iou"]
        return values


def mask_report(statistics: MaskStatistics, pictures: Mapping[str, Image.Image]) -> str:
    """The HTML page; `pictures` has the keys overlays, least-trusted and distributions."""
    sections = [
        f"<h1>Part labels of {escape(statistics.dataset)}</h1>",
        _facts(statistics),
        "<h2>Found</h2>",
        _table(
            ["part", "found", "area", "centre x", "centre y", "out of order", "whole image"],
            [
                [
                    part.part,
                    _share(part.found),
                    _spread(part.area),
                    _spread(part.centre_x),
                    _spread(part.centre_y),
                    _share(part.disordered),
                    _share(part.whole_image),
                ]
                for part in statistics.parts
            ],
            note="Area and centre: median with quartiles in brackets, in per cent of the image. "
            "Out of order: the head should be above the upper body, and that above the legs.",
        ),
        _picture(pictures["distributions"], "Distributions of area and vertical position by part"),
        *_quarantined(statistics),
        *_cameras(statistics),
        "<h2>Overlap</h2>",
        _table(
            ["parts", "median IoU", "identical boxes"],
            [
                [
                    " and ".join(pair.parts),
                    "" if pair.median_iou is None else f"{pair.median_iou:.2f}",
                    _share(pair.duplicates),
                ]
                for pair in statistics.overlaps
            ],
        ),
        *_agreement(statistics),
        "<h2>Sample images</h2>",
        _picture(pictures["overlays"], "Randomly chosen images with their labels"),
        "<h2>Lowest confidence</h2>",
        f"<p>{_TRUST}</p>",
        _picture(pictures["least-trusted"], "Images with the lowest confidence"),
        _table(
            ["image", "part", "confidence", "reason"],
            [
                [one.image_id, one.part, f"{one.confidence:.2f}", one.why]
                for one in statistics.outliers
            ],
        ),
    ]
    title = escape(f"Part labels of {statistics.dataset}")
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


_TRUST = (
    "Confidence measures how typical a box's size, shape and position are in this data set: it is "
    "one half at three robust deviations, and halved again for parts out of order and for parts "
    "that share a box. It finds unusual boxes, which are not always wrong."
)

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1f2933;background:#fff;margin:0}
main{max-width:70rem;margin:0 auto;padding:2rem 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem}
table{border-collapse:collapse;margin:1rem 0}
th,td{padding:.3rem .9rem .3rem 0;text-align:left;border-bottom:1px solid #e4e8ec}
td+td,th+th{font-variant-numeric:tabular-nums}
th{color:#52606d;font-weight:600}
img{max-width:100%;height:auto;display:block;margin:1rem 0}
p,dd{color:#3e4c59}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}
dt{color:#52606d}dd{margin:0;overflow-wrap:anywhere}
@media print{h2{break-after:avoid}img,table{break-inside:avoid}}
"""


def _facts(statistics: MaskStatistics) -> str:
    facts = {
        "labels": statistics.labels,
        "made by": ", ".join(f"{k} {_plain(v)}" for k, v in statistics.config.items()),
        "images": f"{statistics.images}, of which {statistics.failed} could not be processed; "
        f"{_share(statistics.without_any)} have no part",
    }
    if statistics.against:
        facts["compared with"] = statistics.against
    entries = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{entries}</dl>"


def _quarantined(statistics: MaskStatistics) -> list[str]:
    if not statistics.reasons:
        return []
    rows = [[image_id, reason] for image_id, reason in statistics.reasons.items()]
    return ["<h2>Quarantined images</h2>", _table(["image", "reason"], rows)]


def _cameras(statistics: MaskStatistics) -> list[str]:
    cameras = sorted(statistics.parts[0].found_by_camera)
    if not cameras:
        return []
    rows = [
        [str(camera), *(_share(part.found_by_camera[camera]) for part in statistics.parts)]
        for camera in cameras
    ]
    heads = ["camera", *(part.part for part in statistics.parts)]
    return ["<h2>Found by camera</h2>", _table(heads, rows)]


def _agreement(statistics: MaskStatistics) -> list[str]:
    rows = [
        [
            part.part,
            str(part.agreement["both"]),
            "" if part.agreement["median_iou"] is None else f"{part.agreement['median_iou']:.2f}",
            "" if part.agreement["half"] is None else _share(part.agreement["half"]),
            str(part.agreement["only_first"]),
            str(part.agreement["only_second"]),
        ]
        for part in statistics.parts
        if part.agreement is not None
    ]
    if not rows:
        return []
    heads = [
        "part",
        "in both",
        "median IoU",
        "IoU of at least 0.5",
        "only here",
        "only in the other",
    ]
    return ["<h2>Agreement of the two label sets</h2>", _table(heads, rows)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def _picture(picture: Image.Image, text: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{content}">'


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _spread(values: Quartiles | None) -> str:
    if values is None:
        return ""
    low, middle, high = (f"{100 * value:.1f}" for value in values)
    return f"{middle} ({low} to {high})"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
