"""The ledger of a warming pass: who is admitted and to which slot, in waves of at most one record a bucket."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import EMPTY, Candidates, Memory, place_among_equals, random_slot
from mantra_ray.nexus.gate import priorities

WINDOW = 2**12  # similarities looked at together: what costs little more than to start looking


@dataclass
class Stream:
    """N records in order, with what the gate and the priority see of each."""

    candidates: Candidates
    signal: Tensor  # [N] the head's entropy at the header, in nats
    surprisal: Tensor  # [N] the head's negative log-likelihood of the record's content, mean over its tokens
    target: Tensor  # [N, K] residual, for the gate signal `residual`
    base: Tensor  # [N, K] prediction that the residual was left by, likewise

    def take(self, rows: Tensor | slice) -> Stream:
        rest = {name: getattr(self, name)[rows] for name in ("signal", "surprisal", "target", "base")}
        return Stream(self.candidates.take(rows), **rest)


@dataclass
class BucketReport:
    """What a pass did to each bucket: counts [B], int64, on the CPU."""

    offered: Tensor  # records
    tokens: Tensor  # distinct tokens among them
    admitted: Tensor  # records that passed the gate, primed ones included
    stored: Tensor  # writes, rewrites of a record in its own slot included
    evictions: Tensor  # writes into the slot of another record
    occupancy: Tensor  # slots that hold a record after the pass
    collisions: Tensor  # records offered beyond the bucket's slots
    token_collisions: Tensor  # distinct tokens beyond the first

    @staticmethod
    def of(decisions: Decisions, memory: Memory) -> BucketReport:
        """The report of a pass by its decisions and the memory that it left."""
        (buckets, slots), kinds = memory.record.shape, len(memory.count)
        bucket = decisions.bucket

        def counted(rows: Tensor | slice = slice(None)) -> Tensor:
            return torch.bincount(bucket[rows], minlength=buckets)

        offered = counted()
        tokens = torch.bincount(torch.unique(bucket * kinds + decisions.token) // kinds, minlength=buckets)
        done = counted(decisions.admit), counted(decisions.stored), counted(decisions.evicted)
        occupancy = (memory.record != EMPTY).sum(1).to(bucket.device)
        counts = (offered, tokens, *done, occupancy, (offered - slots).clip(0), (tokens - 1).clip(0))
        return BucketReport(*torch.stack(counts).cpu())


@dataclass
class Decisions:
    """What became of N records, in any one order."""

    bucket: Tensor  # [N]
    token: Tensor  # [N]
    primed: Tensor  # [N] bool
    admit: Tensor  # [N] bool, primed ones included
    stored: Tensor  # [N] bool
    evicted: Tensor  # [N] bool, stored in the slot of another record
    hard: Tensor  # [N] bool, whether slots of its own token were read
    novelty: Tensor  # [N] 1 - sim_max


class Ledger:
    """What a pass decides by, on the host: a decision is some twenty operations on small arrays, and numpy starts one
    in a fraction of the time that a tensor operation or a kernel takes.

    Buckets stand in the order of falling load, so that wave w holds a record of each of the first `width[w]`
    buckets; rows lie in the order of the waves. The state's arrays are [B, S], those of rows [N + 1]: the last one
    stands for the records that a bucket lacks in a block of waves.
    """

    def __init__(self, memory: Memory, stream: Stream, config: NexusConfig):
        new, self.config = stream.candidates, config
        buckets, slots = memory.record.shape
        bucket, token, surprisal = new.bucket.cpu(), new.token.cpu(), stream.surprisal.cpu()
        place = place_among_equals(bucket)
        self.order = torch.bincount(bucket, minlength=buckets).argsort(descending=True, stable=True)
        self.rows = torch.argsort(place * buckets + self.order.argsort()[bucket])
        self.width = torch.bincount(place).numpy()
        self.start = np.cumsum(self.width) - self.width
        self.bucket, self.token = bucket[self.rows], token[self.rows]

        if config.gate_signal == "residual":  # by entropy a token's statistics hang on no read: it may lie anywhere
            kinds = len(memory.count)
            pairs = torch.unique(bucket * kinds + token)  # of buckets and the tokens in them
            if len(pairs) > len(torch.unique(pairs % kinds)):
                raise ValueError("records of one token lie in several buckets, so that their order would be lost")
        count = memory.count.cpu()[token] + place_among_equals(token)
        known = priorities(surprisal, count, torch.ones_like(surprisal), config)  # all but the novelty's share
        victim = random_slot(new.stamp, new.bucket, slots).cpu()
        of_records = (new.record.cpu(), count < config.priming, known, new.stamp.cpu().double(), victim)
        self.record, self.primed, self.known, self.stamp, self.victim = (self.by_row(each) for each in of_records)
        self.admit, self.stored, self.evicted, self.hard = np.zeros((4, len(self.record)), dtype=bool)
        self.novelty, self.priority = np.zeros((2, len(self.record)), dtype=self.known.dtype)

        held = memory.record.cpu()[self.order].numpy()
        rank = memory.priority if config.eviction == "pss" else memory.stamp
        # an empty slot ranks below all others, and argmin takes the first of equals: slots fill in order
        self.rank = np.where(held != EMPTY, rank.cpu()[self.order].double().numpy(), -np.inf)
        self.source = np.full((buckets, slots), EMPTY)  # row that a slot was filled with since the last flush
        every = np.sort(np.concatenate([self.record[:-1], held[held != EMPTY]]))
        self.held = held.copy() if (every[1:] == every[:-1]).any() else None  # else no record meets itself

    def by_row(self, values: Tensor) -> np.ndarray:
        """Values [N] of the stream's records in the order of the rows, and 0 for what lacks."""
        return np.append(values[self.rows].numpy(), values.new_zeros(1).numpy())

    def block(self, first: int, waves: int) -> np.ndarray:
        """Rows [n, C] of the n buckets in `waves` waves from the first on."""
        line = np.arange(self.width[first])[:, None]
        width, start = self.width[first : first + waves], self.start[first : first + waves]
        return np.where(line < width, start + line, len(self.bucket))

    def enter(self, rows: np.ndarray, z: np.ndarray, near: np.ndarray, later: np.ndarray | None = None) -> None:
        """Decide on a block of waves: rows and z [n, C], one record of each bucket after the other.

        near [n, C, S] orders what a record finds in its bucket's slots before the block (see `nearness`), later
        [n, C, C] what it finds once another record of the block has taken a slot.

        A record that is not stored leaves its bucket as it was. So a window of waves is decided on together, up to the
        first record that each bucket stores; then what follows is decided on anew. Few records of a long queue outrank
        a full bucket's, so this skips most of its waves. A window of one wave is a plain wave.
        """
        ranked, waves = self.config.eviction == "pss", rows.shape[1]
        step = max(1, min(waves, WINDOW // near[:, 0].size)) if ranked else 1
        every, columns = np.arange(len(rows)), np.arange(waves)
        rank, primed, known = self.rank[: len(rows)], self.primed[rows], self.known[rows]
        for window in (slice(start, min(start + step, waves)) for start in range(0, waves, step)):
            row, reached = rows[:, window], np.full((len(rows), 1), window.start)
            lives, column = row < len(self.bucket), columns[window]
            while True:
                nearest = np.minimum.reduce(near[:, window], axis=2)
                hard = nearest < 0
                novelty = np.where(hard, nearest + 2, np.minimum(nearest, 1))
                admit = lives & (primed[:, window] | (z[:, window] * novelty > self.config.regret_gamma))
                priority = known[:, window] + self.config.novelty_weight * novelty
                slot = rank.argmin(1)
                low = rank[every, slot]
                stored = admit & (priority > low[:, None]) if ranked else admit
                if self.held is not None:
                    own = self.held[: len(rows), None] == self.record[row][..., None]
                    stored = np.where(own.any(2), admit, stored)
                if step > 1:
                    stored = stored & (column >= reached)
                at = stored.argmax(1)
                line = stored[every, at].nonzero()[0]
                if not len(line):
                    break
                at, slot, low = at[line], slot[line], low[line]
                new = row[line, at]
                if self.config.eviction == "random":
                    slot = np.where(low > -np.inf, self.victim[new], slot)
                again = False
                if self.held is not None:
                    mine = own[line, at]
                    again = mine.any(1)
                    slot = np.where(again, mine.argmax(1), slot)
                    self.held[line, slot] = self.record[new]
                self.stored[new], self.evicted[new] = True, (low > -np.inf) & ~np.asarray(again)
                rank[line, slot] = priority[line, at] if ranked else self.stamp[new]
                self.source[line, slot] = new
                if later is not None:
                    at = at[:, None] + window.start
                    seen = later[line, at[:, 0]]
                    near[line, :, slot] = np.where(columns > at, seen, near[line, :, slot])
                    reached[line] = at + 1
                if step == 1:
                    break
            self.admit[row], self.hard[row], self.novelty[row], self.priority[row] = admit, hard, novelty, priority

    def decisions(self) -> Decisions:
        """What became of the records, in the order of the rows."""
        of_rows = (self.primed, self.admit, self.stored, self.evicted, self.hard, self.novelty)
        return Decisions(self.bucket, self.token, *(torch.from_numpy(each[:-1]) for each in of_rows))
