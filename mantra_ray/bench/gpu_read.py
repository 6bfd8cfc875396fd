"""Part `read` of `mantra bench gpu`: reads of a memory, by every fused form and by the plain one.

Each call reads another memory with other queries, as many of both as outgrow any cache, and buckets are drawn evenly:
so a memory is cold when a call begins, and whatever a cache then keeps of it the call has read itself. No slot is
empty or hidden and no query's own token is held, so that every slot takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import cycle

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mantra_ray.bench.measured import Card, Row, deviation, peak_bytes, seconds
from mantra_ray.nexus.cam import EMPTY, Memory, Read
from mantra_ray.nexus.fused_read import Asked, recall

GEOMETRIES, QUICK = ((512, 32), (2048, 8), (4096, 4)), ((16, 5),)  # buckets x slots
WIDTH = 256  # of keys and of values
QUERIES, PLAIN = 2**18, 2**14  # of a call; the plain form holds all slots of its queries several times over
CHECKED = 2**12  # queries compared with float64
OUTGROWN = 2**28  # bytes of all memories together
TOKENS, STATES, TAU = 64, 3, 0.1
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # bfloat16 rounds results by up to 2^-9
ROUNDED = 0.3  # for the plain form in bfloat16: scores, 10 times the similarities, err by as much as 2^-5
GOAL = 0.6  # of the floor's rate
FOUND = ("value", "sim_max", "spread", "same_state", "weight")


@dataclass
class Case:
    """A memory and what asks it."""

    memory: Memory
    query: Tensor  # [N, D]
    asked: Asked
    towards: Tensor  # [N, V] gradient of the values read

    def read(self, form: str) -> Read:
        with torch.no_grad():
            return recall(self.memory, self.query, *self.asked, TAU, form)

    def read_and_back(self, form: str) -> Tensor:
        """The gradient towards the queries, by values, similarity and spread."""
        query = self.query.detach().requires_grad_()
        found = recall(self.memory, query, *self.asked, TAU, form)
        results = (found.value, found.sim_max, found.spread)
        return torch.autograd.grad(results, query, (self.towards, self.towards[:, 0], self.towards[:, 1]))[0]

    def take(self, rows: int) -> Case:
        """The first queries alone."""
        asked = Asked(*(None if part is None else part[:rows] for part in self.asked))
        return Case(self.memory, self.query[:rows], asked, self.towards[:rows])

    def double(self) -> Case:
        """The same numbers in float64."""
        parts = {field.name: getattr(self.memory, field.name) for field in fields(self.memory)}
        memory = Memory(**{name: part.double() if part.is_floating_point() else part for name, part in parts.items()})
        return Case(memory, self.query.double(), self.asked, self.towards.double())


def make_memory(buckets: int, slots: int, width: int, dtype: torch.dtype, device: str, empty: float) -> Memory:
    """Random slots, a share of them empty."""
    memory = Memory.empty(buckets, slots, width, width, TOKENS, dtype=dtype, device=device)
    there = torch.rand(buckets, slots, device=device) >= empty
    memory.key.copy_(normalize(torch.randn(memory.key.shape, device=device), dim=-1) * there[..., None])
    memory.value.copy_(torch.randn(memory.value.shape, device=device) * there[..., None])
    for name, high in (("token", TOKENS), ("state", STATES), ("record", buckets * slots)):
        drawn = torch.randint(high, (buckets, slots), device=device)
        getattr(memory, name).copy_(torch.where(there, drawn, EMPTY))
    return memory


def make_case(memory: Memory, queries: int, mixed: bool) -> Case:
    """Random queries: of all slots, or of a mixture of hard reads, hidden states and tokens, and own records."""
    buckets, slots, width = memory.key.shape
    device, dtype = memory.key.device, memory.key.dtype

    def draw(high: int) -> Tensor:
        return torch.randint(high, (queries,), device=device)

    query = normalize(torch.randn(queries, width, device=device), dim=-1).to(dtype)
    bucket, state = draw(buckets), draw(STATES)
    towards = torch.randn(queries, width, device=device, dtype=dtype)
    nobody = torch.full_like(state, EMPTY - 1)
    if not mixed:
        return Case(memory, query, Asked(bucket, draw(TOKENS) + TOKENS, nobody, state, None, None), towards)
    slot = draw(slots)  # whose token, and now and then whose record, is the query's own
    token, own = memory.token[bucket, slot], memory.record[bucket, slot]
    record = torch.where(draw(4) == 0, own, nobody)
    hidden = (torch.where(draw(3) == 0, labels, EMPTY) for labels in (state, token))
    token = torch.where(draw(2) == 0, token, TOKENS)
    return Case(memory, query, Asked(bucket, token, record, state, *hidden), towards)


def check(case: Case, form: str) -> tuple[float, float]:
    """Largest deviation of any result, and that of the gradient, from the plain form in float64."""
    reference, found = case.double(), case.read(form)
    wanted = reference.read("plain")
    error = max(deviation(getattr(found, name), getattr(wanted, name)) for name in FOUND)
    if not torch.equal(found.matches, wanted.matches):
        error = float("inf")
    return error, deviation(case.read_and_back(form), reference.read_and_back("plain"))


def gathered_bytes(case: Case, back: bool) -> int:
    """Keys and values of each query's bucket, once a query; the backward pass reads them once more."""
    memory = case.memory
    return (1 + back) * len(case.query) * (memory.key[0].nbytes + memory.value[0].nbytes)


