"""Asks about the held-out scenes, in PyTorch, and counts the answers that are exactly right:
PYTHONPATH=models/nano python -m train.understand"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

from . import published, tiles
from .domain import GRIDS
from .reconstruct import HELD_OUT, scene_of
from .rollout import generate
from .sizes import TEXT_VOCAB
from .text import HEAD, TAIL, Texts, padded, picture_head
from .tiles import Renderer


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=published.SHIPPED, help="with x-omni")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--answers", type=Path, help="file to write the answers to, one JSON string a line")
    parser.add_argument("--wrong", action="store_true", help="list wrong answers")
    given = parser.parse_args()
    texts, render, tokenizer = Texts(), Renderer(), published.tokenizer(given.model)
    backbone = published.backbone(given.model).to(given.device)
    stop = texts.backbone.token_to_id("<|im_end|>")
    rows = [json.loads(line) for line in HELD_OUT.read_text().splitlines()]
    said = [""] * len(rows)
    for grid in GRIDS:
        found = [(i, row) for i, row in enumerate(rows) if (row["scene"]["height"], row["scene"]["width"]) == grid]
        prompts = []
        for _, row in found:
            tile, color, background = tiles.cells(scene_of(row))
            shown = (torch.from_numpy(tile)[None], torch.from_numpy(color)[None], torch.tensor([background]))
            codes = tokenizer.encode(render(*shown))[0] + TEXT_VOCAB
            question = texts.tail(row["chat"]["question"], "")
            ids = texts.ids(HEAD + picture_head(grid)) + codes.tolist() + question[0][: question[1]]
            prompts.append(ids)
        length = torch.tensor([len(ids) for ids in prompts], device=given.device)
        prompt = torch.from_numpy(padded(prompts, int(length.max()))).long().to(given.device)
        answers = generate(backbone, prompt, length, TAIL, temperature=0, text=True).tolist()
        for (index, _), ids in zip(found, answers):
            said[index] = texts.backbone.decode(ids[: ids.index(stop)] if stop in ids else ids)
    if given.answers:
        write(given.answers, said)
    count([row["chat"] for row in rows], said, given.wrong)


def write(path: Path, answers: list[str]) -> None:
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in answers))


def count(chats: list[dict], answers: list[str], wrong: bool) -> None:
    asked, right = Counter(), Counter()
    for chat, got in zip(chats, answers):
        kind, want = chat["kind"], chat["answer"]
        asked[kind] += 1
        right[kind] += got == want
        if wrong and got != want:
            print(f"{kind}: {chat['question']} {want!r}, answered {got!r}")
    for kind in sorted(asked):
        print(f"{kind:11} {right[kind]:4} of {asked[kind]:4}  {right[kind] / asked[kind]:6.1%}")
    print(f"all         {right.total():4} of {asked.total():4}  {right.total() / asked.total():6.1%}")


if __name__ == "__main__":
    main()
