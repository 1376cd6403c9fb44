"""The pictures: every token cell shows one tile of a shape or glyph atlas over the background."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .domain import BACKGROUNDS, COLOR_NAMES, COLORS, GLYPHS, LARGE, MEDIUM, SHAPES, SMALL, Scene

CELL = 16
_FINE = 8  # supersampling of the atlas
_INSET = 2.0  # pixels between a shape and the edge of its cells
FONT = "DejaVuSansMono-Bold.ttf"
FONT_FOLDERS = (Path(__file__).parent, Path("/usr/share/fonts/truetype/dejavu"))
FONT_PIXELS = 20
STEP = {"none": 0, "down": 1, "right": 2}
BACKGROUND_INDEX = {name: i for i, name in enumerate(BACKGROUNDS)}
COLOR_INDEX = {name: i for i, name in enumerate(COLOR_NAMES)}
# First tile of each shape and size; tile 0 is empty.
TILE = {}
_next = 1
for _shape in SHAPES:
    for _size in (SMALL, MEDIUM, LARGE):
        TILE[_shape, _size] = _next
        _next += _size * _size
FIRST_GLYPH = _next
TILES = FIRST_GLYPH + len(GLYPHS)


def _polygon(shape: str, side: float) -> list[tuple[float, float]]:
    """Corners on a square of `side`, in units of pixels."""
    if shape == "triangle":
        unit = [(0.5, 0.03), (1.0, 0.95), (0.0, 0.95)]
    elif shape == "diamond":
        unit = [(0.5, 0.0), (0.92, 0.5), (0.5, 1.0), (0.08, 0.5)]
    elif shape == "star":
        turn = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, 0.52, 0.22)
        unit = list(zip(0.5 + radius * np.cos(turn), 0.53 + radius * np.sin(turn)))
    else:  # heart
        t = np.linspace(0, 2 * np.pi, 200)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        unit = list(zip(0.5 + x / 34, 0.47 - y / 34))
    return [(x * side, y * side) for x, y in unit]


@cache
def sprite(shape: str, size: int) -> np.ndarray:
    """Coverage of a shape that is `size` cells wide and high, `[16 size, 16 size]`."""
    pixels = size * CELL
    image = Image.new("L", (pixels * _FINE, pixels * _FINE))
    draw, inset = ImageDraw.Draw(image), _INSET * _FINE
    side = pixels * _FINE - 2 * inset
    box = (inset, inset, inset + side - 1, inset + side - 1)
    if shape == "circle":
        draw.ellipse(box, fill=255)
    elif shape == "square":
        edge = 0.05 * side
        draw.rectangle((inset + edge, inset + edge, inset + side - edge, inset + side - edge), fill=255)
    else:
        draw.polygon([(x + inset, y + inset) for x, y in _polygon(shape, side)], fill=255)
    return np.asarray(image.resize((pixels, pixels), Image.BOX), np.float32) / 255


@cache
def glyphs() -> np.ndarray:
    """Coverage of the glyphs, `[glyphs, 16, 16]`."""
    found = [folder / FONT for folder in FONT_FOLDERS if (folder / FONT).exists()]
    if not found:
        raise FileNotFoundError(f"{FONT} (Debian: fonts-dejavu-core) is in none of {', '.join(map(str, FONT_FOLDERS))}")
    path = found[0]
    font = ImageFont.truetype(str(path), FONT_PIXELS * 4)
    cells = []
    for glyph in GLYPHS:
        image = Image.new("L", (CELL * 4, CELL * 4))
        draw = ImageDraw.Draw(image)
        draw.text((CELL * 2, CELL * 4 - 4), glyph, font=font, fill=255, anchor="ms")
        cells.append(np.asarray(image.resize((CELL, CELL), Image.BOX), np.float32) / 255)
    return np.stack(cells)


@cache
def atlas() -> np.ndarray:
    """Coverage of every tile, `[TILES, 16, 16]`."""
    tiles = np.zeros((TILES, CELL, CELL), np.float32)
    for (shape, size), first in TILE.items():
        cut = sprite(shape, size).reshape(size, CELL, size, CELL).swapaxes(1, 2)
        tiles[first : first + size * size] = cut.reshape(-1, CELL, CELL)
    tiles[FIRST_GLYPH:] = glyphs()
    return tiles


def cells(scene: Scene) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Tiles and colours `[height, width]`, and the background (kind, first, last)."""
    tiles = np.zeros((scene.height, scene.width), np.int16)
    colors = np.zeros((scene.height, scene.width), np.uint8)
    for s in scene.shapes:
        block = np.s_[s.row : s.row + s.size, s.col : s.col + s.size]
        first = TILE[s.shape, s.size]
        tiles[block] = np.arange(first, first + s.size**2).reshape(s.size, s.size)
        colors[block] = COLOR_INDEX[s.color]
    for line in scene.lines:
        start = (scene.width - len(line.text)) // 2
        for col, glyph in enumerate(line.text, start):
            if glyph != " ":
                tiles[line.row, col] = FIRST_GLYPH + GLYPHS.index(glyph)
                colors[line.row, col] = COLOR_INDEX[line.color]
    ends = (scene.background[0], scene.background[-1])
    return tiles, colors, (STEP[scene.gradient], *(BACKGROUND_INDEX[name] for name in ends))


class Renderer(torch.nn.Module):
    """Draws batches of cells on a device."""

    def __init__(self):
        super().__init__()
        self.register_buffer("atlas", torch.from_numpy(atlas()))
        self.register_buffer("ink", torch.tensor(list(COLORS.values())) / 127.5 - 1)
        self.register_buffer("ground", torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1)

    def forward(self, tiles, colors, background, jitter=0.0):
        """`[B, h, w]`, `[B, h, w]`, `[B, 3]` to pictures `[B, 3, 16 h, 16 w]` in -1..1; `jitter`
        moves the colours of ink and background of half the pictures."""
        batch, high, wide = tiles.shape
        cover = self.atlas[tiles.long()].permute(0, 1, 3, 2, 4).reshape(batch, 1, high * CELL, wide * CELL)
        ink = self.ink[colors.long()].permute(0, 3, 1, 2)
        half = jitter * (torch.rand(batch, 1, device=tiles.device) < 0.5)
        moves = half * torch.randn(batch, 6, device=tiles.device)
        ink = ink + moves[:, :3, None, None]
        ink = ink.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
        kind, ends = background[:, 0].long(), self.ground[background[:, 1:].long()]
        down = torch.linspace(0, 1, high * CELL, device=tiles.device).view(1, -1, 1)
        right = torch.linspace(0, 1, wide * CELL, device=tiles.device).view(1, 1, -1)
        way = (kind == 1).view(-1, 1, 1) * down + (kind == 2).view(-1, 1, 1) * right
        ground = torch.lerp(ends[:, 0, :, None, None], ends[:, 1, :, None, None], way.unsqueeze(1))
        return torch.lerp(ground + moves[:, 3:, None, None], ink, cover)


def draw(scene: Scene) -> Image.Image:
    """The picture of one scene."""
    tiles, colors, background = cells(scene)
    parts = (torch.from_numpy(tiles)[None], torch.from_numpy(colors)[None], torch.tensor([background]))
    picture = Renderer()(*parts)[0].permute(1, 2, 0)
    return Image.fromarray(((picture + 1) * 127.5).round().clamp(0, 255).byte().numpy())
