"""A warmed reader of small random weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.adapter import Nexus, Records
from mantra_ray.nexus.cam import Memory
from mantra_ray.nexus.tokens import Vocabulary
from mantra_ray.nexus.warming import warm

BUCKETS, SEEN, UNSEEN, PROGRAMS = 8, 14, 10, 5  # so that some buckets are shared
CONFIG = NexusConfig(slots=16, regret_gamma=-np.inf, d_model=16, heads=2, layers=2, top_programs=3)


@dataclass
class Case:
    model: Nexus
    train: Records
    test: Records
    memory: Memory

    def warmed(self, train: Records) -> Memory:
        return warm(self.model.empty_memory(), self.model.stream(train), self.model.config)[0]

    def correct(self, records: Records, memory: Memory | None = None, **options) -> torch.Tensor:
        with torch.no_grad():
            return self.model(self.memory if memory is None else memory, records, **options)[0]

    def read(self, records: Records, **options):
        with torch.no_grad():
            return self.model(self.memory, records, **options)[2]


def build_case(seed: int = 0, buckets: int = BUCKETS, **knobs) -> Case:
    """14 seen regulators with 6 records each, all in the memory, and 10 unseen ones with 2 each."""
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
    records = Records(
        header=torch.tensor(vocabulary.header(regulator, dose, state)),
        content=torch.tensor(vocabulary.content(program)),
        dose=torch.tensor(dose, dtype=torch.float32),
        residual=torch.tensor(rng.normal(size=program.shape), dtype=torch.float32),
        base=torch.tensor(rng.normal(size=program.shape), dtype=torch.float32),
        noise=torch.full((len(regulator),), 0.1),
        bucket=torch.tensor(regulator % buckets),
        state=torch.tensor(state),
        record=torch.arange(len(regulator)),
        known=torch.tensor(regulator < SEEN),
    )
    torch.manual_seed(seed)
    model = Nexus(vocabulary, config, buckets).eval()
    with torch.no_grad():  # a reader that has learned something of every feature
        for parameter in (model.gate[2].weight, model.gate_semantic.weight, model.decoder, model.transport):
            parameter += 0.3 * torch.randn_like(parameter)
    case = Case(model, records.take(slice(count)), records.take(slice(count, None)), model.empty_memory())
    case.memory = case.warmed(case.train)
    return case


@pytest.fixture(scope="session")
def build() -> Callable[..., Case]:
    """Makes a case, with knobs of the memory in place of the usual ones: see `build_case`."""
    return build_case


@pytest.fixture(scope="module")
def case() -> Case:
    return build_case()
