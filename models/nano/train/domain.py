"""The domain: posters made of a background, a few shapes and one or two lines of text."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

SHAPES = ("circle", "square", "triangle", "star", "diamond", "heart")
COLORS = {
    "red": (220, 38, 42),
    "orange": (245, 130, 20),
    "yellow": (255, 208, 0),
    "green": (24, 150, 66),
    "blue": (32, 84, 226),
    "purple": (136, 52, 176),
    "black": (14, 14, 16),
    "white": (252, 252, 252),
}
COLOR_NAMES = tuple(COLORS)
BACKGROUNDS = {
    "white": (252, 252, 252),
    "cream": (250, 234, 200),
    "light blue": (158, 204, 246),
    "mint": (168, 228, 190),
    "pink": (250, 186, 204),
    "gray": (152, 152, 156),
    "navy": (22, 32, 86),
    "black": (14, 14, 16),
}
BACKGROUND_NAMES = tuple(BACKGROUNDS)
DARK = {"navy", "black"}
# Colours that cannot be told from a background.
CLASHES = {
    "white": {"white"},
    "cream": {"white", "yellow"},
    "light blue": {"white"},
    "mint": {"white"},
    "pink": {"white"},
    "gray": {"white"},
    "navy": {"black", "blue", "purple"},
    "black": {"black"},
}
GRADIENTS = (
    ("light blue", "white"),
    ("light blue", "pink"),
    ("light blue", "mint"),
    ("cream", "pink"),
    ("mint", "white"),
    ("navy", "black"),
)
GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!?&-"
# Token grids (rows, columns) and how often each is drawn; 16 pixels a token.
GRIDS = ((8, 8), (8, 12), (12, 8), (12, 12))
GRID_WEIGHTS = (0.3, 0.2, 0.2, 0.3)
MOST_SHAPES = 5
LONGEST_LINE = 10
SMALL, MEDIUM, LARGE = 2, 4, 6
ARRANGEMENTS = {"none": 0.17, "one": 0.28, "pair": 0.25, "row": 0.13, "column": 0.05, "group": 0.12}
SIZES = {SMALL: "small", MEDIUM: "medium", LARGE: "large"}
WORDS = (Path(__file__).parent / "words.txt").read_text().split()
HELD_OUT = 10  # one text, combination or layout in so many is never trained on


@dataclass(slots=True)
class Shape:
    """A shape on the token grid: `size` rows and columns from (`row`, `col`)."""

    shape: str
    color: str
    size: int
    row: int
    col: int


@dataclass(slots=True)
class Line:
    """A centred line of text on one row of tokens."""

    text: str
    row: int
    color: str


@dataclass(slots=True)
class Scene:
    """A poster, and how its parts are arranged (which captions tell)."""

    height: int
    width: int
    gradient: str  # "none", "down", "right"
    background: tuple[str, ...]
    shapes: list[Shape] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    arrangement: str = "none"  # none, one, pair, row, column, group
    relation: str = ""  # of a pair or group: first is RELATION second
    horizontal: str = ""  # of one shape: left, center, right
    vertical: str = ""  # of one shape without text: top, middle, bottom
    placement: str = ""  # of the text: top, middle, bottom, split

    def layout(self) -> str:
        """Key of the layout, whatever colours and words fill it."""
        sizes = "".join(str(s.size) for s in self.shapes)
        where = self.relation or self.horizontal + self.vertical
        parts = (self.height, self.width, self.arrangement, where, sizes, self.placement)
        return "/".join(map(str, parts)) + f"/{len(self.lines)}"

    def combinations(self) -> list[str]:
        """Keys of the (shape, colour, background) combinations."""
        ground = "+".join(self.background)
        return [f"{s.shape}/{s.color}/{ground}" for s in self.shapes]


def held_out(key: str) -> bool:
    """Whether a text, combination or layout is kept from training."""
    return crc32(key.encode()) % HELD_OUT == 0


def allowed_in_training(scene: Scene) -> bool:
    keys = [line.text for line in scene.lines] + scene.combinations()
    if scene.shapes:
        keys.append(scene.layout())
    return not any(map(held_out, keys))


def _random_text(rng: random.Random, longest: int) -> str:
    kind = rng.random()
    if kind < 0.45:
        text = rng.choice(WORDS)
        if rng.random() < 0.15:
            text += rng.choice("!?")
    elif kind < 0.60:
        text = f"{rng.choice(WORDS)} {rng.choice(WORDS)}"
    elif kind < 0.70:
        text = rng.choice((str(rng.randint(1900, 2099)), str(rng.randint(1, 9999))))
        if rng.random() < 0.3:
            text = rng.choice(WORDS) + " " + text
    else:
        alphabet = GLYPHS if kind < 0.8 else GLYPHS[:26]
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, longest)))
        if len(text) >= 5 and rng.random() < 0.3:
            cut = rng.randint(2, len(text) - 3)
            text = text[:cut] + " " + text[cut + 1 :]
    return text


def draw_text(rng: random.Random, longest: int, unseen: bool) -> str:
    """A line of at most `longest` characters; `unseen` ones are kept from training."""
    while True:
        text = _random_text(rng, longest)
        if len(text) <= longest and held_out(text) == unseen:
            return text


def _background(rng: random.Random, scene: Scene) -> None:
    if rng.random() < 0.25:
        pair = list(rng.choice(GRADIENTS))
        rng.shuffle(pair)
        scene.gradient = rng.choice(("down", "right"))
        scene.background = tuple(pair)
    else:
        scene.gradient = "none"
        scene.background = (rng.choice(BACKGROUND_NAMES),)


def _lines(rng: random.Random, scene: Scene, count: int, unseen: bool) -> tuple[int, int]:
    """Places the text; returns the free rows."""
    high, first, last = scene.height, 0, scene.height
    if count == 0:
        return first, last
    dark = scene.background[0] in DARK
    color = "white" if dark else "black"
    if rng.random() < 0.25:
        color = "yellow" if dark else rng.choice(("red", "blue"))
    if count == 1:
        places = ["top", "bottom"] + ([] if scene.arrangement != "none" else ["middle"])
    else:
        places = ["top", "bottom", "split"] + ([] if scene.arrangement != "none" else ["middle"])
    scene.placement = rng.choice(places)
    rows = {
        ("top", 1): (1,),
        ("bottom", 1): (high - 2,),
        ("middle", 1): (high // 2,),
        ("top", 2): (1, 3),
        ("bottom", 2): (high - 4, high - 2),
        ("middle", 2): (high // 2 - 2, high // 2),
        ("split", 2): (1, high - 2),
    }[scene.placement, count]
    longest = min(scene.width, LONGEST_LINE)
    scene.lines = [Line(draw_text(rng, longest, unseen), row, color) for row in rows]
    if scene.placement in ("top", "split"):
        first = 2 if count == 1 or scene.placement == "split" else 4
    if scene.placement in ("bottom", "split"):
        last = high - (2 if count == 1 or scene.placement == "split" else 4)
    return first, last


def _color(rng: random.Random, scene: Scene, taken: tuple[str, ...] = ()) -> str:
    clashes = set().union(*(CLASHES[name] for name in scene.background))
    return rng.choice([c for c in COLOR_NAMES if c not in clashes and c not in taken])


def _row(shape: str, color: str, size: int, count: int, row: int, width: int) -> list[Shape]:
    gap = 1 if count * size + count - 1 <= width else 0
    start = (width - count * size - gap * (count - 1)) // 2
    return [Shape(shape, color, size, row, start + i * (size + gap)) for i in range(count)]


def _place(rng: random.Random, scene: Scene, first: int, last: int) -> bool:
    """Places the shapes in rows `first..last`; false if they do not fit."""
    high, wide = last - first, scene.width
    color, shape = _color(rng, scene), rng.choice(SHAPES)
    kind = scene.arrangement
    if kind == "one":
        size = rng.choices((SMALL, MEDIUM, LARGE), (0.3, 0.45, 0.25))[0]
        if size > high or size > wide - 2:
            return False
        col = {"left": 0, "center": (wide - size) // 2, "right": wide - size}
        row = {"top": first, "middle": first + (high - size) // 2, "bottom": last - size}
        scene.horizontal = rng.choices(tuple(col), (0.25, 0.5, 0.25))[0]
        free = not scene.lines and high - size >= 4
        scene.vertical = rng.choice(tuple(row)) if free else ""
        at = row[scene.vertical or "middle"]
        scene.shapes = [Shape(shape, color, size, at, col[scene.horizontal])]
    elif kind == "row":
        count = rng.randint(2, min(MOST_SHAPES, wide // SMALL))
        at = first + (high - SMALL) // 2
        scene.shapes = _row(shape, color, SMALL, count, at, wide)
    elif kind == "column":
        count = rng.randint(2, 4)
        gap = 1 if count * SMALL + count - 1 <= high else 0
        total = count * SMALL + gap * (count - 1)
        if total > high:
            return False
        at, col = first + (high - total) // 2, (wide - SMALL) // 2
        rows = range(at, at + total, SMALL + gap)
        scene.shapes = [Shape(shape, color, SMALL, row, col) for row in rows]
    else:
        other, size = rng.choice(SHAPES), rng.choice((SMALL, MEDIUM))
        second = _color(rng, scene, (color,) if other == shape else ())
        counts = (1, 1) if kind == "pair" else rng.choice(((2, 1), (3, 1), (1, 2), (1, 3)))
        sideways = kind == "pair" and rng.random() < 0.6
        scene.relation = rng.choice(("left of", "right of") if sideways else ("above", "below"))
        if kind == "group":
            size = SMALL
        half = (wide if sideways else high) // 2
        if size > half or size > (high if sideways else wide):
            return False
        near, far = (half - size) // 2, half + (half - size) // 2
        ends = (near, far) if scene.relation in ("left of", "above") else (far, near)
        scene.shapes = []
        for name, tint, count, end in zip((shape, other), (color, second), counts, ends):
            if sideways:
                row = first + (high - size) // 2
                scene.shapes.append(Shape(name, tint, size, row, end))
            else:
                scene.shapes += _row(name, tint, size, count, first + end, wide)
    return True


def _scene(rng: random.Random, kind: str, unseen: bool) -> Scene | None:
    """A scene of one arrangement; none if its parts do not fit."""
    height, width = rng.choices(GRIDS, GRID_WEIGHTS)[0]
    scene = Scene(height, width, "none", (), arrangement=kind)
    _background(rng, scene)
    weights = (0, 0.6, 0.4) if kind == "none" else (0.2, 0.53, 0.27)
    count = rng.choices((0, 1, 2), weights)[0]
    first, last = _lines(rng, scene, count, unseen)
    return scene if kind == "none" or _place(rng, scene, first, last) else None


def draw_scene(rng: random.Random, unseen: bool = False) -> Scene:
    """A random scene: one that training may show, or one whose texts, one of whose combinations
    and whose layout it never shows."""
    kind = rng.choices(tuple(ARRANGEMENTS), tuple(ARRANGEMENTS.values()))[0]
    while True:
        scene = _scene(rng, kind, unseen)
        if scene is None:
            continue
        if not unseen:
            if allowed_in_training(scene):
                return scene
        elif not scene.shapes or (held_out(scene.layout()) and any(map(held_out, scene.combinations()))):
            return scene
