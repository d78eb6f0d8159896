"""Figures for MLflow: ranked galleries, and part masks and attention over images.

Symbols and names complement colours for correct and wrong matches and for parts. Sheets of people
are composed with PIL; curves are matplotlib figures that do not use matplotlib's global state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tracking.privacy import fit_to_show

Picture = np.ndarray | Image.Image
Box = tuple[int, int, int, int]

INK = "#1f2933"
MUTED = "#6b7785"
FAINT = "#e4e8ec"
PAPER = "#ffffff"
RIGHT = "#1f9d61"
WRONG = "#d6455d"
PART_COLOURS = ("#f2a900", "#2f7ed8", "#c2399e", "#2ca58d", "#7a5cd0")
CURVE_COLOURS = ("#c2399e", "#2f7ed8", "#8a94a0", "#f2a900", "#2ca58d", "#7a5cd0")

_MARGIN = 32
_GAP = 14
_BORDER = 5
_PERSON = (104, 208)
"""Width and height of a person on a sheet, in pixels."""
_CARD = (_PERSON[0] + 2 * _BORDER, _PERSON[1] + 2 * _BORDER)
_CAPTION = 42
_CAPTION_LINE = 26
_MASK_STRENGTH = 0.55


@dataclass(frozen=True, kw_only=True)
class Person:
    """One image of a person: uint8 (H, W, 3) or PIL."""

    image: Picture
    pid: int
    camid: int | None = None


@dataclass(frozen=True, kw_only=True)
class RankedQuery:
    """A query with its top gallery images, best match first."""

    query: Person
    matches: Sequence[Person]
    average_precision: float | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A search result: uint8 (H, W, 3) or PIL."""

    image: Picture
    name: str
    similarity: float
    pid: int | None = None
    camid: int | None = None


