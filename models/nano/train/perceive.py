"""What a poster shows, read from its pixels without any trained part: the background from the
corners, shapes as connected regions compared with every shape, letters by correlation."""

import numpy as np
from scipy import ndimage

from .domain import BACKGROUNDS, COLORS, GLYPHS, LARGE, MEDIUM, SHAPES, SMALL
from .tiles import CELL, glyphs, sprite

FLAT = 25  # largest difference of the corners of a plain background
INK = 48  # smallest difference of a foreground pixel from the background
SMALLEST_SHAPE = 20  # pixels; letters are smaller
ALIKE, LEGIBLE = 0.75, 0.7  # overlap of a shape, correlation of a letter


def _nearest(color: np.ndarray, names: dict) -> str:
    return min(names, key=lambda name: np.linalg.norm(color - np.array(names[name])))


def _background(image: np.ndarray) -> tuple[list[str], np.ndarray]:
    """[kind, first, (last)] and the background of every pixel."""
    high, wide, _ = image.shape
    ends = ((slice(0, 3), slice(0, 3)), (slice(0, 3), slice(-3, None)),
            (slice(-3, None), slice(0, 3)), (slice(-3, None), slice(-3, None)))  # fmt: skip
    corners = np.array([np.median(image[at].reshape(-1, 3), 0) for at in ends]).reshape(2, 2, 3)
    down = np.linalg.norm(corners[1].mean(0) - corners[0].mean(0))
    right = np.linalg.norm(corners[:, 1].mean(0) - corners[:, 0].mean(0))
    y, x = np.linspace(0, 1, high)[:, None, None], np.linspace(0, 1, wide)[None, :, None]
    top = corners[0, 0] * (1 - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (1 - x) + corners[1, 1] * x
    field = top * (1 - y) + bottom * y
    if max(down, right) < FLAT:
        return ["none", _nearest(corners.mean((0, 1)), BACKGROUNDS)], field
    if down >= right:
        first, last = corners[0].mean(0), corners[1].mean(0)
    else:
        first, last = corners[:, 0].mean(0), corners[:, 1].mean(0)
    kind = "down" if down >= right else "right"
    return [kind, _nearest(first, BACKGROUNDS), _nearest(last, BACKGROUNDS)], field


def _shape(region: np.ndarray) -> tuple[str, int]:
    """Name and size in cells of the shape that overlaps a cropped region best."""
    size = min((SMALL, MEDIUM, LARGE), key=lambda s: abs(s * CELL - 4 - max(region.shape)))
    best, name = 0.0, "unknown"
    for shape in SHAPES:
        ideal = sprite(shape, size) > 0.5
        rows, cols = np.nonzero(ideal)
        ideal = ideal[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
        high, wide = (max(a, b) for a, b in zip(ideal.shape, region.shape))
        frames = []
        for mask in (ideal, region):
            frame = np.zeros((high, wide), bool)
            top, left = (high - mask.shape[0]) // 2, (wide - mask.shape[1]) // 2
            frame[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
            frames.append(frame)
        overlap = (frames[0] & frames[1]).sum() / (frames[0] | frames[1]).sum()
        if overlap > best:
            best, name = overlap, shape
    return (name if best >= ALIKE else "unknown"), size


def _standard(cells: np.ndarray) -> np.ndarray:
    flat = cells.reshape(*cells.shape[:-2], -1)
    flat = flat - flat.mean(-1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)


_TEMPLATES = _standard(glyphs())


def _letter(cell: np.ndarray) -> str:
    """The glyph of a cell's 18x18 neighbourhood, one pixel of shift allowed."""
    shifts = [cell[y : y + CELL, x : x + CELL] for y in range(3) for x in range(3)]
    alike = (_standard(np.stack(shifts)) @ _TEMPLATES.T).max(0)
    return GLYPHS[alike.argmax()] if alike.max() >= LEGIBLE else "\ufffd"


def _lines(image, strength, shapes) -> list[tuple[str, int, str]]:
    ink = np.pad(np.where(shapes, 0, strength), 1)
    lines = []
    for row in range(image.shape[0] // CELL):
        text, tint = "", []
        for col in range(image.shape[1] // CELL):
            y, x = row * CELL, col * CELL
            cell = ink[y : y + CELL + 2, x : x + CELL + 2]
            inner = cell[1:-1, 1:-1]
            if (inner > INK).sum() < 6:
                text += " "
                continue
            text += _letter(cell)
            full = inner > 0.8 * inner.max()
            tint.append(image[y : y + CELL, x : x + CELL][full])
        if text.strip():
            color = _nearest(np.median(np.concatenate(tint), 0), COLORS)
            lines.append((text.strip(), row, color))
    return lines


def perceive(picture) -> dict:
    """Background, shapes (centres in cells) and lines of a PIL picture."""
    image = np.asarray(picture.convert("RGB"), np.float64)
    background, field = _background(image)
    strength = np.linalg.norm(image - field, axis=-1)
    labels, count = ndimage.label(strength > INK)
    shapes, covered = [], np.zeros(labels.shape, bool)
    for index, place in enumerate(ndimage.find_objects(labels), 1):
        region = labels[place] == index
        if max(region.shape) < SMALLEST_SHAPE:
            continue
        inside = ndimage.binary_erosion(region, iterations=2)
        color = np.median(image[place][inside if inside.any() else region], 0)
        name, size = _shape(region)
        row, col = ((s.start + s.stop) / 2 / CELL for s in place)
        shapes.append({"shape": name, "color": _nearest(color, COLORS), "size": size, "row": row, "col": col})
        covered |= ndimage.binary_dilation(labels == index, iterations=2)
    grid = (image.shape[0] // CELL, image.shape[1] // CELL)
    return {"grid": grid, "background": background, "shapes": shapes, "lines": _lines(image, strength, covered)}
