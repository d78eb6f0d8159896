"""Contact sheets: `python -m muva.synthetic.sheet --out FILE.png`.

One block per domain, or per network of the open world: people from left to right, up to four
cameras from top to bottom, and below them the part maps and boxes of the first camera. People with
even pids may be doubles of the person on their left.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from muva.config import PARTS
from muva.synthetic.arrays import Levels
from muva.synthetic.domain import DOMAINS, find_domain
from muva.synthetic.rendering import SyntheticImage, render
from muva.synthetic.surface import PART_VALUES

PART_COLOURS = {"head": (255, 220, 60), "upper_body": (60, 160, 255), "legs": (90, 220, 90)}
_COLUMNS, _CAMERAS = 2, 4
_GAP_PX, _TITLE_PX = 8, 22
_PAPER, _INK, _BOX = (255, 255, 255), (30, 30, 30), (255, 255, 255)
_PALETTE = 256


def main() -> None:
    """Draw the sheet of all domains."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument(
        "--domains", nargs="+", default=list(DOMAINS), help="also networks, such as syn-world-0007"
    )
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--first", type=int, default=1, help="pid of the first person")
    parser.add_argument("--height", type=int, default=192)
    arguments = parser.parse_args()
    pids = range(arguments.first, arguments.first + arguments.people)
    sheet = contact_sheet(
        pids, domains=arguments.domains, height=arguments.height, width=arguments.height // 2
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    _with_palette(sheet).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {sheet.width} x {sheet.height}")


def contact_sheet(
    pids: range, *, height: int, width: int, domains: Sequence[str] = tuple(DOMAINS)
) -> Image.Image:
    """The domains in two columns."""
    blocks = [_block(domain, pids, height, width) for domain in domains]
    rows = -(-len(blocks) // _COLUMNS)
    step_x, step_y = blocks[0].width + _GAP_PX, blocks[0].height + _GAP_PX
    sheet = Image.new("RGB", (_COLUMNS * step_x - _GAP_PX, rows * step_y - _GAP_PX), _PAPER)
    for number, block in enumerate(blocks):
        sheet.paste(block, (number % _COLUMNS * step_x, number // _COLUMNS * step_y))
    return sheet


def _block(domain: str, pids: range, height: int, width: int) -> Image.Image:
    found = find_domain(domain)
    rows = min(found.cameras, _CAMERAS) + 1
    block = Image.new("RGB", (len(pids) * width, _TITLE_PX + rows * height), _PAPER)
    title = f"{found.name}: {found.summary}"
    ImageDraw.Draw(block).text((2, 3), title, _INK, font=ImageFont.load_default(13))
    for column, pid in enumerate(pids):
        shots = [
            render(domain, pid=pid, camid=camid, index=0, height=height, width=width)
            for camid in range(1, rows)
        ]
        pictures = [*(Image.fromarray(shot.image) for shot in shots), labelled(shots[0])]
        for row, picture in enumerate(pictures):
            block.paste(picture, (column * width, _TITLE_PX + row * height))
    return block


def _with_palette(sheet: Image.Image) -> Image.Image:
    """Reduced to a few colours with dithering, because the noise of the images compresses badly."""
    palette = sheet.quantize(_PALETTE, kmeans=1)
    return sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def labelled(shot: SyntheticImage) -> Image.Image:
    """The image with its part map as an overlay, and the boxes of the parts."""
    height, width = shot.part_map.shape
    picture = Image.fromarray(_tinted(shot.image, shot.part_map))
    draw = ImageDraw.Draw(picture)
    for box in shot.boxes.values():
        if box is not None:
            left, top, right, bottom = np.multiply(box, (width, height, width, height))
            draw.rectangle((left, top, right - 1, bottom - 1), outline=_BOX)
    return picture


def _tinted(image: Levels, part_map: Levels) -> Levels:
    colours = np.zeros((len(PARTS) + 1, 3))
    for part in PARTS:
        colours[PART_VALUES[part]] = PART_COLOURS[part]
    return (0.45 * image + 0.55 * colours[part_map]).astype(np.uint8)


if __name__ == "__main__":
    main()
