"""The VAE: diffusers' decoder with its tensor names, and a plain encoder to train it with."""

import torch
import torch.nn.functional as F
from torch import nn

from .sizes import VAE


def _conv(inner, outer):
    return nn.Conv2d(inner, outer, 3, padding=1)


def _norm(channels):
    return nn.GroupNorm(VAE["groups"], channels, eps=1e-6)


class Resnet(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.norm1, self.conv1 = _norm(inner), _conv(inner, outer)
        self.norm2, self.conv2 = _norm(outer), _conv(outer, outer)
        if inner != outer:
            self.conv_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.group_norm = _norm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        y = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.to_q(y), self.to_k(y), self.to_v(y)
        o = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.to_out[0](o).transpose(1, 2).unflatten(2, x.shape[2:])


class Upsampler(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UpBlock(nn.Module):
    def __init__(self, inner, outer, upsample):
        super().__init__()
        widths = [inner, outer, outer]
        self.resnets = nn.ModuleList([Resnet(width, outer) for width in widths])
        if upsample:
            self.upsamplers = nn.ModuleList([Upsampler(outer)])

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class MidBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Decoder(nn.Module):
    """Latents `[B, 16, h, w]` to pictures `[B, 3, 8 h, 8 w]`."""

    def __init__(self):
        super().__init__()
        widths = VAE["channels"][::-1]
        self.conv_in = _conv(VAE["latents"], widths[0])
        self.mid_block = MidBlock(widths[0])
        pairs = zip((widths[0], *widths[:-1]), widths)
        blocks = [UpBlock(inner, outer, i < 3) for i, (inner, outer) in enumerate(pairs)]
        self.up_blocks = nn.ModuleList(blocks)
        self.conv_norm_out = _norm(widths[-1])
        self.conv_out = _conv(widths[-1], 3)

    def forward(self, z):
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Encoder(nn.Module):
    """Pictures to latents; only training needs it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 64, 4, 4),
            Resnet(64, 64),
            nn.Conv2d(64, 128, 2, 2),
            Resnet(128, 128),
            Resnet(128, 128),
            _norm(128),
            nn.SiLU(),
            _conv(128, VAE["latents"]),
        )

    def forward(self, x):
        return self.layers(x)


class Vae(nn.Module):
    """`scale` and `shift` take latents to unit variance: model = (z - shift) * scale."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def pack(self, pictures):
        """Pictures to packed latents `[B, N, 64]` of unit variance."""
        z = (self.encoder(pictures).float() - self.shift) * self.scale
        return pack(z)

    def unpack(self, packed, grid):
        """Packed latents to pictures."""
        return self.decoder(unpack(packed, grid) / self.scale + self.shift)


def pack(z):
    """`[B, 16, 2h, 2w]` to `[B, h w, 64]`."""
    batch, channels, high, wide = z.shape
    z = z.reshape(batch, channels, high // 2, 2, wide // 2, 2)
    return z.permute(0, 2, 4, 1, 3, 5).reshape(batch, high * wide // 4, channels * 4)


def unpack(packed, grid):
    """The inverse, on a grid of (h, w) tokens."""
    batch, _, channels = packed.shape
    z = packed.reshape(batch, *grid, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(batch, channels // 4, grid[0] * 2, grid[1] * 2)
