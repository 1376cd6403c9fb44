"""The backbone's tokenizer: a byte-level BPE in the published files.

Every merge starts at a space (or at the first byte of a Chinese character), so words of captions
are one token each while quoted text, which follows a quotation mark, stays one token a character."""

import json
import random
import sys
from pathlib import Path

import regex

from . import captions
from .domain import draw_scene
from .sizes import CODES, TEXT_VOCAB

TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PICTURE = ("<SOM>", "<EOM>", "<IMAGE>", "<SEP>")


def alphabet() -> dict[int, str]:
    """GPT-2's printable character of each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _pieces() -> set[str]:
    """Pieces of captions, questions and answers that merge: outside quotation marks."""
    rng, found = random.Random(0), set()
    for _ in range(20000):
        scene = draw_scene(rng)
        _, question, answer = captions.question(rng, scene)
        for text in (captions.caption(rng, scene)[0], question, captions.description(scene), answer):
            bare = regex.sub(r'"[^"]*"|“[^”]*”|(?<!\w)[A-Z0-9!?&/ -]{2,}(?!\w)', '""', text)
            found.update(regex.findall(PIECES, bare))
    kept = {p for p in found if p.startswith(" ") and p[1:].isascii() and p[1:].islower()}
    chars = {c for p in found for c in p if ord(c) > 127} | set("“”，。")
    return kept | chars | {' "'}


def merges() -> list[tuple[str, str]]:
    table, seen = alphabet(), {}
    for piece in sorted(_pieces()):
        symbols = [table[byte] for byte in piece.encode()]
        for cut in range(1, len(symbols)):
            seen.setdefault(("".join(symbols[:cut]), symbols[cut]), None)
    return sorted(seen, key=lambda pair: (len(pair[0]), pair))


def write(folder: Path) -> None:
    """Writes the tokenizer's files."""
    pairs = merges()
    tokens = sorted(alphabet().values()) + [a + b for a, b in pairs]
    filler = TEXT_VOCAB - len(tokens) - len(CONTROL)
    assert filler >= 0, f"{len(tokens)} tokens do not fit a vocabulary of {TEXT_VOCAB}"
    names = [*CONTROL, *(f"<|extra_{i}|>" for i in range(filler))]
    names += [*(f"<MM-Token-{i}>" for i in range(CODES)), *PICTURE]
    added = {name: len(tokens) + i for i, name in enumerate(names)}
    vocab = {token: i for i, token in enumerate(tokens)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in added.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in pairs],
        },
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": name, **flags} for name, i in added.items()},
        "additional_special_tokens": list(CONTROL[1:]),
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": CONTROL[2],
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": CONTROL[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    special = {
        "additional_special_tokens": list(CONTROL[1:]),
        "eos_token": CONTROL[2],
        "pad_token": CONTROL[0],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
        ("added_tokens.json", added),
        ("vocab.json", vocab),
    ):
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (folder / name).write_text(text + "\n")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
