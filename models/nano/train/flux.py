"""The decoder's text encoders and FLUX transformer, with the published tensor names."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .sizes import CLIP, FLUX, T5, VIT

INNER = FLUX["heads"] * FLUX["head_dim"]


class Rms(nn.Module):
    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


def heads(x, count):
    """`[B, L, D]` to `[B, heads, L, d]`."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


class ClipLayer(nn.Module):
    def __init__(self):
        super().__init__()
        width = CLIP["hidden"]
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, CLIP["inner"]), "fc2": nn.Linear(CLIP["inner"], width)})

    def forward(self, x):
        y, at = self.layer_norm1(x), self.self_attn
        q, k, v = (heads(at[name](y), CLIP["heads"]) for name in ("q_proj", "k_proj", "v_proj"))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + at["out_proj"](o.transpose(1, 2).flatten(2))
        y = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](y * torch.sigmoid(1.702 * y))


class ClipText(nn.Module):
    """Ids `[B, 77]` to the pooled vector at the first end token, the largest id."""

    def __init__(self):
        super().__init__()
        width = CLIP["hidden"]
        self.embeddings = nn.ModuleDict({
            "token_embedding": nn.Embedding(CLIP["vocab"], width),
            "position_embedding": nn.Embedding(CLIP["length"], width),
        })  # fmt: skip
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([ClipLayer() for _ in range(CLIP["layers"])])})
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, ids):
        x = self.embeddings["token_embedding"](ids) + self.embeddings["position_embedding"].weight
        for layer in self.encoder["layers"]:
            x = layer(x)
        at = ids.argmax(-1)[:, None, None].expand(-1, 1, x.shape[-1])
        return self.final_layer_norm(x.gather(1, at)[:, 0])


def t5_buckets(length):
    """Bucket of every (query, key)."""
    place = torch.arange(length)
    apart = place[None, :] - place[:, None]
    n = apart.abs().float()
    far = 8 + (torch.log(n.clamp(min=1) / 8) / math.log(128 / 8) * 8).long()
    return (apart > 0).long() * 16 + torch.where(n < 8, n.long(), far.clamp(max=15))


class T5Layer(nn.Module):
    def __init__(self, first):
        super().__init__()
        width, inner = T5["width"], T5["heads"] * T5["head_dim"]
        attention = nn.ModuleDict({name: nn.Linear(width, inner, bias=False) for name in "qkv"})
        attention["o"] = nn.Linear(inner, width, bias=False)
        if first:
            attention["relative_attention_bias"] = nn.Embedding(32, T5["heads"])
        feed = nn.ModuleDict({name: nn.Linear(width, T5["inner"], bias=False) for name in ("wi_0", "wi_1")})
        feed["wo"] = nn.Linear(T5["inner"], width, bias=False)
        self.layer = nn.ModuleList([
            nn.ModuleDict({"SelfAttention": attention, "layer_norm": Rms(width)}),
            nn.ModuleDict({"DenseReluDense": feed, "layer_norm": Rms(width)}),
        ])  # fmt: skip

    def forward(self, x, bias):
        attention, feed = self.layer[0]["SelfAttention"], self.layer[1]["DenseReluDense"]
        y = self.layer[0]["layer_norm"](x)
        q, k, v = (heads(attention[name](y), T5["heads"]) for name in "qkv")
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        x = x + attention["o"](o.transpose(1, 2).flatten(2))
        y = self.layer[1]["layer_norm"](x)
        return x + feed["wo"](F.gelu(feed["wi_0"](y), approximate="tanh") * feed["wi_1"](y))


