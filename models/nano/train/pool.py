"""Pools of training scenes: made once by all cores, then drawn from on the device.

python -m train.pool --scenes 2000000 --name sft
"""

import argparse
import multiprocessing
import os
import pickle
import random
import time
from pathlib import Path

import numpy as np
import torch

from . import captions, tiles
from .domain import GRID_WEIGHTS, GRIDS, draw_scene
from .places import SCALE, SCRATCH
from .text import PROMPT, T5_KEPT, TAIL, Texts, padded
from .tiles import Renderer

CHUNK = int(os.environ.get("NANO_CHUNK", "10000"))


def _chunk(job: tuple[Path, int, bool]) -> None:
    folder, seed, decoder = job
    rng, texts = random.Random(seed), Texts()
    columns = {grid: {} for grid in GRIDS}
    for _ in range(CHUNK):
        scene = draw_scene(rng)
        text, promise = captions.caption(rng, scene)
        grid = (scene.height, scene.width)
        prompt = texts.prompt(text, grid)
        tail, answer = texts.tail(*captions.question(rng, scene)[1:])
        if len(prompt) > PROMPT or len(tail) > TAIL:
            continue
        tile, color, background = tiles.cells(scene)
        row = {
            "tiles": tile, "colors": color, "background": background, "prompt": prompt,
            "length": len(prompt), "tail": tail, "answer": answer, "end": len(tail),
            "promise": promise,
        }  # fmt: skip
        if decoder:
            row |= {"clip": texts.clip_ids(text), "t5": texts.t5_ids(text, T5_KEPT)}
        for name, value in row.items():
            columns[grid].setdefault(name, []).append(value)
    for (high, wide), found in columns.items():
        widths = {"prompt": PROMPT, "tail": TAIL, "clip": 77, "t5": T5_KEPT}
        arrays = {
            name: padded(rows, widths[name]) if name in widths else np.array(rows, np.int16)
            for name, rows in found.items()
            if name != "promise"
        }
        stem = folder / f"{high}x{wide}-{seed}"
        np.savez(stem.with_suffix(".tmp.npz"), **arrays)
        stem.with_suffix(".pickle").write_bytes(pickle.dumps(found["promise"]))
        stem.with_suffix(".tmp.npz").rename(stem.with_suffix(".npz"))


def make(name: str, scenes: int, seed: int, decoder: bool) -> None:
    folder = SCRATCH / "pools" / name
    folder.mkdir(parents=True, exist_ok=True)
    Texts()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    jobs = [(folder, seed * 100_000 + i, decoder) for i in range(max(1, int(scenes * SCALE) // CHUNK))]
    start = time.time()
    with multiprocessing.Pool(max(1, (os.cpu_count() or 2) - 2)) as workers:
        for _ in workers.imap_unordered(_chunk, jobs):
            pass
    (folder / "done").touch()
    print(f"pool {name}: {len(jobs) * CHUNK} scenes in {time.time() - start:.0f} s", flush=True)


class Pool:
    """Scenes by grid, on a device."""

    def __init__(self, name: str, device: str, seed: int, columns: tuple[str, ...], promises=False):
        folder = SCRATCH / "pools" / name
        while not (folder / "done").exists():  # still being made
            time.sleep(0.5)
        self.device, self.rng = device, random.Random(seed)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.render = Renderer().to(device)
        self.grids, self.promises = {}, {}
        for grid in GRIDS:
            files = sorted(folder.glob(f"{grid[0]}x{grid[1]}-*.npz"))
            loaded = [np.load(file) for file in files]
            self.grids[grid] = {
                name: torch.from_numpy(np.concatenate([part[name] for part in loaded])).to(device) for name in columns
            }
            if promises:
                found = [pickle.loads(f.with_suffix(".pickle").read_bytes()) for f in files]
                self.promises[grid] = [promise for part in found for promise in part]

    def grid(self) -> tuple[int, int]:
        """A random grid."""
        return self.rng.choices(GRIDS, GRID_WEIGHTS)[0]

    def rows(self, grid: tuple[int, int], count: int) -> torch.Tensor:
        """Indices of random scenes."""
        size = len(next(iter(self.grids[grid].values())))
        return torch.randint(size, (count,), generator=self.generator, device=self.device)

    def take(self, grid: tuple[int, int], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: column[rows].long() for name, column in self.grids[grid].items()}

    def pictures(self, batch: dict[str, torch.Tensor], jitter: float = 0.0) -> torch.Tensor:
        return self.render(batch["tiles"], batch["colors"], batch["background"], jitter)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--scenes", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--decoder", action="store_true", help="with CLIP and T5 ids")
    given = parser.parse_args()
    make(given.name, given.scenes, given.seed, given.decoder)
