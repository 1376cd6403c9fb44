"""The backbone: Qwen2 layers with multimodal-only adapter and head layers, published names."""

import torch
import torch.nn.functional as F
from torch import nn

from .flux import Rms, heads
from .sizes import BACKBONE as B
from .sizes import CODES, MM_VOCAB, TEXT_VOCAB

HEAD_DIM = B["hidden_size"] // B["num_attention_heads"]


def turns(positions):
    """cos and sin `[..., head_dim / 2]` of positions."""
    f = B["rope_theta"] ** (-torch.arange(0, HEAD_DIM, 2, device=positions.device).float() / HEAD_DIM)
    angle = positions.float().unsqueeze(-1) * f
    return angle.cos(), angle.sin()


def rotate(x, turn):
    """Rotates the halves of `[B, heads, L, d]` by `[B or 1, L, d / 2]`."""
    cos, sin = (part.unsqueeze(1).to(x.dtype) for part in turn)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        width, inner, kv = B["hidden_size"], B["intermediate_size"], B["num_key_value_heads"] * HEAD_DIM
        self.input_layernorm = Rms(width)
        self.self_attn = nn.ModuleDict({
            "q_proj": nn.Linear(width, width),
            "k_proj": nn.Linear(width, kv),
            "v_proj": nn.Linear(width, kv),
            "o_proj": nn.Linear(width, width, bias=False),
        })  # fmt: skip
        self.post_attention_layernorm = Rms(width)
        self.mlp = nn.ModuleDict({
            "gate_proj": nn.Linear(width, inner, bias=False),
            "up_proj": nn.Linear(width, inner, bias=False),
            "down_proj": nn.Linear(inner, width, bias=False),
        })  # fmt: skip

    def forward(self, h, turn, attend):
        """`attend(q, k, v)` -> `[B, heads, L, d]` keeps the keys and values it needs."""
        at = self.self_attn
        a = self.input_layernorm(h)
        q = rotate(heads(at["q_proj"](a), B["num_attention_heads"]), turn)
        k = rotate(heads(at["k_proj"](a), B["num_key_value_heads"]), turn)
        v = heads(at["v_proj"](a), B["num_key_value_heads"])
        h = h + at["o_proj"](attend(q, k, v).transpose(1, 2).flatten(2))
        b = self.post_attention_layernorm(h)
        return h + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](b)) * self.mlp["up_proj"](b))


def wide(kv):
    """Repeats each key or value head for its group of query heads."""
    return kv.repeat_interleave(B["num_attention_heads"] // B["num_key_value_heads"], 1)


class Causal:
    """Attention of a whole sequence to itself."""

    def __call__(self, q, k, v):
        return F.scaled_dot_product_attention(q, wide(k), wide(v), is_causal=True)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        width = B["hidden_size"]
        self.lm_embed_tokens = nn.Embedding(TEXT_VOCAB, width)
        self.mm_embed_tokens = nn.Embedding(MM_VOCAB, width)
        self.layers = nn.ModuleList([Layer() for _ in range(B["num_hidden_layers"])])
        self.lm_norm, self.mm_norm = Rms(width), Rms(width)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stream = torch.float32  # type of the residual stream
        self.model = Model()
        self.lm_head = nn.Linear(B["hidden_size"], TEXT_VOCAB, bias=False)
        self.mm_head = nn.Linear(B["hidden_size"], MM_VOCAB, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / (4 if deep else 1) if "embed" not in name else 0.5)

    def forward(self, ids, positions, attends):
        """Ids `[B, L]` to normed hidden states; `attends` has one callable a layer."""
        mm = (ids >= TEXT_VOCAB).unsqueeze(-1)
        table = torch.cat((self.model.lm_embed_tokens.weight, self.model.mm_embed_tokens.weight))
        h = F.embedding(ids, table)
        h = h.to(self.stream)
        turn, count = turns(positions), B["num_hidden_layers"]
        for index, (layer, attend) in enumerate(zip(self.model.layers, attends)):
            out = layer(h, turn, attend)
            language = B["num_mm_adap_layers"] <= index < count - B["num_mm_head_layers"]
            h = out if language else torch.where(mm, out, h)
        return torch.where(mm, self.model.mm_norm(h), self.model.lm_norm(h))

    def hidden(self, ids):
        """Normed hidden states of whole sequences, causal."""
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return self(ids, positions, [Causal()] * B["num_hidden_layers"])

    def image_logits(self, hidden):
        return F.linear(hidden, self.mm_head.weight[:CODES])
