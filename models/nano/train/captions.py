"""Captions of scenes in English and Chinese, what a caption promises, and questions."""

import random
from itertools import groupby

from .domain import LARGE, MEDIUM, SMALL, Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five")
ZH = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形",
    "star": "星星", "diamond": "菱形", "heart": "心形",
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色",
    "blue": "蓝色", "purple": "紫色", "black": "黑色", "white": "白色",
    "cream": "米色", "light blue": "浅蓝色", "mint": "薄荷色",
    "pink": "粉色", "gray": "灰色", "navy": "深蓝色",
    "left of": "左边", "right of": "右边", "above": "上方", "below": "下方",
    "top": "顶部", "middle": "中间", "bottom": "底部", "left": "左边", "right": "右边",
    SMALL: "小", MEDIUM: "中等大小的", LARGE: "大",
}  # fmt: skip
ZH_NUMBERS = ("", "一个", "两个", "三个", "四个", "五个")
SIZE_WORDS = {SMALL: ("small", "little"), MEDIUM: ("medium", "medium-sized"), LARGE: ("large", "big")}


def _article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def groups(scene: Scene) -> list[tuple[str, str, int, int]]:
    """(shape, colour, size, count) of the shapes, equal neighbours together."""
    keyed = groupby(scene.shapes, key=lambda s: (s.shape, s.color, s.size))
    return [(*key, len(list(members))) for key, members in keyed]


def _noun(shape: str, color: str, size: int, count: int, word: str = "") -> str:
    name = f"{word} {color} {shape}".strip()
    return _article(name) if count == 1 else f"{NUMBERS[count]} {name}s"


def promise(scene: Scene, *, background: bool, size: bool, placement: bool, text_color: bool) -> dict:
    """What a caption that names these things says; see `score.py`."""
    found = groups(scene)
    return {
        "background": [scene.gradient, *scene.background] if background else None,
        "shapes": [{"shape": s, "color": c, "count": n, "size": z if size else None} for s, c, z, n in found],
        "relation": scene.relation or None,
        "position": [scene.horizontal, scene.vertical] if scene.horizontal else None,
        "arrangement": scene.arrangement if scene.arrangement in ("row", "column") else None,
        "lines": [line.text for line in scene.lines],
        "placement": scene.placement if placement and scene.lines else None,
        "text_color": scene.lines[0].color if text_color and scene.lines else None,
    }


def _ground(rng: random.Random, scene: Scene) -> str:
    first = scene.background[0]
    if scene.gradient == "none":
        return rng.choice((f"a {first} background", f"a plain {first} background"))
    ends = ("top", "bottom") if scene.gradient == "down" else ("left", "right")
    second = scene.background[1]
    return rng.choice((
        f"a gradient from {first} at the {ends[0]} to {second} at the {ends[1]}",
        f"a background that fades from {first} on the {ends[0]} to {second} on the {ends[1]}",
    ))  # fmt: skip


def _shapes(rng: random.Random, scene: Scene, size: bool) -> str:
    found = groups(scene)
    nouns = [_noun(s, c, z, n, rng.choice(SIZE_WORDS[z]) if size else "") for s, c, z, n in found]
    if scene.arrangement == "one":
        return f"{nouns[0]} {_position(rng, scene)}"
    if scene.arrangement in ("row", "column"):
        return f"{nouns[0]} in a {scene.arrangement}"
    relation = scene.relation
    if relation in ("left of", "right of"):
        relation = rng.choice((relation, f"to the {relation}"))
    return f"{nouns[0]} {relation} {nouns[1]}"


def _position(rng: random.Random, scene: Scene) -> str:
    side, level = scene.horizontal, scene.vertical
    if not level:
        return "in the center" if side == "center" else f"on the {side}"
    if side == "center":
        return {"middle": "in the center", "top": "at the top", "bottom": "at the bottom"}[level]
    if level == "middle":
        return rng.choice((f"on the {side}", f"in the middle on the {side}"))
    return rng.choice((f"in the {level} {side}", f"in the {level} {side} corner"))


def _text(rng: random.Random, scene: Scene, placement: bool, color: bool) -> str:
    quoted = [f'"{line.text}"' for line in scene.lines]
    if rng.random() < 0.1:
        quoted = [text.lower() for text in quoted]
    tint = f" in {scene.lines[0].color} letters" if color else ""
    if len(quoted) == 1:
        said = rng.choice(("the text ", "the word ", "the words ", "")) + quoted[0]
        where = f" in the {scene.placement}" if scene.placement == "middle" else f" at the {scene.placement}"
        return said + tint + (where if placement else "")
    if scene.placement == "split" and placement:
        return f"{quoted[0]} at the top and {quoted[1]} at the bottom{tint}"
    said = rng.choice((
        f"two lines of text, {quoted[0]} and {quoted[1]}",
        f"the lines {quoted[0]} and {quoted[1]}",
        f"{quoted[0]} and {quoted[1]}",
    ))  # fmt: skip
    where = f" in the {scene.placement}" if scene.placement == "middle" else f" at the {scene.placement}"
    return said + tint + (where if placement else "")


