"""The three tokenizers as arrays: backbone prompts and chats, CLIP and T5 ids."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from . import vocabulary
from .places import SCRATCH
from .sizes import CLIP, T5

PROMPT, TAIL, T5_KEPT = 88, 80, 192  # longest prompt, chat tail and (unpadded) T5 sequence
HEAD = "<|im_start|>user\n"
FIXTURE = Path(__file__).parents[3] / "tests/golden/xomni-tiny/flux"
_CLIP_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer(folder: Path) -> Tokenizer:
    vocab = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    merges = [tuple(line.split()) for line in lines if line]
    bpe = models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(_CLIP_PIECES), "removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def picture_head(grid: tuple[int, int]) -> str:
    return f"<SOM>{grid[0]} {grid[1]}<IMAGE>"


class Texts:
    """Encodes for every part. `flux` is the folder with `tokenizer` and `tokenizer_2`."""

    def __init__(self, flux: Path = FIXTURE):
        folder = SCRATCH / "tokenizer"
        if not (folder / "tokenizer.json").exists():
            vocabulary.write(folder)
        self.backbone = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.t5 = Tokenizer.from_file(str(flux / "tokenizer_2/tokenizer.json"))
        self.t5.no_padding()
        self.t5.no_truncation()
        self.clip = clip_tokenizer(flux / "tokenizer")
        vocab = json.loads((flux / "tokenizer/vocab.json").read_text())
        self.clip_start, self.clip_end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]

    def ids(self, text: str) -> list[int]:
        return self.backbone.encode(text).ids

    def prompt(self, caption: str, grid: tuple[int, int]) -> list[int]:
        return self.ids(caption + picture_head(grid))

    def tail(self, question: str, answer: str) -> tuple[list[int], int]:
        """What follows the picture's codes in a chat, and where its answer starts."""
        asked = self.ids(f"<EOM>\n{question}<|im_end|>\n<|im_start|>assistant\n")
        return asked + self.ids(f"{answer}<|im_end|>"), len(asked)

    def clip_ids(self, text: str) -> list[int]:
        spaced = "".join(f" {c} " if "\u4e00" <= c <= "\u9fff" else c for c in text)
        ids = [self.clip_start, *self.clip.encode(spaced).ids[:75], self.clip_end]
        return ids + [self.clip_end] * (CLIP["length"] - len(ids))

    def t5_ids(self, text: str, length: int = T5["length"]) -> list[int]:
        ids = self.t5.encode(text, add_special_tokens=False).ids[: length - 1] + [1]
        return ids + [0] * (length - len(ids))


def padded(rows: list[list[int]], length: int) -> np.ndarray:
    """Rows cut or padded with 0."""
    table = np.zeros((len(rows), length), np.int16)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row[:length]
    return table
