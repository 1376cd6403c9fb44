"""Writes the held-out captions and questions:
PYTHONPATH=models/nano python -m train.heldout --to models/nano/heldout.jsonl

Every line of text, and of a scene with shapes its layout and one combination of shape, colour and background,
are kept from training (`domain.held_out`)."""

import argparse
import json
import random
from dataclasses import asdict
from pathlib import Path

from .captions import caption, question
from .domain import draw_scene

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=2026)
    given = parser.parse_args()
    rng, lines = random.Random(given.seed), []
    for _ in range(given.count):
        scene = draw_scene(rng, unseen=True)
        text, promise = caption(rng, scene)
        kind, asked, answer = question(rng, scene)
        size = f"{16 * scene.width}x{16 * scene.height}"
        chat = {"kind": kind, "question": asked, "answer": answer}
        row = {"prompt": text, "size": size, "promise": promise, "chat": chat, "scene": asdict(scene)}
        lines.append(json.dumps(row, ensure_ascii=False))
    given.to.write_text("\n".join(lines) + "\n")
