"""What every stage shares: arguments, a time-boxed loop, the loss curve, sample sheets."""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from PIL import Image

from .places import OUT, SCALE


def arguments(**defaults) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT / "samples")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--resume", action="store_true", help="from this stage's saved weights")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    given.minutes *= SCALE
    if SCALE < 1 and "batch" in defaults:
        given.batch = max(8, int(given.batch * SCALE))
    torch.manual_seed(given.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.suppress_errors = True
    return given


def save(name: str, state: dict, dtype: torch.dtype | None = None, folder: Path = OUT) -> None:
    partial = folder / f"{name}.tmp"
    torch.save({key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}, partial)
    partial.rename(folder / f"{name}.pt")


def load(name: str, folder: Path = OUT) -> dict:
    return torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)


class Loop:
    """Steps until the time is over: learning rate warmed up, then a cosine of the elapsed time."""

    def __init__(self, name: str, given: argparse.Namespace, groups: list[dict], warmup=100, betas=(0.9, 0.99)):
        self.name, self.given, self.warmup = name, given, warmup
        self.rates = [group["lr"] for group in groups]
        fused = given.device.startswith("cuda")
        self.optimizer = torch.optim.AdamW(groups, betas=betas, fused=fused)
        self.weights = [w for group in groups for w in group["params"]]
        self.curve, self.step, self.start = [], 0, time.time()
        self.sums: dict[str, torch.Tensor] = {}
        self.summed = 0

    @property
    def elapsed(self) -> float:
        """Fraction of the time that is over."""
        return (time.time() - self.start) / (self.given.minutes * 60)

    def __iter__(self):
        while self.elapsed < 1:
            scale = min(1, (self.step + 1) / self.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.elapsed)))
            for group, rate in zip(self.optimizer.param_groups, self.rates):
                group["lr"] = rate * scale
            yield self.step
            self.step += 1

    def update(self, loss: torch.Tensor, clip: float = 1.0) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, clip)
        self.optimizer.step()

    def log(self, every: int = 50, **values) -> bool:
        """Adds values to the running means; true where a line was printed."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach().float()
            self.sums[name] = self.sums.get(name, 0) + value
        self.summed += 1
        if (self.step + 1) % every:
            return False
        self._line()
        return True

    def _line(self) -> None:
        line = {"step": self.step + 1, "seconds": round(time.time() - self.start, 1)}
        line |= {name: round(float(total) / self.summed, 5) for name, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        self.curve.append(line)
        print(self.name, json.dumps(line), flush=True)

    def finish(self) -> None:
        """Writes the curve."""
        if self.summed:
            self.step -= 1  # counted on after the last step
            self._line()
        text = "\n".join(map(json.dumps, self.curve)) + "\n"
        (self.given.out / f"{self.name}.jsonl").write_text(text)


def weight_groups(module: torch.nn.Module, rate: float, decay: float = 0.01) -> list[dict]:
    """Matrices decay, vectors and embeddings do not."""
    named = [(n, w) for n, w in module.named_parameters() if w.requires_grad]
    plain = [w for n, w in named if w.dim() < 2 or "embed" in n]
    matrices = [w for n, w in named if not (w.dim() < 2 or "embed" in n)]
    return [
        {"params": matrices, "lr": rate, "weight_decay": decay},
        {"params": plain, "lr": rate, "weight_decay": 0.0},
    ]


def sheet(path: Path, columns: list[torch.Tensor]) -> None:
    """Saves pictures `[n, 3, H, W]` in -1..1, each tensor a row."""
    rows = []
    for pictures in columns:
        pictures = (pictures.float().clamp(-1, 1) + 1) * 127.5
        rows.append(torch.cat(list(pictures.round().byte().cpu()), 2))
    picture = torch.cat(rows, 1).permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(path)
