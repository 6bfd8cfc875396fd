"""A small causal transformer over record tokens: local attention, rotary positions, tied head with scaled logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROTARY_BASE = 10_000.0  # longest wavelength of a rotary pair, in tokens, over 2 pi (Su et al. 2021)
Rotation = tuple[Tensor, Tensor]  # cosines and sines [L, d / 2]


def rotation(length: int, head_width: int, like: Tensor) -> Rotation:
    """Rotary angles of places 0 to `length` - 1 (RoFormer, Su et al. 2021, eq. 15), as `like` in type and device."""
    pairs = torch.arange(head_width // 2, device=like.device, dtype=torch.float64)
    places = torch.arange(length, device=like.device, dtype=torch.float64)
    angles = places[:, None] * ROTARY_BASE ** (-2 * pairs / head_width)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x [..., L, d] with its pairs (i, i + d / 2) turned, so that products of two places depend on their distance."""
    (cos, sin), (a, b) = by, x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def local_attention(q: Tensor, k: Tensor, v: Tensor, window: int, dropout: float = 0.0) -> Tensor:
    """Softmax attention [N, H, L, d] of each place to itself and the `window` - 1 places before it.

    Beyond one window the queries go in blocks of `window`, each to its own and the previous block, so that memory
    is linear in L.
    """
    length = q.shape[2]
    if length <= window:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    first = local_attention(q[:, :, :window], k[:, :, :window], v[:, :, :window], window, dropout)
    q, k, v = (F.pad(x, (0, 0, 0, -length % window)) for x in (q, k, v))  # later than every query, hence never seen
    queries = q[:, :, window:].unflatten(2, (-1, window))  # [N, H, blocks, window, d]
    keys, values = (x.unfold(2, 2 * window, window).transpose(-1, -2) for x in (k, v))  # [N, H, blocks, 2 window, d]
    place = torch.arange(2 * window, device=q.device)
    distance = place[window:, None] - place
    rest = F.scaled_dot_product_attention(
        queries.flatten(1, 2),
        keys.flatten(1, 2),
        values.flatten(1, 2),
        attn_mask=(distance >= 0) & (distance < window),
        dropout_p=dropout,
    )
    rest = rest.unflatten(1, queries.shape[1:3]).flatten(2, 3)
    return torch.cat([first, rest], dim=2)[:, :, :length]


class Block(nn.Module):
    """Local causal self-attention and a feed-forward layer, each behind a layer norm and a residual."""

    def __init__(self, width: int, heads: int, dropout: float, window: int):
        super().__init__()
        self.heads, self.dropout, self.window = heads, dropout, window
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, places: Rotation) -> Tensor:
        """x [N, L, D] to the same shape."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, places).to(v.dtype), rotate(k, places).to(v.dtype)
        drop = self.dropout if self.training else 0.0
        mixed = local_attention(q, k, v, self.window, drop)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), drop)
        return x + F.dropout(self.feed(self.feed_norm(x)), drop)


class Transformer(nn.Module):
    """Token ids to hidden states and, through the tied head, to next-token logits.

    `window` counts the tokens that a token attends to, itself among them. `precision` sets the products' arithmetic:
    float32, bfloat16 (autocast; weights, norms, residual stream and outputs stay float32), or auto, which is bfloat16
    on GPUs that have it. Raises ValueError where heads do not divide the width into even parts.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        window: int = 1024,
        precision: str = "auto",
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"d_model {width} is not a multiple of heads {heads}")
        if width // heads % 2:
            raise ValueError(f"d_model {width} over heads {heads} is odd; rotary positions turn pairs")
        if window < 1:
            raise ValueError(f"window {window} is below 1")
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision {precision!r} is none of auto, float32, bfloat16")
        self.head_width = width // heads
        auto = ("cuda",) if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else ()
        # decided here and not in forward, where the question would break a compiled graph
        self.reduced_on = {"auto": auto, "float32": (), "bfloat16": ("cpu", "cuda")}[precision]
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, window) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        for block in self.blocks:  # residual branches start small, so that the header's own tokens lead
            nn.init.normal_(block.out.weight, std=0.1)
            nn.init.normal_(block.feed[2].weight, std=0.1)

    def forward(self, tokens: Tensor, known: Tensor | None = None) -> Tensor:
        """Hidden states [N, L, D] of tokens [N, L]; where `known` [N] is False the first token embeds as 0."""
        x = self.embedding(tokens)
        if known is not None:
            keep = torch.ones_like(tokens, dtype=x.dtype)
            keep[:, 0] = known
            x = x * keep[..., None]
        places = rotation(tokens.shape[1], self.head_width, x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type in self.reduced_on):
            for block in self.blocks:
                x = block(x, places)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] by the tied embedding, scaled by 1 / sqrt(D)."""
        scaled = hidden / hidden.shape[-1] ** 0.5
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=hidden.device.type in self.reduced_on):
            return (scaled @ self.embedding.weight.T).to(hidden.dtype)
