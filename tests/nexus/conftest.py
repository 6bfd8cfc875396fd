"""A warmed reader of small random weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.adapter import Correction, Memories, Nexus
from mantra_ray.nexus.cam import Memory, Read
from mantra_ray.nexus.reader import Reader
from mantra_ray.nexus.records import Records
from mantra_ray.nexus.routing import make_routes
from mantra_ray.nexus.tokens import Vocabulary

BUCKETS, SEEN, UNSEEN, PROGRAMS, CLASSES = 8, 14, 10, 5, 3  # so that some buckets are shared
CONFIG = NexusConfig(
    buckets=BUCKETS,
    slots=48,  # that hold every record under each routing
    regret_gamma=-np.inf,
    pathway_gamma=-np.inf,
    d_model=16,
    heads=2,
    layers=2,
    top_programs=3,
)


@dataclass
class Case:
    model: Nexus
    train: Records
    test: Records
    memories: Memories

    @property
    def memory(self) -> Memory:
        """The first manifold, which is the only one under the usual routing."""
        return self.memories[0]

    @property
    def reader(self) -> Reader:
        return self.model.readers[0]

    def readers_of(self, record: int, records: Records, **options) -> torch.Tensor:
        """Which of the records [N] give a record's slot any weight, in whatever manifold."""
        found = self.full(records, **options).found
        slots = (
            memory.record[bucket] == record
            for memory, bucket in zip(self.memories, records.bucket.unbind(1), strict=True)
        )
        return sum(((read.weight > 0) & own).any(-1) for read, own in zip(found, slots, strict=True)) > 0

    def warmed(self, train: Records) -> Memories:
        return self.model.warm(train)[0]

    def full(self, records: Records, memories: Memories | None = None, **options) -> Correction:
        with torch.no_grad():
            return self.model(self.memories if memories is None else memories, records, **options)

    def correct(self, records: Records, memories: Memories | None = None, **options) -> torch.Tensor:
        return self.full(records, memories, **options).value

    def read(self, records: Records, **options) -> Read:
        return self.full(records, **options).found[0]


def build_case(seed: int = 0, **knobs) -> Case:
    """14 seen regulators with 6 records each, all in the memory, and 10 unseen ones with 2 each.

    Regulator r is of class r mod 3, but for the last unseen one, whose class is unknown.
    """
    config, rng = replace(CONFIG, **knobs), np.random.default_rng(seed)
    seen = [(r, d, s) for r in range(SEEN) for d in (0.3, 0.6, 0.95) for s in range(2)]
    unseen = [(r, 0.6, s) for r in range(SEEN, SEEN + UNSEEN) for s in range(2)]
    regulator, dose, state = np.array(seen + unseen).T
    regulator, state, count = regulator.astype(int), state.astype(int), len(seen)
    program = rng.normal(size=(len(regulator), PROGRAMS))
    vocabulary = Vocabulary.learn(
        dose[:count],
        program[:count],
        SEEN + UNSEEN,
        2,
        dose_bins=config.dose_bins,
        magnitude_bins=config.magnitude_bins,
        top_programs=config.top_programs,
    )
    routes = make_routes(config, count, CLASSES)
    numbers = torch.tensor(regulator)
    kind = torch.where(numbers < SEEN + UNSEEN - 1, numbers % CLASSES, -1)
    records = Records(
        header=torch.tensor(vocabulary.header(regulator, dose, state)),
        content=torch.tensor(vocabulary.content(program)),
        dose=torch.tensor(dose, dtype=torch.float32),
        residual=torch.tensor(rng.normal(size=program.shape), dtype=torch.float32),
        base=torch.tensor(rng.normal(size=program.shape), dtype=torch.float32),
        noise=torch.full((len(regulator),), 0.1),
        bucket=torch.stack([route.bucket(numbers, kind, torch.arange(len(numbers))) for route in routes], dim=1),
        state=torch.tensor(state),
        record=torch.arange(len(regulator)),
        known=torch.tensor(regulator < SEEN),
    )
    torch.manual_seed(seed)
    model = Nexus(vocabulary, config, routes, PROGRAMS).eval()
    with torch.no_grad():  # readers that have learned something of every feature
        for reader in model.readers:
            for parameter in (reader.gate[2].weight, reader.gate_semantic.weight, reader.decoder, reader.transport):
                parameter += 0.3 * torch.randn_like(parameter)
        if model.fusion is not None:
            model.fusion += 0.3 * torch.randn_like(model.fusion)
    case = Case(model, records.take(slice(count)), records.take(slice(count, None)), model.empty_memory())
    case.memories = case.warmed(case.train)
    return case


@pytest.fixture(scope="session")
def build() -> Callable[..., Case]:
    """Makes a case, with knobs of the memory in place of the usual ones: see `build_case`."""
    return build_case


@pytest.fixture(scope="module")
def case() -> Case:
    return build_case()
