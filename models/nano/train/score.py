"""Compares what a picture shows with what its caption promises."""

from collections import Counter

ATTRIBUTES = ("color", "shape", "count", "relation", "size", "background", "placement")


def _mean(shapes: list[dict], axis: str) -> float:
    return sum(s[axis] for s in shapes) / len(shapes)


def _related(promised: dict, shapes: list[dict]) -> bool:
    groups = [
        [s for s in shapes if (s["shape"], s["color"]) == (want["shape"], want["color"])] for want in promised["shapes"]
    ]
    if not all(groups):
        return False
    apart = [_mean(groups[1], axis) - _mean(groups[0], axis) for axis in ("row", "col")]
    way = {"above": apart[0], "below": -apart[0], "left of": apart[1], "right of": -apart[1]}
    return way[promised["relation"]] > 1 and way[promised["relation"]] >= max(map(abs, apart)) - 0.5


def _positioned(promised: dict, shapes: list[dict], grid: tuple[int, int]) -> bool:
    side, level = promised["position"]
    for wanted, axis, extent in ((level, "row", grid[0]), (side, "col", grid[1])):
        at = _mean(shapes, axis) / extent
        low, high = {"top": (0, 0.4), "left": (0, 0.42), "bottom": (0.6, 1), "right": (0.58, 1)}.get(wanted, (0.4, 0.6))
        if wanted and not low <= at <= high:
            return False
    return True


def _arranged(promised: dict, shapes: list[dict]) -> bool:
    same, other = ("row", "col") if promised["arrangement"] == "row" else ("col", "row")
    spread = {axis: max(s[axis] for s in shapes) - min(s[axis] for s in shapes) for axis in (same, other)}
    return spread[same] < 0.75 and spread[other] > 1


def _placed(promised: dict, rows: list[int], high: int) -> bool:
    half = (high - 1) / 2
    if promised["placement"] == "split":
        return len(rows) == 2 and rows[0] < half < rows[1]
    if promised["placement"] == "middle":
        return all(abs(row - half) <= 2.6 for row in rows)
    return all(row < half if promised["placement"] == "top" else row > half for row in rows)


def score(promised: dict, shown: dict) -> dict[str, bool]:
    """Each attribute that the caption names, and `text`: right or wrong."""
    shapes, wanted, right = shown["shapes"], promised["shapes"], {}
    if wanted:

        def tally(key):
            found = Counter(s[key] for s in shapes)
            asked = Counter()
            for group in wanted:
                asked[group[key]] += group["count"]
            return found == asked

        right["color"], right["shape"] = tally("color"), tally("shape")
        right["count"] = len(shapes) == sum(group["count"] for group in wanted)
        if wanted[0]["size"]:
            right["size"] = tally("size")
        if promised["relation"]:
            right["relation"] = _related(promised, shapes)
        elif promised["position"]:
            right["relation"] = bool(shapes) and _positioned(promised, shapes, shown["grid"])
        elif promised["arrangement"]:
            right["relation"] = bool(shapes) and _arranged(promised, shapes)
    if promised["background"]:
        right["background"] = promised["background"] == shown["background"]
    lines = promised["lines"]
    if lines:
        right["text"] = lines == [text for text, *_ in shown["lines"]]
        if promised["text_color"]:
            tints = {color for *_, color in shown["lines"]}
            right["color"] = right.get("color", True) and tints == {promised["text_color"]}
        if promised["placement"]:
            rows = [row for _, row, _ in shown["lines"]]
            right["placement"] = bool(rows) and _placed(promised, rows, shown["grid"][0])
    return right