class T5Encoder(nn.Module):
    """Ids `[B, 512]` to `[B, 512, width]`, pads attended like any token."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(T5["vocab"], T5["width"])
        blocks = nn.ModuleList([T5Layer(i == 0) for i in range(T5["layers"])])
        self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": Rms(T5["width"])})
        self.register_buffer("buckets", t5_buckets(T5["length"]), persistent=False)

    def forward(self, ids):
        x, blocks = self.shared(ids), self.encoder["block"]
        table = blocks[0].layer[0]["SelfAttention"]["relative_attention_bias"]
        bias = table(self.buckets).permute(2, 0, 1)[None]
        for block in blocks:
            x = block(x, bias)
        return self.encoder["final_layer_norm"](x)


def sinusoid(s):
    """`[B]` to `[B, 256]`, cosines first."""
    f = torch.exp(-math.log(10000) * torch.arange(128, device=s.device) / 128)
    angle = s.float()[:, None] * f
    return torch.cat((angle.cos(), angle.sin()), -1)


class Embedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, INNER), nn.Linear(INNER, INNER)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


def rotary(grid, device, length=T5["length"]):
    """cos and sin `[length + N, head_dim / 2]`: text is not rotated."""
    high, wide = grid
    rows = torch.arange(high, dtype=torch.float64).repeat_interleave(wide)
    cols = torch.arange(wide, dtype=torch.float64).repeat(high)
    ids = torch.stack((torch.zeros_like(rows), rows, cols), -1)
    ids = torch.cat((torch.zeros(length, 3, dtype=torch.float64), ids))
    parts = []
    for axis, width in enumerate(FLUX["axes"]):
        f = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        parts.append(ids[:, axis, None] * f)
    angle = torch.cat(parts, -1)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(x, turn):
    """Rotates adjacent pairs of channels."""
    cos, sin = turn
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x.dtype)


def _norm(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def _attend(q, k, v, turn):
    o = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v)
    return o.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        proj = nn.ModuleDict({"proj": nn.Linear(INNER, 4 * INNER)})
        self.net = nn.ModuleList([proj, nn.Identity(), nn.Linear(4 * INNER, INNER)])

    def forward(self, x):
        return self.net[2](F.gelu(self.net[0]["proj"](x), approximate="tanh"))


class DoubleAttention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            self.add_module(name, nn.Linear(INNER, INNER))
        self.to_out = nn.ModuleList([nn.Linear(INNER, INNER)])
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            self.add_module(name, Rms(FLUX["head_dim"]))

    def forward(self, img, txt, turn):
        q, k, v = (heads(f(img), FLUX["heads"]) for f in (self.to_q, self.to_k, self.to_v))
        added = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        qt, kt, vt = (heads(f(txt), FLUX["heads"]) for f in added)
        q = torch.cat((self.norm_added_q(qt), self.norm_q(q)), 2)
        k = torch.cat((self.norm_added_k(kt), self.norm_k(k)), 2)
        o = _attend(q, k, torch.cat((vt, v), 2), turn)
        length = txt.shape[1]
        return self.to_out[0](o[:, length:]), self.to_add_out(o[:, :length])


class DoubleBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(INNER, 6 * INNER)})
        self.norm1_context = nn.ModuleDict({"linear": nn.Linear(INNER, 6 * INNER)})
        self.attn = DoubleAttention()
        self.ff, self.ff_context = FeedForward(), FeedForward()

    def forward(self, img, txt, temb, turn):
        a = self.norm1["linear"](F.silu(temb)).chunk(6, -1)
        b = self.norm1_context["linear"](F.silu(temb)).chunk(6, -1)
        oi, ot = self.attn(_norm(img, a[0], a[1]), _norm(txt, b[0], b[1]), turn)
        img, txt = img + a[2][:, None] * oi, txt + b[2][:, None] * ot
        img = img + a[5][:, None] * self.ff(_norm(img, a[3], a[4]))
        return img, txt + b[5][:, None] * self.ff_context(_norm(txt, b[3], b[4]))


class SingleAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(INNER, INNER) for _ in range(3))
        self.norm_q, self.norm_k = Rms(FLUX["head_dim"]), Rms(FLUX["head_dim"])

    def forward(self, x, turn):
        q, k, v = (heads(f(x), FLUX["heads"]) for f in (self.to_q, self.to_k, self.to_v))
        return _attend(self.norm_q(q), self.norm_k(k), v, turn)


class SingleBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.ModuleDict({"linear": nn.Linear(INNER, 3 * INNER)})
        self.proj_mlp = nn.Linear(INNER, 4 * INNER)
        self.proj_out = nn.Linear(5 * INNER, INNER)
        self.attn = SingleAttention()

    def forward(self, x, temb, turn):
        shift, scale, gate = self.norm["linear"](F.silu(temb)).chunk(3, -1)
        y = _norm(x, shift, scale)
        m = F.gelu(self.proj_mlp(y), approximate="tanh")
        return x + gate[:, None] * self.proj_out(torch.cat((self.attn(y, turn), m), -1))


class Flux(nn.Module):
    """Velocity `[B, N, 64]` of packed latents."""

    def __init__(self):
        super().__init__()
        self.x_embedder = nn.Linear(64, INNER)
        self.context_embedder = nn.Linear(T5["width"], INNER)
        self.time_text_embed = nn.ModuleDict({
            "timestep_embedder": Embedder(256),
            "guidance_embedder": Embedder(256),
            "text_embedder": Embedder(CLIP["hidden"]),
        })  # fmt: skip
        self.siglip_embed = nn.Linear(VIT["width"], INNER, bias=False)
        self.transformer_blocks = nn.ModuleList([DoubleBlock() for _ in range(FLUX["double"])])
        self.single_transformer_blocks = nn.ModuleList([SingleBlock() for _ in range(FLUX["single"])])
        self.norm_out = nn.ModuleDict({"linear": nn.Linear(INNER, 2 * INNER)})
        self.proj_out = nn.Linear(INNER, 64)

    def forward(self, x, ctx, pooled, t, siglip, turn):
        """`t` `[B]` is sigma; `siglip` `[B, N, vit width]`, zeros without condition."""
        embed, guidance = self.time_text_embed, torch.ones_like(t)
        temb = embed["timestep_embedder"](sinusoid(t * 1000).to(x.dtype))
        temb = temb + embed["guidance_embedder"](sinusoid(guidance * 1000).to(x.dtype))
        temb = temb + embed["text_embedder"](pooled)
        img, txt = self.x_embedder(x), self.context_embedder(ctx)
        for block in self.transformer_blocks:
            img, txt = block(img, txt, temb, turn)
        s = torch.cat((txt, img + self.siglip_embed(siglip)), 1)
        for block in self.single_transformer_blocks:
            s = block(s, temb, turn)
        scale, shift = self.norm_out["linear"](F.silu(temb)).chunk(2, -1)
        return self.proj_out(_norm(s[:, txt.shape[1] :], shift, scale))


class FlowDecoder(nn.Module):
    """Transformer and text encoders."""

    def __init__(self):
        super().__init__()
        self.text_model, self.t5, self.flux = ClipText(), T5Encoder(), Flux()


def sigmas(steps, tokens):
    """The scheduler's sigmas, with the trailing 0."""
    slope = (1.15 - 0.5) / (4096 - 256)
    mu = tokens * slope + 0.5 - slope * 256
    u = torch.linspace(1, 1 / steps, steps)
    shifted = math.exp(mu) / (math.exp(mu) + (1 / u - 1))
    return torch.cat((shifted, torch.zeros(1)))