def english(rng: random.Random, scene: Scene) -> tuple[str, dict]:
    """A caption and its promise."""
    background, size = rng.random() < 0.88, rng.random() < 0.7
    placement, color = rng.random() < 0.8, bool(scene.lines) and scene.lines[0].color not in (
        "black", "white",
    ) or rng.random() < 0.15  # fmt: skip
    kind = rng.choice(("poster", "poster", "poster", "flyer", "sign", "card"))
    parts = []
    if scene.shapes:
        parts.append(_shapes(rng, scene, size))
    if scene.lines:
        parts.append(_text(rng, scene, placement, color))
        if rng.random() < 0.25:
            parts.reverse()
    ground = _ground(rng, scene) if background else ""
    style = rng.randrange(4)
    if background and scene.gradient == "none" and style == 0:
        subject = f"{_article(scene.background[0])} {kind}"
    else:
        subject = f"a {kind}"
        if background and style == 1:
            subject, ground = f"a {kind} with {ground}", ""
    body = ""
    for index, part in enumerate(parts):
        if index == 0 and part.startswith('"'):
            joiner = rng.choice((" that says ", " reading ", " saying "))
        else:
            joiner = " with " if index == 0 and " with " not in subject else rng.choice((" and ", ", and ", ", "))
            if index == 0 and joiner != " with ":
                joiner = ", "
        body += joiner + part
    text = subject + body
    if background and subject == f"a {kind}" and ground:
        text += rng.choice((" on ", ", on ")) + ground
    if rng.random() < 0.8:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3:
        text += "."
    return text, promise(scene, background=background, size=size, placement=placement, text_color=color)


def chinese(rng: random.Random, scene: Scene) -> tuple[str, dict]:
    """A Chinese caption and its promise."""
    background, size = rng.random() < 0.9, rng.random() < 0.5
    placement = rng.random() < 0.8
    color = bool(scene.lines) and scene.lines[0].color not in ("black", "white")
    first = ZH[scene.background[0]]
    subject = "一张海报"
    if background and scene.gradient == "none":
        subject = f"一张{first}背景的海报"
    elif background:
        way = "从上到下" if scene.gradient == "down" else "从左到右"
        subject = f"一张{way}由{first}渐变到{ZH[scene.background[1]]}的海报"
    nouns = [f"{ZH_NUMBERS[n]}{ZH[z] if size else ''}{ZH[c]}{ZH[s]}" for s, c, z, n in groups(scene)]
    parts = []
    if scene.arrangement == "one":
        parts.append(f"{_zh_position(scene)}有{nouns[0]}")
    elif scene.arrangement in ("row", "column"):
        parts.append(nouns[0] + ("排成一行" if scene.arrangement == "row" else "排成一列"))
    elif scene.shapes:
        parts.append(f"{nouns[0]}在{nouns[1]}的{ZH[scene.relation]}")
    if scene.lines:
        tint = f"用{ZH[scene.lines[0].color]}字" if color else ""
        quoted = [f"“{line.text}”" for line in scene.lines]
        if len(quoted) == 2 and scene.placement == "split" and placement:
            parts.append(f"顶部{tint}写着{quoted[0]}，底部写着{quoted[1]}")
        else:
            where = ZH[scene.placement] if placement and scene.placement != "split" else ""
            parts.append(where + tint + "写着" + "和".join(quoted))
    text = "，".join([subject, *parts])
    if rng.random() < 0.3:
        text += "。"
    return text, promise(scene, background=background, size=size, placement=placement, text_color=color)


def _zh_position(scene: Scene) -> str:
    side, level = scene.horizontal, scene.vertical
    if level in ("", "middle"):
        return "中间" if side == "center" else ZH[side]
    return (
        ZH[level]
        if side == "center"
        else {"left": "左", "right": "右"}[side] + {"top": "上角", "bottom": "下角"}[level]
    )


def caption(rng: random.Random, scene: Scene) -> tuple[str, dict]:
    """A random caption, one in six Chinese, and what it promises."""
    return (chinese if rng.random() < 1 / 6 else english)(rng, scene)


def description(scene: Scene) -> str:
    """The one description that the model is taught to answer with."""
    first = scene.background[0]
    text = f"A {first} poster"
    if scene.gradient != "none":
        text = f"A poster that fades from {first} to {scene.background[1]}"
    found = groups(scene)
    nouns = [_noun(s, c, z, n) for s, c, z, n in found]
    if scene.arrangement in ("pair", "group"):
        text += f" with {nouns[0]} {scene.relation} {nouns[1]}"
    elif nouns:
        text += f" with {nouns[0]}"
    if scene.lines:
        text += (" and" if nouns else " with") + " the text " + " and ".join(f'"{line.text}"' for line in scene.lines)
    return text + "."


def question(rng: random.Random, scene: Scene) -> tuple[str, str, str]:
    """(kind, question, answer) about a scene."""
    kind = rng.choice(("caption", "text", "text", "count", "background", "color"))
    if kind == "caption":
        return kind, rng.choice(("Describe the picture.", "What is in the picture?")), description(scene)
    if kind == "text":
        answer = " / ".join(line.text for line in scene.lines) or "Nothing."
        return kind, rng.choice(("What does it say?", "Read the text.")), answer
    if kind == "count":
        shape = rng.choice([s.shape for s in scene.shapes] or ["star"])
        if rng.random() < 0.3:
            return kind, "How many shapes are there?", NUMBERS[len(scene.shapes)]
        if rng.random() < 0.2:
            shape = rng.choice(("circle", "square", "triangle", "star", "diamond", "heart"))
        count = sum(s.shape == shape for s in scene.shapes)
        return kind, f"How many {shape}s are there?", NUMBERS[count]
    if kind == "background":
        return kind, "What color is the background?", " and ".join(scene.background)
    colors = {}
    for s in scene.shapes:
        colors.setdefault(s.shape, set()).add(s.color)
    sure = [shape for shape, tints in colors.items() if len(tints) == 1]
    if not sure:
        return "background", "What color is the background?", " and ".join(scene.background)
    shape = rng.choice(sure)
    plural = sum(s.shape == shape for s in scene.shapes) > 1
    asked = f"What color are the {shape}s?" if plural else f"What color is the {shape}?"
    return kind, asked, next(iter(colors[shape]))