def least_bytes(case: Case, back: bool) -> int:
    """The memory's keys, values, tokens, records and states once, queries and labels read, all results written.

    Forward and backward: the memory's keys and values and the weights once more, similarities as large as weights
    written and read, gradients of values, similarity and spread read, those of queries written; float32 weights.
    """
    memory, found = case.memory, case.read("plain" if case.query.device.type == "cpu" else "rows")
    numbers = memory.key.nbytes + memory.value.nbytes
    labels = memory.token.nbytes + memory.record.nbytes + memory.state.nbytes
    asks = case.query.nbytes + sum(part.nbytes for part in case.asked if part is not None)
    results = sum(getattr(found, name).nbytes for name in (*FOUND, "matches"))
    if not back:
        return numbers + labels + asks + results
    weights = 4 * found.weight.numel()
    forward = numbers + labels + asks + results - found.weight.nbytes + 2 * weights
    backward = numbers + memory.state.nbytes + 2 * weights + case.asked.bucket.nbytes + case.asked.state.nbytes
    return forward + backward + case.towards.nbytes + found.sim_max.nbytes + found.spread.nbytes + case.query.nbytes


def timed(cases: list[Case], work: Callable[[Case], object], device: str) -> tuple[float, int]:
    """Median seconds over calls that each take the next case, and peak bytes."""
    turn = cycle(cases)
    taken = seconds(lambda: work(next(turn)), device)
    return taken, peak_bytes(lambda: work(next(turn)), device)


def rows(card: Card, quick: bool) -> Iterator[Row]:
    """Each geometry in both types: by rows, by tiles and plainly, without and with the gradient towards queries."""
    width, queries, plain = (8, 256, 64) if quick else (WIDTH, QUERIES, PLAIN)
    forms = ("rows", "tiles") if torch.device(card.device).type == "cuda" else ("plain",)
    for buckets, slots in QUICK if quick else GEOMETRIES:
        for dtype in (torch.bfloat16, torch.float32):
            mixed = make_case(make_memory(buckets, slots, width, dtype, card.device, empty=0.3), CHECKED, mixed=True)
            errors = {form: check(mixed, form) for form in forms}
            size = 2 * buckets * slots * width * dtype.itemsize
            memories = [
                make_memory(buckets, slots, width, dtype, card.device, empty=0.0)
                for _ in range(2 if quick else -(-OUTGROWN // size))
            ]
            cases = [make_case(memory, queries, mixed=False) for memory in memories]
            work = f"read {buckets}x{slots}, {str(dtype).removeprefix('torch.')}"
            for back, name in ((False, ""), (True, ", with gradient")):
                run = {form: by_form(form, back) for form in (*forms, "plain")}
                beside = plain / timed([case.take(plain) for case in cases], run["plain"], card.device)[0]
                for form in forms:
                    taken, peak = timed(cases, run[form], card.device)
                    counted = least_bytes(cases[0], back) if form == "tiles" else gathered_bytes(cases[0], back)
                    floor, bound = card.seconds(bytes=counted)
                    ratio = f"{queries / taken / beside:.3g} times the plain form"
                    yield Row(
                        work=f"{work}, {form}{name}",
                        rate=queries / taken,
                        unit="queries/s",
                        floor=queries / floor,
                        bound=bound,
                        peak_bytes=peak,
                        error=errors[form][back],
                        tolerance=ROUNDED if form == "plain" and dtype == torch.bfloat16 else TOLERANCE[dtype],
                        goal=GOAL * queries / floor,
                        note=f"{counted / taken / 1e12:.2f} TB/s of the floor's bytes; {ratio}",
                    )
            del memories, cases


def by_form(form: str, back: bool) -> Callable[[Case], object]:
    """A read in that form, with its gradient if asked for."""
    return (lambda case: case.read_and_back(form)) if back else (lambda case: case.read(form))
