"""The contact sheet of all synthetic domains."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muva.config import PARTS
from muva.synthetic import DOMAINS, render, sheet
from muva.synthetic.surface import PART_VALUES

HEIGHT, WIDTH = 64, 32


def test_the_sheet_has_a_block_of_each_domain_with_its_cameras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "docs" / "sheet.png"
    words = ["sheet", "--out", str(file), "--people", "2", "--first", "3", "--height", f"{HEIGHT}"]
    monkeypatch.setattr(sys, "argv", words)
    sheet.main()
    with Image.open(file) as drawn:
        size, pixels = drawn.size, np.asarray(drawn.convert("RGB"), np.int16)
    assert f"{file}: {size[0]} x {size[1]}" in capsys.readouterr().out
    cameras = next(iter(DOMAINS.values())).cameras
    block = (2 * WIDTH, sheet._TITLE_PX + (cameras + 1) * HEIGHT)
    rows = -(-len(DOMAINS) // 2)
    assert size == tuple(
        count * length + (count - 1) * sheet._GAP_PX
        for count, length in zip((2, rows), block, strict=True)
    )
    # The first image is that of the first domain's first camera, but for the reduced palette.
    first = render(next(iter(DOMAINS)), pid=3, camid=1, index=0, height=HEIGHT, width=WIDTH)
    shown = pixels[sheet._TITLE_PX : sheet._TITLE_PX + HEIGHT, :WIDTH]
    assert np.abs(shown - first.image).mean() < 20


def test_the_parts_of_an_image_are_tinted_in_their_colours() -> None:
    shot = render(next(iter(DOMAINS)), pid=1, camid=1, index=0, height=HEIGHT, width=WIDTH)
    tinted = sheet._tinted(shot.image, shot.part_map)
    for part in PARTS:
        where = shot.part_map == PART_VALUES[part]
        expected = 0.45 * shot.image[where] + 0.55 * np.array(sheet.PART_COLOURS[part])
        assert where.any()
        assert np.abs(tinted[where] - expected).max() <= 1
    assert np.asarray(sheet.labelled(shot)).shape == (HEIGHT, WIDTH, 3)
