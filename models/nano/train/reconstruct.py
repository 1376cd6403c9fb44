"""Draws the held-out scenes and passes them through image tokenizer and decoder alone, in PyTorch:
PYTHONPATH=models/nano python -m train.reconstruct --pictures /tmp/reconstructed, then judge.py --pictures of the same."""

import argparse
import json
from pathlib import Path

import torch

from . import published, tiles
from .domain import Line, Scene, Shape
from .stage_decoder import Decoding
from .text import Texts
from .tiles import Renderer

HELD_OUT = Path(__file__).parents[1] / "heldout.jsonl"


def scene_of(row: dict) -> Scene:
    parts = dict(row["scene"])
    parts["shapes"] = [Shape(**shape) for shape in parts["shapes"]]
    parts["lines"] = [Line(**line) for line in parts["lines"]]
    return Scene(**parts)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--captions", type=Path, default=HELD_OUT)
    parser.add_argument("--model", type=Path, default=published.SHIPPED, help="with x-omni and flux")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    given.pictures.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    texts, decoding, render = Texts(), Decoding(given.device), Renderer()
    parts = (published.tokenizer, published.vae, published.flow)
    tokenizer, vae, flow = (part(given.model).to(given.device) for part in parts)
    error, count = 0.0, 0
    for index, line in enumerate(given.captions.read_text().splitlines()):
        row = json.loads(line)
        scene = scene_of(row)
        grid = (scene.height, scene.width)
        tile, color, background = tiles.cells(scene)
        shown = (torch.from_numpy(tile)[None], torch.from_numpy(color)[None], torch.tensor([background]))
        picture = render(*shown).to(given.device)
        clip, t5 = (torch.tensor([f(row["prompt"])], device=given.device) for f in (texts.clip_ids, texts.t5_ids))
        siglip = tokenizer.projector.decode(tokenizer.encode(picture), grid)
        drawn = vae.unpack(decoding.latents(flow, siglip, clip, t5, grid, given.steps), grid).clamp(-1, 1)
        error, count = error + (drawn - picture).square().mean().item() / 4, count + 1
        levels = ((drawn[0] + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        tiles.Image.fromarray(levels).save(given.pictures / f"{index:04}.png")
    print(f"{-10 * torch.tensor(error / count).log10().item():.1f} dB over {count} pictures")


if __name__ == "__main__":
    main()
