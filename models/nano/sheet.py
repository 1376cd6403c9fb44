#!/usr/bin/env python3
"""Draws a contact sheet with xomni: models/nano/sheet.py --xomni target/release/xomni

Every prompt of sheet.jsonl is drawn once, with one seed, and shown as it came. Needs pillow and two fonts
(Debian: fonts-dejavu-core fonts-wqy-microhei)."""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
FONT = "DejaVuSans.ttf"
CHINESE = "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc"  # Debian: fonts-wqy-microhei
CELL, CAPTION, COLUMNS = 208, 62, 6


def font(text: str, size: int) -> ImageFont.FreeTypeFont:
    wide = any(ord(c) > 0x2E80 for c in text)
    return ImageFont.truetype(CHINESE if wide else FONT, size)


def wrapped(text: str, face: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width`, broken at spaces or, without any, anywhere."""
    pieces = text.split(" ") if " " in text else list(text)
    joint, lines = (" " if " " in text else ""), [""]
    for piece in pieces:
        longer = lines[-1] + joint + piece if lines[-1] else piece
        if face.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--xomni", required=True)
    parser.add_argument("--prompts", type=Path, default=HERE / "sheet.jsonl")
    parser.add_argument("--seed", default="1")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "sheet.png")
    parser.add_argument("options", nargs="*", help="more options of xomni generate, after --")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.prompts.read_text().splitlines()]
    height = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, height * (CELL + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    with tempfile.TemporaryDirectory() as folder:
        for index, row in enumerate(rows):
            file = f"{folder}/{index}.png"
            command = [given.xomni, "generate", row["prompt"], "--size", row["size"], "--seed", given.seed]
            subprocess.run([*command, "-o", file, *given.options], check=True, stdout=subprocess.DEVNULL)
            picture = Image.open(file)
            x, y = index % COLUMNS * CELL, index // COLUMNS * (CELL + CAPTION)
            frame = (x + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2)
            pen.rectangle(
                (frame[0] - 1, frame[1] - 1, frame[0] + picture.width, frame[1] + picture.height), outline="#bbb"
            )
            sheet.paste(picture, frame)
            face = font(row["prompt"], 9)
            for at, line in enumerate(wrapped(row["prompt"], face, CELL - 12)[:5]):
                pen.text((x + 6, y + CELL + 2 + 12 * at), line, font=face, fill="#333")
    sheet.save(given.output, optimize=True)


if __name__ == "__main__":
    main()
