#!/usr/bin/env python3
"""Draws the held-out captions with xomni and judges the pictures.

    models/nano/judge.py --xomni target/release/xomni --pictures /tmp/pictures
    models/nano/judge.py --server 127.0.0.1:8400 --pictures /tmp/pictures

Needs numpy, scipy, pillow and torch (pip install -r models/nano/train/requirements.txt), and DejaVu Sans Mono Bold
(Debian: fonts-dejavu-core)."""

import argparse
import base64
import json
import os
import subprocess
import sys
from collections import Counter
from multiprocessing import Pool
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import Queue
from urllib.request import Request, urlopen

from PIL import Image

BATCH = 16
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from train.perceive import perceive  # noqa: E402
from train.score import ATTRIBUTES, score  # noqa: E402


def draw(rows: list[dict], given: argparse.Namespace) -> None:
    """Batches of captions of one size, each drawn by a process on two cores."""
    cores = sorted(os.sched_getaffinity(0))
    free: Queue = Queue()
    for at in range(0, len(cores), 2):
        free.put(set(cores[at : at + 2]))
    batches = []
    for size in sorted({row["size"] for row in rows}):
        same = [i for i, row in enumerate(rows) if row["size"] == size]
        batches += [(size, same[at : at + BATCH]) for at in range(0, len(same), BATCH)]

    def one(batch: tuple[str, list[int]]) -> None:
        size, indices = batch
        stem = given.pictures / f"{size}-{indices[0]:04}"
        prompts = stem.with_suffix(".jsonl")
        prompts.write_text("".join(json.dumps({"prompt": rows[i]["prompt"]}) + "\n" for i in indices))
        command = [given.xomni, "generate", "--prompts", prompts, "--size", size, "--seed", given.seed,
                   "-o", stem.with_suffix(".png"), *given.options]  # fmt: skip
        pair = free.get()
        try:
            subprocess.run(
                [str(part) for part in command],
                check=True,
                stdout=subprocess.DEVNULL,
                preexec_fn=lambda: os.sched_setaffinity(0, pair),
            )
        finally:
            free.put(pair)
        prompts.unlink()
        width = len(str(len(indices) - 1))
        for at, index in enumerate(indices):
            name = f"{stem.name}-{at:0{width}}.png" if len(indices) > 1 else f"{stem.name}.png"
            (given.pictures / name).rename(given.pictures / f"{index:04}.png")

    with ThreadPool(free.qsize()) as pool:
        pool.map(one, batches, chunksize=1)


def draw_over_http(rows: list[dict], given: argparse.Namespace) -> None:
    """Every caption by a request of its own to a coordinator, `--together` at a time."""

    def one(index: int) -> None:
        asked = {"prompt": rows[index]["prompt"], "size": rows[index]["size"], "seed": given.seed}
        address = f"http://{given.server}/v1/images/generations"
        headers = {"Content-Type": "application/json"}
        request = Request(address, json.dumps(asked).encode(), headers)
        with urlopen(request, timeout=600) as answer:
            picture = json.load(answer)["data"][0]["b64_json"]
        (given.pictures / f"{index:04}.png").write_bytes(base64.b64decode(picture))

    with ThreadPool(given.together) as pool:
        pool.map(one, range(len(rows)), chunksize=1)


def judge(job: tuple[dict, Path]) -> dict[str, bool]:
    row, file = job
    return score(row["promise"], perceive(Image.open(file)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=Path, default=HERE / "heldout.jsonl")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--xomni", type=Path, help="binary that draws them; else they are there")
    parser.add_argument("--server", help="HOST:PORT of a coordinator that draws them over HTTP instead")
    parser.add_argument("--together", type=int, default=4, help="requests at a time to the server")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wrong", action="store_true", help="list what is wrong")
    parser.add_argument("options", nargs="*", help="more options of xomni generate, after --")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.captions.read_text().splitlines()]
    given.pictures.mkdir(parents=True, exist_ok=True)
    if given.xomni:
        draw(rows, given)
    elif given.server:
        draw_over_http(rows, given)
    jobs = [(row, given.pictures / f"{i:04}.png") for i, row in enumerate(rows)]
    with Pool() as pool:
        results = pool.map(judge, jobs, chunksize=8)
    asked, right = Counter(), Counter()
    for index, (row, result) in enumerate(zip(rows, results)):
        asked.update(result.keys())
        right.update(name for name, good in result.items() if good)
        missed = [name for name, good in result.items() if not good]
        if given.wrong and missed:
            print(f"{index:04} {' '.join(missed)}: {row['prompt']}")
    for name in (*ATTRIBUTES, "text"):
        print(f"{name:10} {right[name]:4} of {asked[name]:4}  {right[name] / max(1, asked[name]):6.1%}")
    total, good = (sum(count[name] for name in ATTRIBUTES) for count in (asked, right))
    print(f"attributes {good:4} of {total:4}  {good / max(1, total):6.1%}")
    whole = sum(all(result.values()) for result in results)
    print(f"all right  {whole:4} of {len(rows):4}  {whole / len(rows):6.1%}")


if __name__ == "__main__":
    main()
