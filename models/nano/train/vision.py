"""The image tokenizer: a SigLIP-style ViT and the VQ projector, with the published tensor names."""

import torch
import torch.nn.functional as F
from torch import nn

from .sizes import CODE_DIM, CODES, VIT

TABLE = 128  # side of the position table
PATCH = 16


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        width = q.shape[-1]
        # Fast kernels want a multiple of 8; zeros change nothing.
        q, k, v = (F.pad(part, (0, -width % 8)) for part in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, scale=width**-0.5)[..., :width]
        return self.proj(o.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, inner)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Pictures `[B, 3, 16 h, 16 w]` in -1..1 to features `[B, h w, width]`."""

    def __init__(self, width=VIT["width"], depth=VIT["depth"], heads=VIT["heads"], mlp=VIT["mlp"]):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        # A smooth table: it is resampled, so neighbours must be alike.
        table = 0.02 * torch.randn(1, width, 8, 8)
        table = F.interpolate(table, size=(TABLE, TABLE), mode="bilinear").flatten(2).transpose(1, 2)
        self.pos_embed = nn.Parameter(table.contiguous())
        self.blocks = nn.ModuleList([Block(width, heads, mlp) for _ in range(depth)])

    def positions(self, high, wide):
        table = self.pos_embed.unflatten(1, (TABLE, TABLE)).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(high, wide), mode="bilinear", align_corners=False)
        return table.flatten(2).transpose(1, 2)

    def forward(self, pictures):
        x = self.patch_embed["proj"](pictures)
        high, wide = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + self.positions(high, wide).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return x


class PostBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, width, eps=1e-5)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, width, eps=1e-5)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        y = self.conv1(F.gelu(self.norm1(x)))
        return x + self.conv2(F.gelu(self.norm2(y)))


class Codebook(nn.Module):
    """Unit rows, moved towards the mean of the features that choose them."""

    def __init__(self, codes=CODES, width=CODE_DIM, decay=0.98):
        super().__init__()
        self.decay = decay
        self.embedding = nn.Embedding(codes, width)
        self.embedding.weight.data = F.normalize(torch.randn(codes, width), dim=-1)
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("usage", torch.ones(codes), persistent=False)
        self.register_buffer("total", self.embedding.weight.clone(), persistent=False)

    def nearest(self, z):
        """Codes of the features `[..., width]` by cosine."""
        rows = F.normalize(self.embedding.weight.float(), dim=-1)
        return (F.normalize(z.float(), dim=-1) @ rows.T).argmax(-1)

    @torch.no_grad()
    def update(self, z, codes):
        """One step of the moving averages with unit features `[n, width]`."""
        count = torch.zeros_like(self.usage).index_add_(0, codes, torch.ones_like(z[:, 0]))
        sums = torch.zeros_like(self.total).index_add_(0, codes, z)
        self.usage.lerp_(count, 1 - self.decay)
        self.total.lerp_(sums, 1 - self.decay)
        self.embedding.weight.copy_(F.normalize(self.total, dim=-1))


class Projector(nn.Module):
    def __init__(self, width=VIT["width"]):
        super().__init__()
        self.quant_conv = nn.Conv2d(width, CODE_DIM, 1)
        self.quantize = Codebook()
        self.post_quant_conv = nn.Conv2d(CODE_DIM, width, 1)
        self.post_conv = nn.ModuleList([PostBlock(width) for _ in range(2)])

    def quant(self, features):
        """Features `[B, N, width]` to unquantised rows `[B, N, CODE_DIM]`."""
        return F.linear(features, self.quant_conv.weight[:, :, 0, 0], self.quant_conv.bias)

    def expand(self, rows, grid):
        """Rows `[B, N, CODE_DIM]` to the decoder's input `[B, N, width]`."""
        x = self.post_quant_conv(rows.transpose(1, 2).unflatten(2, grid))
        for block in self.post_conv:
            x = block(x)
        return x.flatten(2).transpose(1, 2)

    def decode(self, codes, grid):
        """Codes `[B, N]` to the decoder's input."""
        return self.expand(self.quantize.embedding(codes), grid)


class Tokenizer(nn.Module):
    """Pictures to codes and back to the decoder's input."""

    def __init__(self):
        super().__init__()
        self.vit = Vit()
        self.projector = Projector()

    @torch.no_grad()
    def encode(self, pictures):
        return self.projector.quantize.nearest(self.projector.quant(self.vit(pictures)))
