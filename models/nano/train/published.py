"""The parts of a checkpoint in the published layout (`train.export`), in float32."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from .backbone import Backbone
from .flux import FlowDecoder
from .vae import Vae
from .vision import Tokenizer

SHIPPED = Path(__file__).parents[1]
_STEM = "diffusion_pytorch_model.safetensors"


def _float(state: dict) -> dict:
    return {name: value.float() for name, value in state.items()}


def _without(prefix: str, state: dict) -> dict:
    return {name.removeprefix(prefix): value for name, value in _float(state).items()}


def backbone(model: Path) -> Backbone:
    made = Backbone()
    made.load_state_dict(_float(load_file(model / "x-omni/model.safetensors")))
    return made.requires_grad_(False)


def tokenizer(model: Path) -> Tokenizer:
    made = Tokenizer()
    for part, name in ((made.vit, "siglip_vit.pt"), (made.projector, "vq_projector.pt")):
        part.load_state_dict(_float(torch.load(model / "x-omni" / name, weights_only=True)))
    return made.requires_grad_(False)


def flow(model: Path) -> FlowDecoder:
    made, flux = FlowDecoder(), model / "flux"
    made.text_model.load_state_dict(_without("text_model.", load_file(flux / "text_encoder/model.safetensors")))
    made.t5.load_state_dict(_float(load_file(flux / "text_encoder_2/model.safetensors")))
    made.flux.load_state_dict(_float(load_file(model / "x-omni/flux_siglip" / _STEM)))
    return made.requires_grad_(False)


def vae(model: Path) -> Vae:
    """Its encoder, which is not published, is not trained."""
    made, folder = Vae(), model / "flux/vae"
    made.decoder.load_state_dict(_without("decoder.", load_file(folder / _STEM)))
    settings = json.loads((folder / "config.json").read_text())
    made.scale.fill_(settings["scaling_factor"])
    made.shift.fill_(settings["shift_factor"])
    return made.requires_grad_(False)
