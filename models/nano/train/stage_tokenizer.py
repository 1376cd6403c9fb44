"""Trains ViT and VQ projector: python -m train.stage_tokenizer --minutes 3

A code alone must show its own 16x16 pixels and name its tile and colour; all codes together, through
a small transformer that only training needs, must show the picture."""

import torch
import torch.nn.functional as F
from torch import nn

from .domain import COLOR_NAMES
from .loop import Loop, arguments, load, save, sheet, weight_groups
from .pool import Pool
from .sizes import CODE_DIM, CODES, VIT
from .tiles import FIRST_GLYPH, TILES
from .vision import PATCH, Block, Tokenizer

PIXELS = 3 * PATCH * PATCH
WIDTH = 192
JITTER = 0.08  # of the colours that the ViT sees; it is to name the true ones


class Head(nn.Module):
    """The training heads."""

    def __init__(self):
        super().__init__()
        self.alone = nn.Sequential(nn.Linear(CODE_DIM, 384), nn.GELU(), nn.Linear(384, PIXELS))
        self.tile = nn.Linear(CODE_DIM, TILES)
        self.color = nn.Linear(CODE_DIM, len(COLOR_NAMES))
        self.enter = nn.Linear(VIT["width"], WIDTH)
        self.blocks = nn.ModuleList([Block(WIDTH, 6, 4 * WIDTH) for _ in range(4)])
        self.leave = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PIXELS))

    def together(self, latents, positions):
        x = self.enter(latents) + positions
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


def patches(pictures):
    """`[B, 3, 16h, 16w]` to `[B, h w, 768]`."""
    return F.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2)


def pictures(patched, grid):
    return F.fold(patched.transpose(1, 2).float(), (grid[0] * PATCH, grid[1] * PATCH), PATCH, stride=PATCH)


def distance(a, b):
    error = a.float() - b
    return error.abs().mean() + 2 * error.square().mean()


class Trainer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokenizer, self.head = Tokenizer(), Head()
        self.enter_positions = nn.Parameter(0.02 * torch.randn(1, WIDTH, 6, 6))

    def positions(self, grid):
        table = F.interpolate(self.enter_positions, size=grid, mode="bilinear")
        return table.flatten(2).transpose(1, 2)

    def forward(self, x, seen, tiles, colors, quantise, revive):
        grid, projector = tiles.shape[1:], self.tokenizer.projector
        noisy = seen + 0.03 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)
        z = F.normalize(projector.quant(self.tokenizer.vit(noisy)).float(), dim=-1)
        rows, commit = z, z.new_zeros(())
        if quantise:
            book = projector.quantize
            codes = book.nearest(z.detach())
            chosen = book.embedding(codes)
            commit = (z - chosen).square().sum(-1).mean()
            rows = z + (chosen - z).detach()
            full = (tiles.flatten() > 0).nonzero()[:, 0]
            flat = z.detach().flatten(0, 1)
            book.update(flat, codes.flatten())
            if revive:
                self.wake(flat[full])
        target, head = patches(x), self.head
        alone = distance(head.alone(rows), target)
        together = distance(head.together(projector.expand(rows, grid), self.positions(grid)), target)
        tile = F.cross_entropy(head.tile(rows).float().flatten(0, 1), tiles.flatten(), reduction="none")
        # Glyphs are small and many are alike: they count most, background least.
        weight = torch.where(tiles >= FIRST_GLYPH, 2.0, torch.where(tiles > 0, 1.0, 0.2)).flatten()
        tile = (tile * weight).sum() / weight.sum()
        inked = (tiles > 0).float().flatten()
        color = F.cross_entropy(head.color(rows).float().flatten(0, 1), colors.flatten(), reduction="none")
        color = (color * inked).sum() / inked.sum().clamp(min=1)
        loss = together + 0.25 * alone + 0.3 * tile + 0.1 * color + 0.5 * commit
        return loss, {"together": together, "alone": alone, "tile": tile, "color": color, "commit": commit}

    @torch.no_grad()
    def wake(self, features):
        """Moves idle codes to features of shapes and glyphs, which are rarer than background."""
        book = self.tokenizer.projector.quantize
        if len(features) == 0:
            return
        idle = (book.usage < 0.1).unsqueeze(1)
        fresh = features[torch.randint(len(features), (CODES,), device=features.device)]
        book.total.copy_(torch.where(idle, fresh, book.total))
        book.usage.copy_(torch.where(idle[:, 0], torch.ones_like(book.usage), book.usage))
        book.embedding.weight.copy_(F.normalize(book.total, dim=-1))


def main() -> None:
    given = arguments(batch=512, rate=1.5e-3, pool="first")
    trainer = Trainer().to(given.device)
    if given.resume:
        trainer.tokenizer.load_state_dict(load("tokenizer"))
        book = trainer.tokenizer.projector.quantize
        book.total.copy_(book.embedding.weight)
    pool = Pool(given.pool, given.device, given.seed, ("tiles", "colors", "background"))
    loop = Loop("tokenizer", given, weight_groups(trainer, given.rate))
    kind = given.device.split(":")[0]
    for step in loop:
        grid = pool.grid()
        size = max(2, given.batch * 64 // (grid[0] * grid[1]))
        with torch.no_grad():
            batch = pool.take(grid, pool.rows(grid, size))
            x, seen = pool.pictures(batch), pool.pictures(batch, JITTER)
        revive = step % 20 == 0 and loop.elapsed < 0.7
        with torch.autocast(kind, torch.bfloat16):
            loss, parts = trainer(x, seen, batch["tiles"], batch["colors"], given.resume or loop.elapsed > 0.05, revive)
        loop.update(loss)
        used = (trainer.tokenizer.projector.quantize.usage > 0.1).float().mean()
        loop.log(**parts, used=used)
    save("tokenizer", trainer.tokenizer.state_dict())
    loop.finish()
    with torch.no_grad():
        rows = []
        for grid in ((8, 8), (12, 12)):
            x = pool.pictures(pool.take(grid, pool.rows(grid, 144 // grid[0])))
            latents = trainer.tokenizer.projector.decode(trainer.tokenizer.encode(x), grid)
            y = pictures(trainer.head.together(latents, trainer.positions(grid)), grid)
            rows += [x[:12], y[:12]] if grid == (12, 12) else [x, y]
        sheet(given.out / "tokenizer-8.png", rows[:2])
        sheet(given.out / "tokenizer-12.png", rows[2:])


if __name__ == "__main__":
    main()
