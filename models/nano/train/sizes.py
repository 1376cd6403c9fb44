"""Dimensions of the parts, shared by training and export."""

TEXT_VOCAB, CODES = 704, 2048
MM_VOCAB = CODES + 8

BACKBONE = {
    "hidden_size": 256,
    "intermediate_size": 576,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_mm_adap_layers": 1,
    "num_mm_head_layers": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
VIT = {"width": 64, "depth": 4, "heads": 16, "mlp": 256}
CODE_DIM = 32
CLIP = {"vocab": 640, "hidden": 32, "inner": 64, "layers": 1, "heads": 4, "length": 77}
T5 = {"vocab": 544, "width": 64, "heads": 4, "head_dim": 16, "inner": 128, "layers": 1, "length": 512}
FLUX = {"heads": 4, "head_dim": 32, "axes": (8, 12, 12), "double": 1, "single": 6}
VAE = {"channels": (16, 32, 64, 64), "groups": 8, "latents": 16}
SHORT_SIDE, LONG_SIDE = 128, 192
CFG_SCALE = 1.05
