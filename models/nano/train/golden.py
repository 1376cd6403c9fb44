"""Golden data of the shipped checkpoint, from the PyTorch implementation that it was trained in:
PYTHONPATH=models/nano python -m train.golden --to tests/golden/xomni-nano/expected

The weights are read back from the published files and the mathematics runs in float32."""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from . import published
from .flux import rotary, sigmas
from .rollout import generate
from .sizes import CFG_SCALE, TEXT_VOCAB
from .text import PROMPT, Texts, padded
from .vae import pack

CAPTION = 'A navy poster with a yellow star above two red circles and the text "HELLO" at the bottom'
GRID = (8, 12)


def backbone_case(model: Path, texts: Texts) -> tuple[dict, dict, torch.Tensor]:
    """Case 02: a greedy picture, with the image logits of every step."""
    backbone = published.backbone(model)
    ids = texts.prompt(CAPTION, GRID)
    prompt, length = torch.from_numpy(padded([ids], PROMPT)).long(), torch.tensor([len(ids)])
    count = GRID[0] * GRID[1]
    codes = generate(backbone, prompt, length, count, temperature=0)
    whole = torch.tensor([ids])
    drawn = torch.cat((whole, codes + TEXT_VOCAB), 1)
    with torch.no_grad():
        logits = backbone.image_logits(backbone.hidden(drawn))[0, len(ids) - 1 : -1]
    assert torch.equal(logits.argmax(-1), codes[0]), "the cached and the whole pass agree"
    best = logits.topk(2, -1).values
    case = {
        "name": "p0",
        "prompt": CAPTION,
        "grid_h": GRID[0],
        "grid_w": GRID[1],
        "input_ids": ids,
        "generated_ids": (codes[0] + TEXT_VOCAB).tolist(),
        "min_top2_margin": (best[:, 0] - best[:, 1]).min().item(),
        "file": "02_backbone_p0.safetensors",
    }
    # Every eighth step: the file stays small.
    tensors = {"image_logits": logits[::8], "image_tokens": codes[0]}
    return case, tensors, codes


def decode_case(model: Path, texts: Texts, codes: torch.Tensor) -> tuple[dict, dict, Image.Image]:
    """Case 10: those codes as a picture, from given noise."""
    flow, vae, projector = published.flow(model), published.vae(model), published.tokenizer(model).projector
    config = json.loads((model / "x-omni/config.json").read_text())["vision_config"]["decoder"]
    steps, tokens = config["num_inference_steps"], GRID[0] * GRID[1]

    generator = torch.Generator().manual_seed(10)
    noise = torch.randn(1, 16, 2 * GRID[0], 2 * GRID[1], generator=generator)
    x, schedule = pack(noise), sigmas(steps, tokens)
    tensors = {"noise_unpacked": noise, "latents_step0_input": x.clone(), "sigmas": schedule,
               "timesteps": schedule[:-1] * 1000}  # fmt: skip
    with torch.no_grad():
        ctx = flow.t5(torch.tensor([texts.t5_ids(CAPTION), texts.t5_ids("")]))
        pooled = flow.text_model(torch.tensor([texts.clip_ids(CAPTION), texts.clip_ids("")]))
        siglip = projector.decode(codes, GRID)
        siglip = torch.cat((siglip, torch.zeros_like(siglip)))
        turn = rotary(GRID, "cpu")
        for index in range(steps):
            t = schedule[index].expand(2)
            v = flow.flux(x.repeat(2, 1, 1), ctx, pooled, t, siglip, turn)
            guided = v[1:] + CFG_SCALE * (v[:1] - v[1:])
            x = x + (schedule[index + 1] - schedule[index]) * guided
            tensors[f"step{index}.latents"] = x.clone()
        pixels = vae.unpack(x, GRID)
    levels = ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0)
    tensors |= {"pooled": pooled, "final_latents_packed": x, "image_u8": levels}
    case = {
        "prompt_passed_to_decoder": CAPTION,
        "grid_h": GRID[0],
        "grid_w": GRID[1],
        "num_inference_steps": steps,
        "true_cfg_scale": CFG_SCALE,
        "image_tokens": codes[0].tolist(),
        "png": "10_decode.png",
    }
    return case, tensors, Image.fromarray(levels.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=published.SHIPPED)
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    texts = Texts()
    case, tensors, codes = backbone_case(given.model, texts)
    decoded, parts, picture = decode_case(given.model, texts, codes)

    def write(name: str, content: dict) -> None:
        (given.to / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")

    def store(name: str, values: dict) -> None:
        save_file({key: value.contiguous() for key, value in values.items()}, given.to / f"{name}.safetensors")

    write("02_backbone", {"prompts": [case]})
    store("02_backbone_p0", tensors)
    write("10_decode", decoded)
    store("10_decode", parts)
    picture.save(given.to / "10_decode.png")
    print(f"smallest margin of a greedy choice {case['min_top2_margin']:.4f}")


if __name__ == "__main__":
    main()
