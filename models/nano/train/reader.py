"""The recogniser that rewards are read with: tiles and colours of every cell, and the background."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .domain import BACKGROUND_NAMES, COLOR_NAMES, GLYPHS
from .tiles import FIRST_GLYPH, TILE, TILES

KINDS = ("none", "down", "right")
_ORIGIN = {
    first + i: (shape, size, i // size, i % size) for (shape, size), first in TILE.items() for i in range(size * size)
}


class Reader(nn.Module):
    """Pictures `[B, 3, 16h, 16w]` to logits of tiles and colours `[B, h, w, ...]` and of the
    background's kind, first and last colour."""

    def __init__(self, width=192):
        super().__init__()
        self.cells = nn.Sequential(
            nn.Conv2d(3, 64, 4, 4), nn.GELU(), nn.Conv2d(64, 64, 3, padding=1), nn.GELU(),
            nn.Conv2d(64, width, 4, 4), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
        )  # fmt: skip
        self.tile, self.color = nn.Linear(width, TILES), nn.Linear(width, len(COLOR_NAMES))
        self.ground = nn.Sequential(nn.Linear(12, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(),
                                    nn.Linear(128, 3 + 2 * len(BACKGROUND_NAMES)))  # fmt: skip

    def forward(self, pictures):
        x = self.cells(pictures).permute(0, 2, 3, 1)
        corners = [
            pictures[..., y, x].mean((2, 3))
            for y in (slice(0, 3), slice(-3, None))
            for x in (slice(0, 3), slice(-3, None))
        ]
        ground = self.ground(torch.cat(corners, 1))
        return self.tile(x), self.color(x), ground.split((3, len(BACKGROUND_NAMES), len(BACKGROUND_NAMES)), -1)


def blur(pictures):
    """Light random blur, noise and brightness, as decoding may add."""
    batch = len(pictures)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = 0.6 * torch.rand(batch, 1, 1, 1, device=pictures.device)
    noise = 0.06 * torch.rand(batch, 1, 1, 1, device=pictures.device) * torch.randn_like(pictures)
    shift = 0.04 * torch.randn(batch, 3, 1, 1, device=pictures.device)
    return torch.lerp(pictures, soft, mix) + noise + shift


def parse(tiles: np.ndarray, colors: np.ndarray, ground: tuple[int, int, int]) -> dict:
    """What `perceive.perceive` returns, from the tiles and colours of one picture."""
    votes: dict[tuple, list[int]] = {}
    for row, col in np.argwhere((tiles > 0) & (tiles < FIRST_GLYPH)):
        shape, size, i, j = _ORIGIN[int(tiles[row, col])]
        votes.setdefault((shape, size, row - i, col - j), []).append(int(colors[row, col]))
    shapes, stray = [], 0
    for (shape, size, row, col), inks in votes.items():
        if len(inks) >= 0.7 * size * size:
            color = COLOR_NAMES[max(set(inks), key=inks.count)]
            center = {"row": row + size / 2, "col": col + size / 2}
            shapes.append({"shape": shape, "color": color, "size": size, **center})
        else:
            stray += len(inks)
    if stray > 2:
        shapes.append({"shape": "unknown", "color": "unknown", "size": 0, "row": 0, "col": 0})
    lines = []
    for row in np.unique(np.nonzero(tiles >= FIRST_GLYPH)[0]):
        cells = tiles[row]
        text = "".join(GLYPHS[t - FIRST_GLYPH] if t >= FIRST_GLYPH else " " for t in cells).strip()
        inks = colors[row][cells >= FIRST_GLYPH].tolist()
        lines.append((text, int(row), COLOR_NAMES[max(set(inks), key=inks.count)]))
    kind, first, last = ground
    names = [BACKGROUND_NAMES[first]] + ([BACKGROUND_NAMES[last]] if kind else [])
    return {"grid": tiles.shape, "background": [KINDS[kind], *names], "shapes": shapes, "lines": lines}


@torch.no_grad()
def read(reader: Reader, pictures) -> list[tuple]:
    """Arguments of `parse` for each picture."""
    tile, color, ground = reader(pictures.clamp(-1, 1))
    tiles, colors = tile.argmax(-1).cpu().numpy(), color.argmax(-1).cpu().numpy()
    grounds = torch.stack([part.argmax(-1) for part in ground], 1).tolist()
    return list(zip(tiles, colors, map(tuple, grounds)))