def ranked_gallery(
    queries: Sequence[RankedQuery], *, title: str = "Ranked gallery", subtitle: str = ""
) -> Image.Image:
    """One row per query with its top matches: a tick marks the same person, a cross another one.

    Below each image are its pid and camera.
    """
    if not queries:
        raise ValueError("A ranked gallery needs at least one query")
    width, height = _CARD
    columns = max(len(row.matches) for row in queries)
    left = _MARGIN + width + 3 * _GAP
    top = _header_height(subtitle) + 30
    row_height = height + _CAPTION + _GAP
    sheet, draw = _sheet(
        left + columns * (width + _GAP) - _GAP + _MARGIN,
        top + len(queries) * row_height - _GAP + _MARGIN,
        title=title,
        subtitle=subtitle,
    )
    _text(draw, (_MARGIN + width // 2, top - 18), "query", size=14, colour=MUTED, anchor="mm")
    for column in range(columns):
        middle = left + column * (width + _GAP) + width // 2
        _text(draw, (middle, top - 18), str(column + 1), size=14, colour=MUTED, anchor="mm")
    for number, row in enumerate(queries):
        y = top + number * row_height
        ap = row.average_precision
        note = "" if ap is None or math.isnan(ap) else f"AP {100 * ap:.0f} %"
        _person(sheet, draw, row.query, at=(_MARGIN, y), colour=INK, note=note)
        x = left - 2 * _GAP + 4
        draw.line((x, y, x, y + height + _CAPTION - 6), fill=FAINT, width=2)
        for column, match in enumerate(row.matches):
            right = match.pid == row.query.pid
            at = (left + column * (width + _GAP), y)
            _person(sheet, draw, match, at=at, colour=RIGHT if right else WRONG)
            _badge(draw, (at[0] + width - 13, at[1] + 13), right=right)
    return sheet


def search_sheet(
    query: Picture,
    found: Sequence[Found],
    *,
    pid: int | None = None,
    title: str = "Search",
    subtitle: str = "",
    per_row: int = 10,
) -> Image.Image:
    """A query and its search results in rows, most similar first.

    Above each result is its rank; below it are the similarity, then pid and camera, or the name if
    the pid is unknown. Correct and wrong matches are marked if both pids are known.
    """
    width, height = _CARD
    per_row = max(1, min(per_row, len(found)))
    left = _MARGIN + width + 3 * _GAP
    top = _header_height(subtitle) + 30
    row_height = height + _CAPTION + _GAP + 26
    rows = max(1, -(-len(found) // per_row))
    sheet, draw = _sheet(
        left + per_row * (width + _GAP) - _GAP + _MARGIN,
        top + rows * row_height - _GAP - 26 + _MARGIN,
        title=title,
        subtitle=subtitle,
    )
    _text(draw, (_MARGIN + width // 2, top - 18), "query", size=14, colour=MUTED, anchor="mm")
    name = "" if pid is None else f"{pid:04d}"
    _card(sheet, draw, query, at=(_MARGIN, top), colour=INK, title=name)
    x = left - 2 * _GAP + 4
    draw.line((x, top, x, top + (rows - 1) * row_height + height), fill=FAINT, width=2)
    for number, one in enumerate(found):
        row, column = divmod(number, per_row)
        at = (left + column * (width + _GAP), top + row * row_height)
        middle = (at[0] + width // 2, at[1] - 18)
        _text(draw, middle, str(number + 1), size=14, colour=MUTED, anchor="mm")
        known = pid is not None and one.pid is not None
        colour = MUTED if not known else RIGHT if one.pid == pid else WRONG
        below = _shortened(one.name, size=12, longest=width)
        if one.pid is not None:
            below = f"{one.pid:04d}" + ("" if one.camid is None else f"  ·  cam {one.camid}")
        _card(
            sheet,
            draw,
            one.image,
            at=at,
            colour=colour,
            title=f"{one.similarity:.3f}",
            below=below,
        )
        if known:
            _badge(draw, (at[0] + width - 13, at[1] + 13), right=one.pid == pid)
    return sheet


def part_mask_sheet(
    images: Sequence[Picture],
    masks: Mapping[str, np.ndarray],
    *,
    grid: tuple[int, int],
    parts: Sequence[str],
    title: str = "Part masks",
    subtitle: str = "",
    captions: Sequence[str] | None = None,
    people_per_row: int = 4,
) -> Image.Image:
    """Images, each followed by copies with its masks of each kind as an overlay.

    masks: name (`pseudo-label`, `predicted`) -> bool (images, parts, patches), row-major over the
    patch grid (rows, columns), True = the patch belongs to the part.
    """
    shape = (len(images), len(parts), grid[0] * grid[1])
    for name, mask in masks.items():
        if mask.shape != shape:
            raise ValueError(f"masks {name}: received the shape {mask.shape}, expected {shape}")
    width, height = _PERSON
    views = 1 + len(masks)
    people_per_row = min(people_per_row, len(images))
    group_width = views * width + (views - 1) * 4
    group_height = height + _CAPTION_LINE
    top = _header_height(subtitle) + 40
    rows = -(-len(images) // people_per_row)
    sheet, draw = _sheet(
        2 * _MARGIN + people_per_row * (group_width + 2 * _GAP) - 2 * _GAP,
        top + rows * (group_height + _GAP) - _GAP + _MARGIN,
        title=title,
        subtitle=subtitle,
    )
    _legend(draw, (_MARGIN, top - 32), parts)
    for number, image in enumerate(images):
        column, row = number % people_per_row, number // people_per_row
        x = _MARGIN + column * (group_width + 2 * _GAP)
        y = top + row * (group_height + _GAP)
        fitted = _stretched(image)
        sheet.paste(fitted, (x, y))
        if captions:
            middle = (x + width // 2, y + height + 12)
            caption = _shortened(captions[number], size=13, longest=width)
            _text(draw, middle, caption, size=13, colour=INK, anchor="mm")
        for view, (name, mask) in enumerate(masks.items(), start=1):
            at = x + view * (width + 4)
            sheet.paste(_masked(fitted, mask[number], grid), (at, y))
            middle = (at + width // 2, y + height + 12)
            _text(draw, middle, name, size=13, colour=MUTED, anchor="mm")
    return sheet


def attention_sheet(
    images: Sequence[Picture],
    attention: np.ndarray,
    *,
    grid: tuple[int, int],
    tokens: Sequence[str],
    title: str = "Attention",
    subtitle: str = "",
    people_per_row: int = 3,
) -> Image.Image:
    """Images, each followed by an attention map for each token; brighter means more attention.

    attention: (images, tokens, patches), row-major over the patch grid. Each map is scaled to its
    own maximum.
    """
    shape = (len(images), len(tokens), grid[0] * grid[1])
    if attention.shape != shape:
        raise ValueError(f"attention: received the shape {attention.shape}, expected {shape}")
    width, height = _PERSON
    views = 1 + len(tokens)
    people_per_row = min(people_per_row, len(images))
    group_width = views * width + (views - 1) * 4
    top = _header_height(subtitle) + 8
    rows = -(-len(images) // people_per_row)
    sheet, draw = _sheet(
        2 * _MARGIN + people_per_row * (group_width + 2 * _GAP) - 2 * _GAP,
        top + rows * (height + _CAPTION_LINE + _GAP) - _GAP + _MARGIN,
        title=title,
        subtitle=subtitle,
    )
    for number, image in enumerate(images):
        column, row = number % people_per_row, number // people_per_row
        x = _MARGIN + column * (group_width + 2 * _GAP)
        y = top + row * (height + _CAPTION_LINE + _GAP)
        fitted = _stretched(image)
        sheet.paste(fitted, (x, y))
        for view, name in enumerate(tokens, start=1):
            at = x + view * (width + 4)
            sheet.paste(_heated(fitted, attention[number, view - 1].reshape(grid)), (at, y))
            middle = (at + width // 2, y + height + 12)
            _text(draw, middle, name.replace("_", " "), size=13, colour=MUTED, anchor="mm")
    return sheet


def boxed_image(
    image: Picture,
    boxes: Mapping[str, tuple[float, float, float, float]],
    *,
    parts: Sequence[str],
    height: int = 512,
) -> Image.Image:
    """An image with the boxes of its parts (x0, y0, x1, y1 as fractions) in their colours."""
    whole = _pil(image)
    width = max(1, round(whole.width * height / whole.height))
    left, top = _MARGIN, _MARGIN + 34
    legend = sum(34 + 2 * _GAP + int(_font(14).getlength(part)) for part in parts)
    sheet = Image.new("RGB", (2 * _MARGIN + max(width, legend), top + height + _MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _legend(draw, (_MARGIN, _MARGIN), parts)
    sheet.paste(whole.resize((width, height), Image.Resampling.BICUBIC), (left, top))
    for part, (x0, y0, x1, y1) in boxes.items():
        corners = (
            left + round(x0 * (width - 1)),
            top + round(y0 * (height - 1)),
            left + round(x1 * (width - 1)),
            top + round(y1 * (height - 1)),
        )
        draw.rectangle(corners, outline=_part_colour(parts.index(part)), width=4)
    return sheet


def part_distributions(values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    """Histograms of box areas and vertical centres by part, as fractions of the image."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
    names = ("area, % of the image", "vertical centre, % from the top")
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        for column, name in enumerate(names):
            axes = figure.add_subplot(1, 2, column + 1)
            bins = list(range(0, 101, 2))
            for number, (part, shares) in enumerate(values.items()):
                axes.hist(
                    100 * shares[column],
                    bins=bins,
                    histtype="step",
                    linewidth=2,
                    linestyle=("-", "--", ":", "-.")[number % 4],
                    color=_part_colour(number),
                    label=part.replace("_", " "),
                )
            axes.set_xlabel(name, color=MUTED)
            axes.set_ylabel("images", color=MUTED)
            axes.set_xlim(0, 100)
            axes.tick_params(colors=MUTED, length=0)
            axes.grid(axis="y", color=FAINT, zorder=0)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
            axes.spines["bottom"].set_color(FAINT)
        figure.axes[0].legend(loc="upper right", frameon=False, fontsize=10)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _sheet(
    width: int, height: int, *, title: str, subtitle: str
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A blank sheet with a heading, at least as wide as the heading."""
    heading = int(_font(22, bold=True).getlength(title))
    width = max(width, 2 * _MARGIN + max(heading, int(_font(14).getlength(subtitle))))
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_MARGIN, _MARGIN), title, size=22, colour=INK, bold=True)
    if subtitle:
        _text(draw, (_MARGIN, _MARGIN + 32), subtitle, size=14, colour=MUTED)
    return sheet, draw


def _header_height(subtitle: str) -> int:
    return _MARGIN + (62 if subtitle else 40)


def _person(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    person: Person,
    *,
    at: tuple[int, int],
    colour: str,
    note: str = "",
) -> None:
    """Draw a person's card with pid and camera below."""
    camera = "" if person.camid is None else f"cam {person.camid}"
    below = "  ·  ".join(part for part in (camera, note) if part)
    title = f"{person.pid:04d}"
    _card(sheet, draw, person.image, at=at, colour=colour, title=title, below=below)


def _card(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: Picture,
    *,
    at: tuple[int, int],
    colour: str,
    title: str,
    below: str = "",
) -> None:
    """Draw an image with a border and two lines of text below it."""
    x, y = at
    width, height = _CARD
    draw.rounded_rectangle((x, y, x + width - 1, y + height - 1), radius=8, fill=colour)
    sheet.paste(_fitted(image, _PERSON), (x + _BORDER, y + _BORDER))
    middle = x + width // 2
    _text(draw, (middle, y + height + 12), title, size=14, colour=INK, anchor="mm")
    _text(draw, (middle, y + height + 29), below, size=12, colour=MUTED, anchor="mm")


def _badge(draw: ImageDraw.ImageDraw, centre: tuple[int, int], *, right: bool) -> None:
    """Draw a tick or a cross, for readers who cannot distinguish the colours of the borders."""
    x, y = centre
    radius = 9
    draw.ellipse(
        (x - radius, y - radius, x + radius, y + radius),
        fill=RIGHT if right else WRONG,
        outline=PAPER,
        width=2,
    )
    if right:
        draw.line(((x - 4, y), (x - 1, y + 3), (x + 4, y - 4)), fill=PAPER, width=2)
    else:
        draw.line(((x - 3, y - 3), (x + 3, y + 3)), fill=PAPER, width=2)
        draw.line(((x - 3, y + 3), (x + 3, y - 3)), fill=PAPER, width=2)


def _legend(draw: ImageDraw.ImageDraw, at: tuple[int, int], parts: Sequence[str]) -> None:
    x, y = at
    for index, part in enumerate(parts):
        draw.rounded_rectangle((x, y + 2, x + 13, y + 15), radius=3, fill=_part_colour(index))
        name = part.replace("_", " ")
        _text(draw, (x + 20, y + 9), name, size=14, colour=INK, anchor="lm")
        x += 20 + int(_font(14).getlength(name)) + 2 * _GAP


def _masked(image: Image.Image, mask: np.ndarray, grid: tuple[int, int]) -> Image.Image:
    """The image with an overlay of each part's patches; patches of several parts are striped."""
    rows, columns = grid
    veil = image.convert("L").convert("RGB")
    canvas = Image.blend(image, veil, 0.6)
    x_edges = [round(column * image.width / columns) for column in range(columns + 1)]
    y_edges = [round(row * image.height / rows) for row in range(rows + 1)]
    paint = canvas.copy()
    draw = ImageDraw.Draw(paint)
    for row, (top, bottom) in enumerate(pairwise(y_edges)):
        for column, (left, right) in enumerate(pairwise(x_edges)):
            owners = np.flatnonzero(mask[:, row * columns + column])
            for order, part in enumerate(owners):
                start = left + (right - left) * order // len(owners)
                end = left + (right - left) * (order + 1) // len(owners)
                box: Box = (start, top, end - 1, bottom - 1)
                draw.rectangle(box, fill=_part_colour(int(part)))
    canvas = Image.blend(canvas, paint, _MASK_STRENGTH)
    _draw_outlines(ImageDraw.Draw(canvas), mask, grid, x_edges, y_edges)
    return canvas


def _heated(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image in grey with a heat map (rows, columns) as an overlay."""
    import matplotlib

    scaled = heat / max(float(heat.max()), 1e-12)
    colours = (255 * matplotlib.colormaps["inferno"](scaled)[..., :3]).astype(np.uint8)
    paint = Image.fromarray(colours).resize(image.size, Image.Resampling.BILINEAR)
    return Image.blend(image.convert("L").convert("RGB"), paint, _MASK_STRENGTH)


def _draw_outlines(
    draw: ImageDraw.ImageDraw,
    mask: np.ndarray,
    grid: tuple[int, int],
    x_edges: Sequence[int],
    y_edges: Sequence[int],
) -> None:
    """Draw the outline of each part's mask."""
    rows, columns = grid
    for part, flat in enumerate(mask):
        inside = np.pad(flat.reshape(rows, columns), 1)
        colour = _part_colour(part)
        for row, column in np.argwhere(inside[1:, 1:-1] != inside[:-1, 1:-1]):
            y = min(y_edges[row], y_edges[-1] - 2)
            draw.line((x_edges[column], y, x_edges[column + 1] - 1, y), fill=colour, width=2)
        for row, column in np.argwhere(inside[1:-1, 1:] != inside[1:-1, :-1]):
            x = min(x_edges[column], x_edges[-1] - 2)
            draw.line((x, y_edges[row], x, y_edges[row + 1] - 1), fill=colour, width=2)


def _part_colour(index: int) -> str:
    return PART_COLOURS[index % len(PART_COLOURS)]


def _fitted(image: Picture, size: tuple[int, int]) -> Image.Image:
    """The image scaled to fit a box of that size, centred, with its aspect ratio preserved."""
    picture = _pil(image)
    scale = min(size[0] / picture.width, size[1] / picture.height)
    inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    box = Image.new("RGB", size, FAINT)
    offset = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
    box.paste(picture.resize(inner, Image.Resampling.LANCZOS), offset)
    return box


def _stretched(image: Picture) -> Image.Image:
    """The image stretched to a fixed size, like the encoder's input, so that patches match."""
    return _pil(image).resize(_PERSON, Image.Resampling.LANCZOS)


def _pil(image: Picture) -> Image.Image:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return fit_to_show(picture.convert("RGB"))


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    *,
    size: int,
    colour: str,
    anchor: str = "la",
    bold: bool = False,
) -> None:
    draw.text(at, text, font=_font(size, bold=bold), fill=colour, anchor=anchor)


def _shortened(text: str, *, size: int, longest: int) -> str:
    if _font(size).getlength(text) <= longest:
        return text
    while text and _font(size).getlength(f"{text}…") > longest:
        text = text[:-1]
    return f"{text}…"


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib includes."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", name), size)
