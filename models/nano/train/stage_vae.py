"""Trains the VAE on rendered posters: python -m train.stage_vae --minutes 3"""

import torch
import torch.nn.functional as F

from .loop import Loop, arguments, load, save, sheet, weight_groups
from .pool import Pool
from .vae import Vae

NOISE = 0.08  # on unit latents: the decoder must bear the transformer's errors


def main() -> None:
    given = arguments(batch=128, rate=1.5e-3, pool="first")
    vae = Vae().to(given.device).to(memory_format=torch.channels_last)
    if given.resume:
        vae.load_state_dict(load("vae"))
    pool = Pool(given.pool, given.device, given.seed, ("tiles", "colors", "background"))
    loop = Loop("vae", given, weight_groups(vae, given.rate, 1e-4))
    kind = given.device.split(":")[0]
    for _ in loop:
        grid = pool.grid()
        size = max(1, given.batch * 64 // (grid[0] * grid[1]))
        with torch.no_grad():
            x = pool.pictures(pool.take(grid, pool.rows(grid, size)))
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(kind, torch.bfloat16):
            z = vae.encoder(x).float()
            # Unit variance and mean by a soft prior; noise keeps the latents smooth.
            prior = z.mean((0, 2, 3)).square().mean() + (z.var((0, 2, 3)) - 1).square().mean()
            y = vae.decoder(z + NOISE * torch.randn_like(z)).float()
        error = y - x
        # Ringing would cross zero error: weigh the largest errors a little more.
        loss = error.abs().mean() + 2 * error.square().mean() + 0.01 * prior
        smooth = F.smooth_l1_loss(y[..., 1:] - y[..., :-1], x[..., 1:] - x[..., :-1])
        smooth = smooth + F.smooth_l1_loss(y[..., 1:, :] - y[..., :-1, :], x[..., 1:, :] - x[..., :-1, :])
        loop.update(loss + smooth)
        loop.log(l1=error.abs().mean(), mse=error.square().mean(), prior=prior)
    measure(vae, pool)
    save("vae", vae.state_dict())
    loop.finish()
    with torch.no_grad():
        grid = (8, 12)
        x = pool.pictures(pool.take(grid, pool.rows(grid, 8)))
        sheet(given.out / "vae.png", [x, vae.unpack(vae.pack(x), grid)])


@torch.no_grad()
def measure(vae: Vae, pool: Pool) -> None:
    """Sets scale and shift from the latents of many pictures."""
    total = []
    for grid in pool.grids:
        x = pool.pictures(pool.take(grid, pool.rows(grid, 256)))
        total.append(vae.encoder(x).float().flatten())
    flat = torch.cat(total)
    vae.shift.copy_(flat.mean().bfloat16())
    vae.scale.copy_((1 / flat.std()).bfloat16())
    print("vae shift", vae.shift.item(), "scale", vae.scale.item(), flush=True)


if __name__ == "__main__":
    main()
