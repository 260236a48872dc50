"""Screens as PNG images, drawn from their names alone: no system fonts, no files. Needs Pillow."""

from __future__ import annotations

import io
from functools import lru_cache

from gymrl.envs.gui_navigation.graph import BAR, Box, Graph, Icon
from gymrl.envs.records import stable_hash

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError as error:
    raise ImportError(
        f'drawing screens needs Pillow ({error}): pip install "gymrl[gui]", or take observation = "text"'
    ) from error

PAPER, INK, BARS, FAINT = (250, 250, 247), (30, 32, 38), (44, 62, 90), (222, 226, 232)
GRID = 5
"""An icon's picture has GRID x GRID cells, and its right half mirrors its left."""


def draw(graph: Graph, name: str) -> bytes:
    """The PNG of a screen of the graph."""
    screen = graph.screens[name]
    image = Image.new("RGB", (graph.width, graph.height), PAPER)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, graph.width - 1, BAR - 1), fill=BARS)
    _write(image, name, Box(0, 0, graph.width, BAR), (255, 255, 255), 2)
    for button, box in graph.buttons.items():
        pen.rectangle(_corners(box), fill=BARS, outline=FAINT)
        _write(image, button, box, (255, 255, 255), 1)
    for icon in screen.icons:
        _icon(image, pen, icon)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _icon(image: Image.Image, pen: ImageDraw.ImageDraw, icon: Icon) -> None:
    box, drawn = icon.box, stable_hash("icon", icon.name)
    colour = (40 + drawn % 150, 40 + drawn // 150 % 150, 40 + drawn // 22500 % 150)
    pen.rounded_rectangle(_corners(box), min(8, box.width // 4, box.height // 4), fill=FAINT, outline=colour)
    side = min(box.width, box.height) - 10
    if box.width > 2 * box.height:  # a wide button: the picture left, the name right of it
        left = box.left + 5
        label = Box(left + side + 4, box.top, box.width - side - 12, box.height)
    else:
        left = box.left + (box.width - side) // 2
        label = Box(box.left - 20, box.top + box.height, box.width + 40, 14)
    cell = side // GRID
    for row in range(GRID):
        for column in range(GRID):
            bit = row * 3 + min(column, GRID - 1 - column)
            if cell > 0 and drawn >> (20 + bit) & 1:
                x, y = left + column * cell, box.top + 5 + row * cell
                pen.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)
    _write(image, icon.name, label, INK, 1)


def _write(image: Image.Image, text: str, box: Box, colour: tuple[int, int, int], scale: int) -> None:
    """The text in the middle of a box; what does not fit is cut. The font, which Pillow ships, knows Latin-1 alone."""
    font = _font()
    text = text.encode("latin-1", "replace").decode("latin-1")
    while len(text) > 1 and font.getlength(text) * scale > box.width:
        text = text[:-1]
    left, top, right, bottom = font.getbbox(text)
    size = max(1, int(right - left)), max(1, int(bottom - top))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    mask = mask.resize((size[0] * scale, size[1] * scale), Image.Resampling.NEAREST)
    corner = box.left + (box.width - mask.width) // 2, box.top + (box.height - mask.height) // 2
    image.paste(colour, (max(0, corner[0]), max(0, corner[1])), mask)


def _corners(box: Box) -> tuple[int, int, int, int]:
    return box.left, box.top, box.left + box.width - 1, box.top + box.height - 1


@lru_cache(1)
def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default_imagefont()
