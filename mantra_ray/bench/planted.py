"""A planted data set of any size, for benchmarks of what stands on top of the cascade."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mantra_ray.config import NexusConfig
from mantra_ray.forward import Fold

PROGRAMS = 30


@dataclass(frozen=True)
class Size:
    """A planted data set and what trains on it."""

    regulators: int
    doses: int
    states: int
    config: NexusConfig

    def fold(self, seed: int = 0) -> Fold:
        """Every regulator at each dose in each state, with a residual of its own in proportion to the dose.

        A tenth of the records each is for validation and for test.
        """
        rng = np.random.default_rng(seed)
        grid = np.indices((self.regulators, self.doses, self.states)).reshape(3, -1)
        regulator, state, count = grid[0], grid[2], grid.shape[1]
        dose = ((grid[1] + 1) / self.doses).astype(np.float32)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, dtype=np.float32)

        own, base, weights = normal(self.regulators, PROGRAMS), normal(count, PROGRAMS), normal(PROGRAMS, 2)
        program = base + dose[:, None] * own[regulator] + 0.2 * normal(count, PROGRAMS)
        order = rng.permutation(count)
        validation, test, train = (np.sort(rows) for rows in np.split(order, [count // 10, count // 5]))
        names = {"regulator": self.regulators, "state": self.states, "strategy": 1, "program": PROGRAMS, "trait": 2}
        return Fold(
            regulator=regulator,
            dose=dose,
            state=state,
            strategy=np.zeros(count, np.int64),
            group=np.arange(count),
            train=train,
            validation=validation,
            test=test,
            cross_fit=np.where(np.isin(np.arange(count), train), np.arange(count) % 3, -1),
            regulator_class=np.full(self.regulators, -1),
            delta_program=program,
            program_noise=np.full(program.shape, 0.04, np.float32),
            base_program=base,
            lift=np.eye(PROGRAMS, dtype=np.float32),
            trait_weights=weights,
            delta_trait=program @ weights,
            delta_expression=None,
            base_expression=None,
            lift_expression=None,
            loadings=None,
            names={kind: [f"{kind}{i}" for i in range(n)] for kind, n in names.items()} | {"gene": []},
            meta={"kind": "seen", "seed": seed},
        )
