"""The colours of cloth, skin and hair by name: RGB albedo, 0 to 255."""

from __future__ import annotations

RGB = tuple[float, float, float]

CLOTH: dict[str, RGB] = {
    "black": (28, 28, 32),
    "white": (228, 228, 224),
    "grey": (125, 127, 130),
    "dark grey": (70, 72, 76),
    "navy": (30, 38, 78),
    "blue": (45, 85, 175),
    "light blue": (140, 180, 220),
    "red": (180, 32, 38),
    "dark red": (105, 22, 32),
    "green": (45, 115, 62),
    "olive": (95, 98, 58),
    "yellow": (222, 188, 50),
    "orange": (222, 115, 38),
    "pink": (225, 145, 165),
    "purple": (102, 58, 135),
    "brown": (100, 68, 46),
    "beige": (198, 178, 145),
    "khaki": (160, 142, 100),
    "teal": (30, 125, 130),
    "denim": (62, 82, 118),
}

SKIN: tuple[RGB, ...] = (
    (236, 200, 175),
    (224, 178, 148),
    (198, 148, 115),
    (160, 112, 82),
    (118, 78, 56),
    (82, 54, 40),
)
"""From light to dark."""

HAIR: dict[str, RGB] = {
    "black": (24, 21, 22),
    "dark brown": (52, 36, 28),
    "brown": (92, 62, 42),
    "blond": (188, 152, 95),
    "grey": (150, 148, 146),
    "red": (130, 62, 34),
}
