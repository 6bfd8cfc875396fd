"""What a memory still knows of a stream that went through it: the probes of the recall benchmark.

Every token of the stream is a record in bucket `id mod B` and passes through the gated warming pass; both what the
gate and what the priority see of it is its running surprisal. Its key is the query of its context, its value the
code of its topic or, for a pair's key, of the pair's own value. Who is asked for never depends on what is held:

- dictionary: every injected pair, once. Right if the slot of largest weight is the key token's and, among the values
  of all pairs, the own one is nearest to what was read.
- rare, common: every distinct ordinary token with frequency below 1e-4 in the stream, or with id at most 5,000; a
  token may be both. Right if the slot of largest weight is the token's. `_by_use` weighs tokens by their occurrences.
- semantic: occurrences of ordinary tokens drawn at random from the stream; the query is a paraphrase, at a stated
  cosine to the context as it was. Right if, among all topics, the occurrence's own is nearest to what was read. The
  read is the memory's own: over slots of the token where there are any, else over the bucket. `semantic_swapped`
  asks with another occurrence's context (what the token alone gives), `semantic_free` withholds the token (meaning
  alone, inside the token's bucket), `semantic_held` takes only the occurrences whose own record is still held.

The hard read finds a token's slots from any query, so dictionary, rare and common are matters of retention alone:
they are the share of probes with a slot left, and `_ceiling` is the share that a memory with nothing else in it
could hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mantra_ray.bench.zipf import ORDINARY, TokenStream, blur, unit
from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import Candidates, Memory, read, visible_slots
from mantra_ray.nexus.warming import Stream, warm

RARE, COMMON = 1e-4, 5_000  # frequency below which a token is rare, largest id of a common one
PROBES = 4_096  # of semantic recall, a seed
BATCH = 4_096  # probes read at once
NOBODY = -2  # what no slot holds: a probe's record, its state, and its token where that is withheld
CURVE = (1.0, 0.8, 0.6, 0.4, 0.2)  # cosines of paraphrases


@dataclass
class Filled:
    """A warmed memory, and what asking it takes."""

    memory: Memory
    centroid: Tensor  # [B, D] unit vectors, shared by a bucket's queries
    config: NexusConfig
    diagnostics: dict[str, float]

    def query(self, hidden: np.ndarray, token: np.ndarray) -> Tensor:
        """q = normalize(alpha * h + (1 - alpha) * c) of the token's bucket, [n, D]."""
        alpha, bucket = self.config.query_alpha, torch.from_numpy(token % len(self.centroid))
        hidden = torch.from_numpy(hidden).to(self.centroid)
        mixed = alpha * hidden + (1 - alpha) * self.centroid[bucket.to(hidden.device)]
        return torch.nn.functional.normalize(mixed, dim=-1)

    def ask(self, hidden: np.ndarray, token: np.ndarray, named: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """What is read [n, V] for tokens [n] in contexts [n, D], and whether the top slot is the token's [n].

        Not `named`, a token leads to its bucket alone.
        """
        starts = range(0, max(len(token), 1), BATCH)
        parts = [self._ask(hidden[i : i + BATCH], token[i : i + BATCH], named) for i in starts]
        value, own = zip(*parts, strict=True)
        return np.concatenate(value), np.concatenate(own)

    def _ask(self, hidden: np.ndarray, token: np.ndarray, named: bool) -> tuple[np.ndarray, np.ndarray]:
        query = self.query(hidden, token)
        ids = torch.from_numpy(token).to(query.device)
        bucket, nobody = ids % len(self.centroid), torch.full_like(ids, NOBODY)
        visible = visible_slots(self.memory, bucket, nobody)
        found = read(self.memory, query, bucket, ids if named else nobody, nobody, visible, self.config.tau)
        top = found.weight.argmax(-1)
        own = (self.memory.token[bucket, top] == ids) & (found.weight.sum(-1) > 0)
        return found.value.cpu().numpy(), own.cpu().numpy()


def fill(stream: TokenStream, buckets: int, slots: int, ids: int, config: NexusConfig, seed: int, device) -> Filled:
    """A memory warmed on the stream, one token at a time in meaning."""
    rng = np.random.default_rng((seed, buckets))
    width = stream.hidden.shape[1]
    centroid = torch.from_numpy(unit(rng.standard_normal((buckets, width), dtype=np.float32))).to(device)
    filled = Filled(Memory.empty(buckets, slots, width, width, ids, device=device), centroid, config, {})
    token = torch.from_numpy(stream.token).to(device)
    place, nothing = torch.arange(len(token), device=device), torch.zeros(len(token), 0, device=device)
    candidates = Candidates(
        bucket=token % buckets,
        key=filled.query(stream.hidden, stream.token),
        value=torch.from_numpy(stream.value).to(device),
        token=token,
        record=place,
        state=torch.zeros_like(token),
        stamp=place,
    )
    surprisal = torch.from_numpy(stream.surprisal).to(device)
    filled.memory, filled.diagnostics = warm(
        filled.memory, Stream(candidates, surprisal, surprisal, target=nothing, base=nothing), config
    )
    return filled


def recalls(filled: Filled, stream: TokenStream, cosine: float, seed: int) -> dict[str, tuple[float, int]]:
    """Share recalled and number of probes of every kind; see the module's text for what each means."""
    rng = np.random.default_rng((seed, 1))
    buckets, slots = filled.memory.token.shape
    found: dict[str, tuple[float, int]] = {}

    def kept(name: str, right: np.ndarray, tokens: np.ndarray) -> None:
        """A share of probes that ask for distinct tokens, with the most that so many slots could give."""
        possible = np.minimum(np.bincount(tokens % buckets, minlength=buckets), slots).sum()
        found[name] = share(right)
        found[f"{name}_ceiling"] = (float(possible / len(tokens)) if len(tokens) else math.nan, len(tokens))

    rows = np.flatnonzero(stream.pair != ORDINARY)
    value, own = filled.ask(blur(stream.hidden[rows], cosine, rng), stream.token[rows])
    kept("dictionary", own & ((value @ stream.pair_code.T).argmax(-1) == stream.pair[rows]), stream.token[rows])

    rows = rng.permutation(np.flatnonzero(stream.pair == ORDINARY))
    tokens, first, uses = np.unique(stream.token[rows], return_index=True, return_counts=True)
    own = filled.ask(blur(stream.hidden[rows[first]], cosine, rng), tokens)[1]
    for name, chosen in (("rare", uses < RARE * len(stream.token)), ("common", tokens <= COMMON)):
        kept(name, own[chosen], tokens[chosen])
        by_use = float(np.average(own[chosen], weights=uses[chosen])) if chosen.any() else math.nan
        found[f"{name}_by_use"] = (by_use, int(chosen.sum()))

    rows = rows[:PROBES]

    def meant(hidden: np.ndarray, named: bool = True) -> np.ndarray:
        value, _ = filled.ask(hidden, stream.token[rows], named)
        return value.any(-1) & ((value @ stream.topic_code.T).argmax(-1) == stream.topic[rows])

    asked = blur(stream.hidden[rows], cosine, rng)
    right = meant(asked)
    found["semantic"] = share(right)
    found["semantic_held"] = share(right[np.isin(rows, filled.memory.record.cpu().numpy())])
    found["semantic_swapped"] = share(meant(stream.hidden[rng.permutation(rows)]))
    found["semantic_free"] = share(meant(asked, named=False))
    for other in CURVE:
        found[f"semantic_at_{other:g}"] = share(meant(blur(stream.hidden[rows], other, rng)))
    return found


def share(right: np.ndarray) -> tuple[float, int]:
    """Share of probes that were right (NaN without probes), and their number."""
    return (float(right.mean()) if len(right) else math.nan), len(right)
