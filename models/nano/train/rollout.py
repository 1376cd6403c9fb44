"""Batched sampling with a key/value cache."""

import torch
import torch.nn.functional as F

from .backbone import HEAD_DIM, wide
from .sizes import BACKBONE as B
from .sizes import TEXT_VOCAB

KV = B["num_key_value_heads"]


class Cached:
    """One layer's cache `[B, kv, length, d]`."""

    def __init__(self, batch, length, like):
        shape = (batch, KV, length, HEAD_DIM)
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self.at, self.mask = 0, None

    def __call__(self, q, k, v):
        end = self.at + k.shape[2]
        self.k[:, :, self.at : end], self.v[:, :, self.at : end] = k, v
        if k.shape[2] > 1:
            return F.scaled_dot_product_attention(q, wide(k), wide(v), attn_mask=self.mask)
        # The query heads of a group are rows of one small attention.
        rows = q.unflatten(1, (KV, -1)).squeeze(3)
        o = F.scaled_dot_product_attention(rows, self.k[:, :, :end], self.v[:, :, :end], attn_mask=self.mask)
        return o.flatten(1, 2).unsqueeze(2)


def draw(logits, temperature, top_k, min_p=0.03):
    """One code a row, filtered as the engine does."""
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / temperature
    if top_k:
        floor = scores.topk(top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < floor, -torch.inf)
    p = scores.softmax(-1)
    p = p * (p >= min_p * p.amax(-1, keepdim=True))
    return torch.multinomial(p, 1)[:, 0]


@torch.no_grad()
def generate(backbone, prompt, length, count, temperature=1.0, top_k=50, min_p=0.03, text=False):
    """Codes (or text ids) `[B, count]` after prompts `[B, P]` of `length` ids each."""
    batch, device = len(prompt), prompt.device
    most = int(length.max())
    place = torch.arange(most, device=device)[None]
    start = most - length[:, None]
    ids = prompt.gather(1, (place - start).clamp(min=0)).masked_fill(place < start, 0)
    positions = (place - start).clamp(min=0)
    real = torch.cat((place >= start, torch.ones(batch, count, dtype=torch.bool, device=device)), 1)
    causal = torch.ones(most, most, dtype=torch.bool, device=device).tril()
    eye = torch.eye(most, dtype=torch.bool, device=device)
    mask = (causal & real[:, None, None, :most]) | eye
    like = torch.empty(0, device=device, dtype=backbone.stream)
    caches = [Cached(batch, most + count, like) for _ in range(B["num_hidden_layers"])]
    codes = []
    for step in range(count):
        for cache in caches:
            cache.mask = mask
        hidden = backbone(ids, positions, caches)[:, -1]
        for cache in caches:
            cache.at += ids.shape[1]
        logits = backbone.lm_head(hidden) if text else backbone.image_logits(hidden)
        codes.append(draw(logits, temperature, top_k, min_p))
        ids, positions = codes[-1][:, None] + (0 if text else TEXT_VOCAB), length[:, None] + step
        mask = real[:, None, None, : most + step + 1]
    return torch.stack(codes, 1)
