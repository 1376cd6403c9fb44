"""Reinforcement learning of the backbone with GRPO: python -m train.stage_rl --minutes 2

Every prompt is drawn `--group` times at temperature 1 and decoded to a picture; the recogniser reads
it and the reward is what the caption promises and the picture keeps, relative to the group."""

import copy
import multiprocessing
import os

import torch
import torch.nn.functional as F

from .backbone import Backbone
from .flux import FlowDecoder
from .loop import Loop, arguments, load, save, sheet, weight_groups
from .pool import Pool
from .reader import Reader, parse, read
from .rollout import generate
from .score import score
from .stage_decoder import Decoding, load_frozen
from .stage_sft import Sequences, select

COLUMNS = ("tiles", "colors", "background", "prompt", "length", "clip", "t5")
TEXT_SHARE, KL = 0.5, 0.02
STEPS = 2  # of the decoder, without guidance


def reward(job: tuple[dict, tuple]) -> tuple[float, float, float]:
    """(reward, attributes right, texts right) of one picture."""
    promise, seen = job
    shown = parse(*seen)
    right = score(promise, shown)
    exact = right.pop("text", None)
    kept = sum(right.values()) / max(1, len(right))
    if exact is None:
        return kept, kept, float("nan")
    lines = promise["lines"]
    said = [text for text, *_ in shown["lines"]]
    letters = sum(a == b for want, got in zip(lines, said) for a, b in zip(want, got))
    letters /= max(sum(map(len, lines)), sum(map(len, said)))
    told = 0.4 * letters + 0.6 * exact
    return (1 - TEXT_SHARE) * kept + TEXT_SHARE * told, kept, float(exact)


class Studio:
    """Draws codes as pictures and rewards them."""

    def __init__(self, device: str, pool: Pool):
        self.device, self.pool, self.decoding = device, pool, Decoding(device)
        self.tokenizer, self.vae = load_frozen(device)
        self.tokenizer.projector.load_state_dict(load("projector"))
        self.flow, self.reader = FlowDecoder().to(device), Reader().to(device)
        self.flow.load_state_dict(load("flow"))
        self.reader.load_state_dict(load("reader"))
        self.workers = multiprocessing.Pool(max(1, min(24, (os.cpu_count() or 2) - 4)))

    @torch.no_grad()
    def draw(self, codes, clip, t5, grid):
        parts = []
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            for part in torch.arange(len(codes), device=self.device).split(512):
                siglip = self.tokenizer.projector.decode(codes[part], grid)
                x = self.decoding.latents(self.flow, siglip, clip[part], t5[part], grid, STEPS, cfg=1)
                parts.append(self.vae.unpack(x, grid).float())
        return torch.cat(parts)

    def rewards(self, pictures, promises):
        seen = [one for part in pictures.split(512) for one in read(self.reader, part)]
        jobs = list(zip(promises, seen))
        found = self.workers.map(reward, jobs, chunksize=max(1, len(jobs) // 48))
        return torch.tensor(found, device=self.device).T


def log_probability(backbone, sequences, batch, codes):
    """Of every drawn code `[B, N]`."""
    ids, at, _ = sequences.prompt_ids(batch["prompt"], batch["length"], codes)
    logits = backbone.image_logits(select(backbone.hidden(ids), at)).float()
    return -F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")


def main() -> None:
    given = arguments(batch=64, group=16, rate=1.5e-4, pool="rl")
    pool = Pool(given.pool, given.device, given.seed, COLUMNS, promises=True)
    studio = Studio(given.device, pool)
    backbone = Backbone().to(given.device)
    backbone.load_state_dict(load("backbone"))
    half = torch.bfloat16 if given.device.startswith("cuda") else torch.float32
    backbone.stream = half
    before = copy.deepcopy(backbone).requires_grad_(False)
    sequences = Sequences.__new__(Sequences)
    sequences.device = given.device
    loop = Loop("rl", given, weight_groups(backbone, given.rate, 0.0), warmup=5)
    kind = given.device.split(":")[0]
    for _ in loop:
        grid = pool.grid()
        rows = pool.rows(grid, given.batch)
        promises = [pool.promises[grid][i] for i in rows.tolist() for _ in range(given.group)]
        batch = pool.take(grid, rows.repeat_interleave(given.group))
        count = grid[0] * grid[1]
        with torch.autocast(kind, torch.bfloat16):
            codes = generate(backbone, batch["prompt"], batch["length"], count, top_k=0, min_p=0)
        pictures = studio.draw(codes, batch["clip"], batch["t5"], grid)
        gained, kept, told = studio.rewards(pictures, promises)
        groups = gained.view(-1, given.group)
        advantage = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 0.05)
        advantage = advantage.flatten()
        loop.optimizer.zero_grad(set_to_none=True)
        penalty = 0.0
        for part in torch.arange(len(codes), device=given.device).split(256):
            piece = {name: batch[name][part] for name in ("prompt", "length")}
            with torch.autocast(kind, torch.bfloat16):
                now = log_probability(backbone, sequences, piece, codes[part])
                with torch.no_grad():
                    old = log_probability(before, sequences, piece, codes[part])
            apart = old - now
            drift = apart.exp() - apart - 1  # the k3 estimate of the divergence
            loss = (-advantage[part, None] * now + KL * drift).mean() * len(part) / len(codes)
            loss.backward()
            penalty += drift.mean().detach() * len(part) / len(codes)
        torch.nn.utils.clip_grad_norm_(loop.weights, 0.5)
        loop.optimizer.step()
        loop.log(every=5, reward=gained.mean(), attributes=kept.mean(), texts=told.nanmean(), drift=penalty)
    save("backbone-rl", backbone.state_dict(), torch.bfloat16)
    loop.finish()
    sheet(given.out / "rl.png", [pictures[:: given.group][:8]])
    studio.workers.terminate()


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
