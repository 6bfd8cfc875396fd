"""A small causal transformer over record tokens (pre-norm, tied head with scaled logits)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each behind a layer norm and a residual."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, D] to the same shape."""
        n, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).reshape(n, length, width)), drop)
        return x + F.dropout(self.feed(self.feed_norm(x)), drop)


class Transformer(nn.Module):
    """Token ids to hidden states and, through the tied head, to next-token logits."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"d_model {width} is not a multiple of heads {heads}")
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.1)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=1.0)
        for block in self.blocks:  # residual branches start small, so that the header's own tokens lead
            nn.init.normal_(block.out.weight, std=0.02)
            nn.init.normal_(block.feed[2].weight, std=0.02)

    def forward(self, tokens: Tensor, known: Tensor | None = None) -> Tensor:
        """Hidden states [N, L, D] of tokens [N, L]; where `known` [N] is False the first token embeds as 0."""
        x = self.embedding(tokens)
        if known is not None:
            keep = torch.ones_like(tokens, dtype=x.dtype)
            keep[:, 0] = known
            x = x * keep[..., None]
        x = x + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] by the tied embedding, scaled by 1 / sqrt(D)."""
        return hidden @ self.embedding.weight.T / hidden.shape[-1] ** 0.5
