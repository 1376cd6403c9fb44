#!/usr/bin/env python3
"""Shows a server the held-out scenes, asks a question about each, and counts the answers that are exactly right.

    models/nano/ask.py --server 127.0.0.1:8400

Needs numpy, pillow and torch, which paint the scenes (pip install -r models/nano/train/requirements.txt)."""

import argparse
import base64
import io
import json
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.request import Request, urlopen

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from train.reconstruct import HELD_OUT, scene_of  # noqa: E402
from train.tiles import draw  # noqa: E402
from train.understand import count, write  # noqa: E402


def picture_url(row: dict) -> str:
    png = io.BytesIO()
    draw(scene_of(row)).save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True, help="HOST:PORT of a coordinator")
    parser.add_argument("--captions", type=Path, default=HELD_OUT)
    parser.add_argument("--together", type=int, default=4, help="requests at a time")
    parser.add_argument("--answers", type=Path, help="file to write the answers to, one JSON string a line")
    parser.add_argument("--wrong", action="store_true", help="list wrong answers")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.captions.read_text().splitlines()]

    def answer(row: dict) -> str:
        shown = {"type": "image_url", "image_url": {"url": picture_url(row)}}
        asked = {"type": "text", "text": row["chat"]["question"]}
        body = json.dumps({"messages": [{"role": "user", "content": [shown, asked]}]}).encode()
        address = f"http://{given.server}/v1/chat/completions"
        with urlopen(Request(address, body, {"Content-Type": "application/json"}), timeout=600) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    with ThreadPool(given.together) as pool:
        answers = pool.map(answer, rows, chunksize=1)
    if given.answers:
        write(given.answers, answers)
    count([row["chat"] for row in rows], answers, given.wrong)


if __name__ == "__main__":
    main()
