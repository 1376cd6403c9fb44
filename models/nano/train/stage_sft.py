"""Trains the backbone: captions to codes, and codes with a question to an answer:
python -m train.stage_sft --minutes 3.9"""

import torch
import torch.nn.functional as F

from .backbone import Backbone
from .domain import GRID_WEIGHTS, GRIDS
from .flux import FlowDecoder
from .loop import Loop, arguments, load, save, sheet, weight_groups
from .pool import Pool
from .rollout import generate
from .sizes import TEXT_VOCAB
from .stage_decoder import Decoding, load_frozen
from .text import HEAD, PROMPT, TAIL, Texts, picture_head
from .vision import Tokenizer

COLUMNS = ("tiles", "colors", "background", "prompt", "length", "tail", "answer", "end")
LENGTH = 240
CHATS = 0.15


class Sequences:
    """Batches of prompts and of chats as padded ids with the positions that learn."""

    def __init__(self, pool: Pool, tokenizer: Tokenizer, device: str):
        self.pool, self.device, texts = pool, device, Texts()
        self.head = {grid: torch.tensor(texts.ids(HEAD + picture_head(grid)), device=device) for grid in GRIDS}
        for grid, columns in pool.grids.items():
            columns["codes"] = self.encode(tokenizer, grid)
            for name in ("tiles", "colors", "background"):
                del columns[name]

    @torch.no_grad()
    def encode(self, tokenizer, grid):
        """The codes of the whole pool."""
        count, parts = len(self.pool.grids[grid]["tiles"]), []
        for start in range(0, count, 2048):
            rows = torch.arange(start, min(start + 2048, count), device=self.device)
            pictures = self.pool.pictures(self.pool.take(grid, rows))
            parts.append(tokenizer.encode(pictures).short())
        return torch.cat(parts)

    def prompts(self, grid, count):
        """ids `[B, LENGTH]`, index of each image position's predictor `[B, N]`, codes `[B, N]`."""
        batch = self.pool.take(grid, self.pool.rows(grid, count))
        return self.prompt_ids(batch["prompt"], batch["length"], batch["codes"])

    def prompt_ids(self, prompt, length, codes):
        ids = F.pad(prompt, (0, LENGTH - PROMPT))
        at = length[:, None] + torch.arange(codes.shape[1], device=self.device)
        return ids.scatter(1, at, codes + TEXT_VOCAB), at - 1, codes

    def chats(self, grid, count):
        """ids, predictors `[B, TAIL]` and targets `[B, TAIL]`, -100 where nothing is learnt."""
        batch = self.pool.take(grid, self.pool.rows(grid, count))
        head, codes = self.head[grid].expand(count, -1), batch["codes"] + TEXT_VOCAB
        ids = torch.cat((head, codes, batch["tail"]), 1)
        start = head.shape[1] + codes.shape[1]
        at = torch.arange(TAIL, device=self.device).expand(count, -1)
        learn = (at >= batch["answer"][:, None]) & (at < batch["end"][:, None])
        targets = torch.where(learn, batch["tail"], -100)
        return F.pad(ids, (0, LENGTH - ids.shape[1])), start - 1 + at, targets


def select(hidden, at):
    return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))


def main() -> None:
    given = arguments(batch=768, rate=2e-3, pool="sft")
    backbone = Backbone().to(given.device)
    if given.resume:
        backbone.load_state_dict(load("backbone"))
    tokenizer, vae = load_frozen(given.device)
    pool = Pool(given.pool, given.device, given.seed, COLUMNS)
    sequences = Sequences(pool, tokenizer, given.device)
    kind = given.device.split(":")[0]
    backbone.stream = torch.bfloat16
    if given.compile:
        for layer in backbone.model.layers:
            layer.compile(dynamic=False)
    loop = Loop("sft", given, weight_groups(backbone, given.rate, 0.03), warmup=300, betas=(0.9, 0.98))
    counts = {
        grid: (max(1, int(given.batch * share * (1 - CHATS))), max(1, int(given.batch * share * CHATS)))
        for grid, share in zip(GRIDS, GRID_WEIGHTS)
    }
    for _ in loop:
        images = [sequences.prompts(grid, counts[grid][0]) for grid in GRIDS]
        chats = [sequences.chats(grid, counts[grid][1]) for grid in GRIDS]
        ids = torch.cat([part[0] for part in images + chats])
        with torch.autocast(kind, torch.bfloat16):
            hidden = backbone.hidden(ids)
            split = hidden.split([len(part[0]) for part in images + chats])
            shown = torch.cat([select(h, at).flatten(0, 1) for h, (_, at, _) in zip(split, images)])
            codes = torch.cat([part[2].flatten() for part in images])
            logits = backbone.image_logits(shown)
            image = F.cross_entropy(logits.float(), codes)
            kept = [(h, at, want) for h, (_, at, want) in zip(split[len(images) :], chats)]
            told = torch.cat([select(h, at).flatten(0, 1) for h, at, _ in kept])
            answers = torch.cat([want.flatten() for *_, want in kept])
            text = F.cross_entropy(backbone.lm_head(told).float(), answers, ignore_index=-100)
        loop.update(image + 0.2 * text)
        with torch.no_grad():
            right = (logits.argmax(-1) == codes).float().mean()
        if loop.log(image=image, text=text, right=right) and loop.step % 1000 == 999:
            save("backbone", backbone.state_dict(), torch.bfloat16)
    save("backbone", backbone.state_dict(), torch.bfloat16)
    loop.finish()
    plain = Backbone().to(given.device)  # nothing compiled: every step has another shape
    plain.load_state_dict(backbone.state_dict())
    samples(given, pool, plain, tokenizer, vae)


@torch.no_grad()
def samples(given, pool, backbone, tokenizer, vae, grid=(8, 12), count=8) -> None:
    """A sheet of the scenes' codes decoded, and below of the codes drawn from their captions."""
    texts, decoding, flow = Texts(), Decoding(given.device), FlowDecoder().to(given.device)
    flow.load_state_dict(load("flow"))
    tokenizer.projector.load_state_dict(load("projector"))
    batch = pool.take(grid, pool.rows(grid, count))
    prompts = [ids[:length] for ids, length in zip(batch["prompt"].tolist(), batch["length"].tolist())]
    captions = [texts.backbone.decode(ids, skip_special_tokens=False).split("<SOM>")[0] for ids in prompts]
    clip, t5 = (
        torch.tensor([encode(text) for text in captions], device=given.device)
        for encode in (texts.clip_ids, texts.t5_ids)
    )
    with torch.autocast(given.device.split(":")[0], torch.bfloat16):
        drawn = generate(backbone, batch["prompt"], batch["length"], grid[0] * grid[1], temperature=0.7)
    rows = []
    for codes in (batch["codes"], drawn):
        latents = decoding.latents(flow, tokenizer.projector.decode(codes, grid), clip, t5, grid)
        rows.append(vae.unpack(latents, grid))
    sheet(given.out / "sft.png", rows)
    (given.out / "sft.txt").write_text("\n".join(captions) + "\n")


if __name__ == "__main__":
    main()
