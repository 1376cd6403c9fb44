"""Trains FLUX transformer, CLIP, T5 and the projector's decoding half by flow matching:
python -m train.stage_decoder --minutes 4.2"""

import torch
import torch.nn.functional as F

from .domain import GRIDS
from .flux import FlowDecoder, rotary, sigmas
from .loop import Loop, arguments, load, save, sheet, weight_groups
from .pool import Pool
from .sizes import CFG_SCALE, T5
from .text import Texts
from .vae import Vae
from .vision import Tokenizer

COLUMNS = ("tiles", "colors", "background", "clip", "t5")
DROPPED = 0.1  # samples without condition


class Decoding:
    """Codes and captions to pictures, as inference does it."""

    def __init__(self, device: str):
        texts = Texts()
        self.device = device
        self.turns = {grid: rotary(grid, device) for grid in GRIDS}
        self.empty_clip = torch.tensor([texts.clip_ids("")], device=device)
        self.empty_t5 = torch.tensor([texts.t5_ids("")], device=device)

    def conditions(self, flow, clip, t5):
        return flow.t5(F.pad(t5, (0, T5["length"] - t5.shape[1]))), flow.text_model(clip)

    @torch.no_grad()
    def latents(self, flow, siglip, clip, t5, grid, steps=3, cfg=CFG_SCALE):
        """Packed latents; without the negative rows if `cfg` is 1."""
        batch = len(siglip)
        ctx, pooled = self.conditions(flow, clip, t5)
        if cfg != 1:
            other_ctx, other = self.conditions(flow, self.empty_clip, self.empty_t5)
            ctx = torch.cat((ctx, other_ctx.expand(batch, -1, -1)))
            pooled = torch.cat((pooled, other.expand(batch, -1)))
            siglip = torch.cat((siglip, torch.zeros_like(siglip)))
        x = torch.randn(batch, siglip.shape[1], 64, device=self.device)
        schedule = sigmas(steps, siglip.shape[1])
        for now, then in zip(schedule[:-1].tolist(), schedule[1:].tolist()):
            both = x.repeat(len(siglip) // batch, 1, 1)
            t = torch.full((len(siglip),), now, device=self.device)
            v = flow.flux(both, ctx, pooled, t, siglip, self.turns[grid]).float()
            if cfg != 1:
                v = v[batch:] + cfg * (v[:batch] - v[batch:])
            x = x + (then - now) * v
        return x


def load_frozen(device):
    tokenizer, vae = Tokenizer().to(device), Vae().to(device)
    tokenizer.load_state_dict(load("tokenizer"))
    vae.load_state_dict(load("vae"))
    return tokenizer.requires_grad_(False), vae.requires_grad_(False)


def main() -> None:
    given = arguments(batch=256, rate=1e-3, pool="first")
    tokenizer, vae = load_frozen(given.device)
    flow = FlowDecoder().to(given.device)
    if given.resume:
        flow.load_state_dict(load("flow"))
        # The codes are the tokenizer's; only how they are decoded was trained here.
        after = {name: w for name, w in load("projector").items() if name.startswith("post_")}
        tokenizer.projector.load_state_dict(after, strict=False)
    projector = tokenizer.projector
    for part in (projector.post_quant_conv, projector.post_conv):
        part.requires_grad_(True)
    if given.compile:
        for block in (*flow.flux.transformer_blocks, *flow.flux.single_transformer_blocks):
            block.compile(dynamic=True)
    pool = Pool(given.pool, given.device, given.seed, COLUMNS)
    decoding = Decoding(given.device)
    groups = weight_groups(flow, given.rate) + weight_groups(projector, 0.3 * given.rate)
    loop = Loop("decoder", given, groups, warmup=200)
    kind = given.device.split(":")[0]
    for _ in loop:
        grid = pool.grid()
        size = max(2, given.batch * 100 // (grid[0] * grid[1] + 36))
        batch = pool.take(grid, pool.rows(grid, size))
        clip, t5 = batch["clip"], F.pad(batch["t5"], (0, T5["length"] - batch["t5"].shape[1]))
        with torch.no_grad():
            pictures = pool.pictures(batch)
            with torch.autocast(kind, torch.bfloat16):
                clean = vae.pack(pictures)
            codes = tokenizer.encode(pictures)
            noise = torch.randn_like(clean)
            # Half of the samples at pure noise, where few steps decide the most.
            t = torch.rand(size, device=given.device)
            t = torch.where(torch.rand_like(t) < 0.3, torch.ones_like(t), t)
            mixed = torch.lerp(clean, noise, t[:, None, None])
            drop = torch.rand(size, device=given.device) < DROPPED
            clip = torch.where(drop[:, None], decoding.empty_clip, clip)
            t5 = torch.where(drop[:, None], decoding.empty_t5, t5)
        with torch.autocast(kind, torch.bfloat16):
            siglip = projector.decode(codes, grid) * ~drop[:, None, None]
            ctx, pooled = flow.t5(t5), flow.text_model(clip)
            v = flow.flux(mixed, ctx, pooled, t, siglip, decoding.turns[grid]).float()
        error = (v - (noise - clean)).square().mean((1, 2))
        kept = ~drop
        loss = (error * torch.where(drop, 0.2, 1.0)).mean()
        loop.update(loss)
        full = kept & (t == 1)
        loop.log(loss=(error * kept).sum() / kept.sum(), first=(error * full).sum() / full.sum().clamp(min=1))
        if loop.step % 2000 == 1999:
            save("flow", flow.state_dict())
            save("projector", projector.state_dict())
    save("flow", flow.state_dict())
    save("projector", projector.state_dict())
    loop.finish()
    score(given, pool, decoding, tokenizer, vae, flow)


@torch.no_grad()
def score(given, pool, decoding, tokenizer, vae, flow) -> None:
    """Reconstruction of unseen noise and scenes by number of steps, and a sheet."""
    for grid in ((8, 12), (12, 12)):
        batch = pool.take(grid, pool.rows(grid, 64 if given.device != "cpu" else 4))
        pictures = pool.pictures(batch)
        siglip = tokenizer.projector.decode(tokenizer.encode(pictures), grid)
        rows = [pictures, vae.unpack(vae.pack(pictures), grid)]
        for steps in (1, 2, 3, 4):
            x = decoding.latents(flow, siglip, batch["clip"], batch["t5"], grid, steps)
            rows.append(vae.unpack(x, grid))
            error = (rows[-1].clamp(-1, 1) - pictures).square().mean() / 4
            print(f"decoder {grid} steps {steps}: {-10 * error.log10().item():.2f} dB", flush=True)
        sheet(given.out / f"decoder-{grid[0]}x{grid[1]}.png", [row[:8] for row in rows])


if __name__ == "__main__":
    main()
