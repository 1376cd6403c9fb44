"""Writes the trained parts in the published layout:
PYTHONPATH=models/nano python -m train.export --to models/nano --backbone backbone-rl"""

import argparse
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import sizes, vocabulary
from .loop import load
from .text import FIXTURE
from .vae import Vae

PICTURE_TOKENS = ["<SOM>", "<EOM>", "<IMAGE>"]
# Sharper than the script's default of 1: letters are exact.
TEMPERATURE = 0.7


def _json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _half(state: dict) -> OrderedDict:
    return OrderedDict((name, value.to(torch.bfloat16).contiguous()) for name, value in state.items())


def _part(state: dict, prefix: str, into: str = "") -> dict:
    return {into + name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}


def _tensors(path: Path, state: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(_half(state)), path, metadata={"format": "pt"})


def _config(folder: Path, steps: int) -> dict:
    end = sizes.TEXT_VOCAB  # control tokens come last in the text vocabulary
    texts = json.loads((folder / "added_tokens.json").read_text())
    assert all(texts[name] < end for name in vocabulary.CONTROL)
    return {
        "architectures": ["XOmniForCausalLM"],
        "model_type": "x-omni",
        "vocab_size": sizes.TEXT_VOCAB,
        "mm_vocab_size": sizes.MM_VOCAB,
        "image_vocab_size": sizes.CODES,
        "mm_special_tokens": PICTURE_TOKENS,
        **sizes.BACKBONE,
        "hidden_act": "silu",
        "rope_scaling": None,
        "max_position_embeddings": 4096,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.3",
        "bos_token_id": texts["<|endoftext|>"],
        "eos_token_id": texts["<|im_end|>"],
        "vision_config": {
            "dtype": "float32",
            "transform": {
                "short_size": sizes.SHORT_SIDE,
                "long_size": sizes.LONG_SIDE,
                "patch_size": 16,
                "random_ratio": None,
                "min_short_size": 64,
                "max_aspect_ratio": 2.0,
                "filtering": True,
            },
            "encoder": {
                "siglip_name": "siglip2_giant_patch16_384",
                "siglip_path": "siglip_vit.pt",
                "projector_path": "vq_projector.pt",
                "z_channels": sizes.VIT["width"],
                "codebook_size": sizes.CODES,
                "codebook_dim": sizes.CODE_DIM,
                "with_norm": True,
            },
            "decoder": {
                "model_path": "flux_siglip",
                "num_inference_steps": steps,
                "cfg_scale": sizes.CFG_SCALE,
                "cfg_scale_2": sizes.CFG_SCALE,
                "upscale_factor": 16,
            },
        },
    }


def _x_omni(folder: Path, backbone: str, steps: int) -> None:
    vocabulary.write(folder)
    _json(folder / "config.json", _config(folder, steps))
    texts = json.loads((folder / "added_tokens.json").read_text())
    generation = {"temperature": TEMPERATURE, "transformers_version": "4.51.3"}
    generation |= {"eos_token_id": texts["<|im_end|>"], "pad_token_id": texts["<|endoftext|>"]}
    _json(folder / "generation_config.json", generation)
    _tensors(folder / "model.safetensors", load(backbone))
    tokenizer = load("tokenizer")
    torch.save(_half(_part(tokenizer, "vit.")), folder / "siglip_vit.pt")
    torch.save(_half(load("projector")), folder / "vq_projector.pt")
    flux = sizes.FLUX
    _json(folder / "flux_siglip/config.json", {
        "_class_name": "FluxTransformer2DModelWithSigLIP",
        "attention_head_dim": flux["head_dim"],
        "num_attention_heads": flux["heads"],
        "axes_dims_rope": list(flux["axes"]),
        "num_layers": flux["double"],
        "num_single_layers": flux["single"],
        "in_channels": 64,
        "out_channels": None,
        "patch_size": 1,
        "guidance_embeds": True,
        "joint_attention_dim": sizes.T5["width"],
        "pooled_projection_dim": sizes.CLIP["hidden"],
        "siglip_channels": sizes.VIT["width"],
    })  # fmt: skip
    stem = folder / "flux_siglip/diffusion_pytorch_model.safetensors"
    _tensors(stem, _part(load("flow"), "flux."))


def _flux(folder: Path) -> None:
    flow, vae, t5, clip = load("flow"), load("vae"), sizes.T5, sizes.CLIP
    for name in ("model_index.json", "scheduler", "tokenizer", "tokenizer_2"):
        copy = shutil.copytree if (FIXTURE / name).is_dir() else shutil.copy
        copy(FIXTURE / name, folder / name)
    _json(folder / "text_encoder/config.json", {
        "model_type": "clip_text_model",
        "vocab_size": clip["vocab"],
        "hidden_size": clip["hidden"],
        "intermediate_size": clip["inner"],
        "num_hidden_layers": clip["layers"],
        "num_attention_heads": clip["heads"],
        "max_position_embeddings": clip["length"],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 2,
    })  # fmt: skip
    _tensors(folder / "text_encoder/model.safetensors", _part(flow, "text_model.", "text_model."))
    _json(folder / "text_encoder_2/config.json", {
        "model_type": "t5",
        "vocab_size": t5["vocab"],
        "d_model": t5["width"],
        "d_kv": t5["head_dim"],
        "num_heads": t5["heads"],
        "d_ff": t5["inner"],
        "num_layers": t5["layers"],
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
    })  # fmt: skip
    _tensors(folder / "text_encoder_2/model.safetensors", _part(flow, "t5."))
    _json(folder / "vae/config.json", {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(sizes.VAE["channels"]),
        "layers_per_block": 2,
        "norm_num_groups": sizes.VAE["groups"],
        "latent_channels": sizes.VAE["latents"],
        "in_channels": 3,
        "out_channels": 3,
        "latents_mean": None,
        "latents_std": None,
        "mid_block_add_attention": True,
        "scaling_factor": vae["scale"].item(),
        "shift_factor": vae["shift"].item(),
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    })  # fmt: skip
    check = Vae()
    check.load_state_dict(vae)
    stem = folder / "vae/diffusion_pytorch_model.safetensors"
    _tensors(stem, _part(check.state_dict(), "decoder.", "decoder."))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--backbone", default="backbone", help="name of the backbone's weights")
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    for part in ("x-omni", "flux"):
        shutil.rmtree(given.to / part, ignore_errors=True)
        (given.to / part).mkdir(parents=True)
    _x_omni(given.to / "x-omni", given.backbone, given.steps)
    _flux(given.to / "flux")
    total = sum(file.stat().st_size for part in ("x-omni", "flux") for file in (given.to / part).rglob("*"))
    print(f"{given.to}: {total / 1e6:.2f} MB")
