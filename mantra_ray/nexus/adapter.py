"""Nexus: header tokens and a memory of one or several manifolds to a correction."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import Candidates, Memory, Read
from mantra_ray.nexus.gather import gathered, share, workers
from mantra_ray.nexus.reader import READ_FEATURES, Reached, Reader
from mantra_ray.nexus.records import Records
from mantra_ray.nexus.routing import Route
from mantra_ray.nexus.tokens import REG, Vocabulary
from mantra_ray.nexus.transformer import Transformer
from mantra_ray.nexus.warming import Stream, warm

Memories = tuple[Memory, ...]  # one a manifold
AT_ONCE = 2**16  # headers that a GPU computes together where no gradient is wanted: enough to fill it
SUMS = (
    "stored",
    "evictions",
    "collisions",
    "token_collisions",
    "waves",
    "memory_bytes",
)  # of manifolds; other diagnostics are averaged


class Correction(NamedTuple):
    """What the memory adds to N records and where that came from; H manifolds."""

    value: Tensor  # [N, M] correction, exactly 0 where nothing was read
    gate: Tensor  # [N, H] trust in what each manifold recalled
    share: Tensor  # [N, H] of each manifold in the sum; they add up to 1 where anything was read
    found: list[Read]
    hidden: Tensor  # as of `Nexus.hidden`


class Nexus(nn.Module):
    """The memory's reader: a transformer over tokens, and a reader for each manifold with learned fusion."""

    def __init__(self, vocabulary: Vocabulary, config: NexusConfig, routes: tuple[Route, ...], outputs: int):
        super().__init__()
        self.config, self.vocabulary, self.routes, self.outputs = config, vocabulary, routes, outputs
        self.transformer = Transformer(
            vocabulary.size,
            config.d_model,
            config.layers,
            config.heads,
            config.dropout,
            config.window,
            config.precision,
        )
        self.readers = nn.ModuleList(Reader(route, config, outputs) for route in routes)
        self.fusion = nn.Parameter(torch.zeros(len(routes), 1 + READ_FEATURES)) if len(routes) > 1 else None

    def empty_memory(self) -> Memories:
        """A cleared memory for this model, on its device."""
        weight = self.transformer.embedding.weight
        value = 2 * self.outputs + 2  # residual, base, dose, noise
        regulators = self.vocabulary.regulators
        return tuple(
            Memory.empty(
                route.buckets,
                route.slots,
                self.config.d_model,
                value,
                regulators,
                dtype=weight.dtype,
                device=weight.device,
            )
            for route in self.routes
        )

    def hidden(self, records: Records, known: Tensor | None = None) -> Tensor:
        """Hidden states [N, 3, D] of the headers alone; on a GPU of their last token, STATE: [N, 1, D].

        Readers look at the last one, so that a GPU computes no more, and where no gradient is wanted each distinct
        header once. A CPU computes all three, since parts of a batch may round otherwise than the whole.
        """
        header, known = records.header, records.known if known is None else known
        if not header.is_cuda:
            return self.transformer(header, known)
        return self.transformer(header, known, last=True) if torch.is_grad_enabled() else self._each_once(header, known)

    def _each_once(self, header: Tensor, known: Tensor) -> Tensor:
        """Hidden states [N, 1, D] at the last token of headers [N, 3], by parts of the distinct ones."""
        header, known, row = distinct(header, known, self.vocabulary.size)
        parts = zip(header.split(AT_ONCE), known.split(AT_ONCE), strict=True)
        return torch.cat([self.transformer(*part, last=True) for part in parts])[row]

    def forward(
        self,
        memories: Memories,
        records: Records,
        hide_state: Tensor | None = None,
        hide_token: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Correction:
        """Correction of records that never read their own slot, nor those of a hidden state or token."""
        hidden = self.hidden(records, known)
        found, decoded, gates, features = [], [], [], []
        for reader, memory, bucket in zip(self.readers, memories, records.bucket.unbind(1), strict=True):
            read = reader.recall(memory, records, bucket, reader.query(hidden, bucket), hide_state, hide_token)
            features.append(reader.features(records, read))
            gates.append(reader.trust(hidden, read, features[-1]))
            decoded.append(reader.decode(read, records.base))
            found.append(read)
        gate = torch.cat(gates, dim=-1)
        share = self.shares(found, features)
        value = sum((share[:, h] * gate[:, h])[:, None] * part for h, part in enumerate(decoded))
        return Correction(value, gate, share, found, hidden)

    def shares(self, found: list[Read], features: list[Tensor]) -> Tensor:
        """Share [N, H] of each manifold: a softmax over those that recalled anything, 1 where there is one alone."""
        if self.fusion is None:
            return torch.ones_like(features[0][:, :1])
        logits = torch.stack(
            [f @ weight[1:] + weight[0] for f, weight in zip(features, self.fusion, strict=True)], dim=-1
        )
        silent = torch.stack([read.weight.sum(-1) == 0 for read in found], dim=-1)
        nothing = silent.all(-1, keepdim=True)
        return torch.softmax(logits.masked_fill(silent & ~nothing, -torch.inf), dim=-1) * ~nothing

    @torch.no_grad()
    def trust_(self, memories: Memories, records: Records, reached: Reached, target: Tensor) -> None:
        """Start every reader at least squares on the training records, if that is asked for: see `Reader.trust_`."""
        if self.config.start == "plain":
            return
        hidden = self.hidden(records)
        for reader, memory, bucket in zip(self.readers, memories, records.bucket.unbind(1), strict=True):
            reader.trust_(memory, records, bucket, hidden, reached, target)

    def language_loss(self, tokens: Tensor, known: Tensor | None = None) -> Tensor:
        """Mean next-token cross-entropy of tokens [N, L], records or windows of the stream."""
        return self.transformer.cross_entropy(self.transformer(tokens[:, :-1], known), tokens[:, 1:])

    @torch.no_grad()
    def streams(self, records: Records) -> list[Stream]:
        """Records as each manifold's warming pass takes them: keys from the headers, values from the residuals.

        Several workers share the work (see `gather`), so that all of them must call it, for the same records.
        """
        mine = records.take(share(len(records), *workers()))
        hidden = self.hidden(mine)
        signal, surprisal = self.transformer.entropy(hidden[:, -1], mine.content[:, :-1])
        keys = [reader.query(hidden, own) for reader, own in zip(self.readers, mine.bucket.unbind(1), strict=True)]
        signal, surprisal, *keys = gathered((signal, surprisal, *keys), len(records))
        value = torch.cat([records.residual, records.base, records.dose[:, None], records.noise[:, None]], dim=-1)
        stamp = torch.arange(len(records), device=records.record.device)
        streams = []
        for key, bucket in zip(keys, records.bucket.unbind(1), strict=True):
            candidates = Candidates(bucket, key, value, records.header[:, REG], records.record, records.state, stamp)
            streams.append(Stream(candidates, signal, surprisal, records.residual, records.base))
        return streams

    @torch.no_grad()
    def warm(self, records: Records) -> tuple[Memories, dict[str, float]]:
        """A cleared memory warmed on the records in their order, and the diagnostics of the pass."""
        memories, told = [], []
        empty = self.empty_memory()
        for reader, memory, stream in zip(self.readers, empty, self.streams(records), strict=True):
            config = dataclasses.replace(self.config, regret_gamma=reader.route.gamma)
            memory, diagnostics = warm(memory, stream, config, decode=reader.decode)
            memories.append(memory)
            told.append(diagnostics)
        means = {name: sum(one[name] for one in told) / (1 if name in SUMS else len(told)) for name in told[0]}
        return tuple(memories), means


def distinct(header: Tensor, known: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Headers [n, 3] and whether they are known [n], each once, and the place [N] among them of headers [N, 3].

    Headers of regulators that are not known are one and the same where dose and state are.
    """
    first = torch.where(known, header[:, 0], vocabulary)
    code, row = torch.unique((first * vocabulary + header[:, 1]) * vocabulary + header[:, 2], return_inverse=True)
    first, rest = code // vocabulary**2, code % vocabulary**2
    known = first < vocabulary
    return torch.stack([first * known, rest // vocabulary, rest % vocabulary], dim=1), known, row


def trimmed(memories: Memories) -> Memories:
    """Views without the slots that no bucket has filled: the same reads for less work."""
    return tuple(memory.trim() for memory in memories)
