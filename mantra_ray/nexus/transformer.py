"""A small causal transformer over record tokens: local attention, rotary positions, tied head with scaled logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mantra_ray.nexus import head
from mantra_ray.nexus.compiled import Compiled

ROTARY_BASE = 10_000.0  # longest wavelength of a rotary pair, in tokens, over 2 pi (Su et al. 2021)
SHORT = 8  # tokens whose attention is spelled out where it is compiled: kernels of attention fill tiles of 64
MOST = 2**15  # rows of one call of attention: CUDA's kernels count them in a dimension that ends at 65,535
COMPILE_FROM = 2**30  # tokens of a run from which the minute that compiling takes is expected to come back
AS_IT_IS = nn.Identity()
Rotation = tuple[Tensor, Tensor]  # cosines and sines [L, d / 2]


def rotation(length: int, head_width: int, like: Tensor) -> Rotation:
    """Rotary angles of places 0 to `length` - 1 (RoFormer, Su et al. 2021, eq. 15), as `like` in type and device."""
    pairs = torch.arange(head_width // 2, device=like.device, dtype=torch.float64)
    places = torch.arange(length, device=like.device, dtype=torch.float64)
    angles = places[:, None] * ROTARY_BASE ** (-2 * pairs / head_width)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x [..., L, d] with its pairs (i, i + d / 2) turned, so that products of two places depend on their distance."""
    return torch.cat(turned(x, by), dim=-1)


def turned(x: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
    """The two halves [..., L, d / 2] of what `rotate` gives."""
    (cos, sin), (a, b) = by, x.chunk(2, dim=-1)
    return a * cos - b * sin, b * cos + a * sin


def local_attention(q: Tensor, k: Tensor, v: Tensor, window: int, dropout: float = 0.0) -> Tensor:
    """Softmax attention [N, H, L, d] of each place to itself and the `window` - 1 places before it.

    Beyond one window the queries go in blocks of `window`, each to its own and the previous block, so that memory
    is linear in L.
    """
    if len(q) > MOST:
        parts = zip(q.split(MOST), k.split(MOST), v.split(MOST), strict=True)
        return torch.cat([local_attention(*part, window, dropout) for part in parts])
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


def last_attention(q: Tensor, k: Tensor, v: Tensor, window: int, dropout: float = 0.0) -> Tensor:
    """What `local_attention` gives at the last place alone, of its query q [N, H, 1, d]: [N, H, 1, d]."""
    if len(q) > MOST:
        parts = zip(q.split(MOST), k.split(MOST), v.split(MOST), strict=True)
        return torch.cat([last_attention(*part, window, dropout) for part in parts])
    return F.scaled_dot_product_attention(q, k[:, :, -window:], v[:, :, -window:], dropout_p=dropout)


def spelled_attention(q: Tensor, k: Tensor, v: Tensor, places: Rotation, window: int) -> Tensor:
    """`local_attention` of q [N, H, Q, d] before the rotation, at the last Q of the places of k and v [N, H, L, d].

    Written as sums of products, which a compiler makes one pass of: for a few tokens, not for many.
    """
    first = k.shape[2] - q.shape[2]
    queries, keys = turned(q, tuple(part[first:] for part in places)), turned(k, places)
    wide = torch.promote_types(v.dtype, torch.float32)
    score = sum(
        (a.to(v.dtype).to(wide)[:, :, :, None] * b.to(v.dtype).to(wide)[:, :, None]).sum(-1)
        for a, b in zip(queries, keys, strict=True)
    )
    place = torch.arange(k.shape[2], device=q.device)
    distance = place[first:, None] - place
    score = (score / q.shape[-1] ** 0.5).masked_fill((distance < 0) | (distance >= window), -torch.inf)
    return (score.softmax(-1)[..., None] * v.to(wide)[:, :, None]).sum(3).to(v.dtype)


class Block(nn.Module):
    """Local causal self-attention and a feed-forward layer, each behind a layer norm and a residual."""

    def __init__(self, width: int, heads: int, dropout: float, window: int):
        super().__init__()
        self.heads, self.dropout, self.window = heads, dropout, window
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, places: Rotation, last: bool = False) -> Tensor:
        """x [N, L, D] to the same shape, or with `last` to what it is at the last place alone, [N, 1, D]."""
        normed, drop = self.attention_norm(x), self.dropout if self.training else 0.0
        if last:
            x, (ask, tell) = x[:, -1:], self.qkv.weight.tensor_split([x.shape[-1]])
            q = F.linear(normed[:, -1:], ask).unflatten(-1, (1, self.heads, -1)).permute(2, 0, 3, 1, 4)[0]
            k, v = F.linear(normed, tell).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if torch.compiler.is_compiling() and k.shape[2] <= SHORT and not drop:
            mixed = spelled_attention(q, k, v, places, self.window)
        elif last:
            now = tuple(part[-1:] for part in places)
            q, k = rotate(q, now).to(v.dtype), rotate(k, places).to(v.dtype)
            mixed = last_attention(q, k, v, self.window, drop)
        else:
            q, k = rotate(q, places).to(v.dtype), rotate(k, places).to(v.dtype)
            mixed = local_attention(q, k, v, self.window, drop)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), drop)
        return x + F.dropout(self.feed(self.feed_norm(x)), drop)


def _through(x: Tensor, block: Block, places: Rotation, last: bool, norm: nn.Module) -> Tensor:
    return norm(block(x, places, last))


_block = Compiled(_through)


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
        self.compiled = False  # see `compile_for_`
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, window) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        for block in self.blocks:  # residual branches start small, so that the header's own tokens lead
            nn.init.normal_(block.out.weight, std=0.1)
            nn.init.normal_(block.feed[2].weight, std=0.1)

    def compile_for_(self, tokens: int) -> None:
        """Have the blocks compiled from now on, if they lie on a GPU and so many tokens will come that it pays."""
        self.compiled = self.embedding.weight.is_cuda and tokens >= COMPILE_FROM

    def forward(self, tokens: Tensor, known: Tensor | None = None, last: bool = False) -> Tensor:
        """Hidden states [N, L, D] of tokens [N, L]; where `known` [N] is False the first token embeds as 0.

        With `last` they are [N, 1, D], of the last token alone, which spares the last block most of its work.
        """
        x = self.embedding(tokens)
        if known is not None:
            x[:, 0] *= known[:, None]
        places = rotation(tokens.shape[1], self.head_width, x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type in self.reduced_on):
            *inner, outer = self.blocks
            for block in inner:
                x = _block(self.compiled, x, block, places, False, AS_IT_IS)
            return _block(self.compiled, x, outer, places, last, self.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] by the tied embedding, scaled by 1 / sqrt(D)."""
        return head.logits(hidden, self.embedding.weight, self._reduced(hidden))

    def entropy(self, hidden: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy [N] of the next token and mean surprisal [N] of content [N, C] at hidden [N, D], in nats."""
        return head.entropy(hidden, self.embedding.weight, content, self._reduced(hidden))

    def cross_entropy(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy in nats of the next tokens target [...] at hidden [..., D]."""
        return head.cross_entropy(hidden, self.embedding.weight, target, self._reduced(hidden))

    def _reduced(self, hidden: Tensor) -> bool:
        return hidden.device.type in self.reduced_on
