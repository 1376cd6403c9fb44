"""Trains the recogniser on rendered posters: python -m train.stage_reader --minutes 1"""

import numpy as np
import torch
import torch.nn.functional as F

from .loop import Loop, arguments, save, sheet, weight_groups
from .pool import Pool
from .reader import Reader, blur, read


def main() -> None:
    given = arguments(batch=256, rate=2e-3, pool="first")
    reader = Reader().to(given.device)
    pool = Pool(given.pool, given.device, given.seed, ("tiles", "colors", "background"))
    loop = Loop("reader", given, weight_groups(reader, given.rate))
    kind = given.device.split(":")[0]
    for _ in loop:
        grid = pool.grid()
        batch = pool.take(grid, pool.rows(grid, max(2, given.batch * 64 // (grid[0] * grid[1]))))
        with torch.no_grad():
            pictures = blur(pool.pictures(batch))
        with torch.autocast(kind, torch.bfloat16):
            tile, color, ground = reader(pictures)
        inked = batch["tiles"] > 0
        tiles = F.cross_entropy(tile.float().flatten(0, 2), batch["tiles"].flatten())
        colors = F.cross_entropy(color.float()[inked], batch["colors"][inked])
        grounds = sum(F.cross_entropy(part.float(), batch["background"][:, i]) for i, part in enumerate(ground))
        loop.update(tiles + 0.5 * colors + 0.2 * grounds)
        right = (tile.argmax(-1) == batch["tiles"])[inked].float().mean()
        loop.log(tiles=tiles, colors=colors, grounds=grounds, right=right)
    save("reader", reader.state_dict())
    loop.finish()
    # What is seen, and what was read of it drawn again.
    batch = pool.take((8, 12), pool.rows((8, 12), 8))
    pictures = blur(pool.pictures(batch))
    parts = [torch.from_numpy(np.stack(part)).to(given.device) for part in zip(*read(reader, pictures))]
    sheet(given.out / "reader.png", [pictures, pool.render(*parts)])


if __name__ == "__main__":
    main()
