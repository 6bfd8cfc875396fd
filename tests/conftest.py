"""A synthetic fold that is known through and through, for tests of what stands on top of the cascade.

Tests compute on one thread: their arrays are small, and threads that share two cores with other processes mostly wait
for each other, up to hundreds of times as long as they compute.
"""

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from mantra_ray.forward import Fold

os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start, and of libraries that are loaded later
threadpool_limits(1)
torch.set_num_threads(1)

SEEN, UNSEEN, DOSES, STATES, PROGRAMS, GENES = 20, 4, (0.3, 0.6, 0.95), 2, 6, 12


def plant(
    seed: int = 0,
    effect: float = 1.0,
    noise: float = 0.2,
    unseen: int = UNSEEN,
    classes: int = 0,
    shared: float = 0.7,
    manifold: bool = True,
) -> Fold:
    """Each regulator has a residual of its own, in proportion to dose, that the base does not know.

    20 regulators with training rows (one of their records tested, some validated), then `unseen` ones that are
    all tested. `effect` is the residual's size, `noise` the standard deviation of what no one can predict. With
    `classes` regulator r is of class r mod `classes`, whose members have the share `shared` of their residual's
    variance in common. Without `manifold` a correction stays what it is. Changes of genes are the smallest with the
    programs' changes.
    """
    rng = np.random.default_rng(seed)
    grid = np.array([(r, d, s) for r in range(SEEN + unseen) for d in DOSES for s in range(STATES)])
    regulator, dose, state = grid[:, 0].astype(np.int64), grid[:, 1].astype(np.float32), grid[:, 2].astype(np.int64)
    rows = np.arange(len(grid))
    place = rng.permuted(np.tile(np.arange(6), (SEEN + unseen, 1)), axis=1).ravel()  # of a record in its regulator
    test = rows[(place == 0) | (regulator >= SEEN)]
    validation = rows[(place == 1) & (regulator < SEEN) & (regulator % 2 == 0)]
    train = np.setdiff1d(rows, np.concatenate([test, validation]))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    own, regulator_class = normal(SEEN + unseen, PROGRAMS), np.full(SEEN + unseen, -1)
    if classes:
        regulator_class = np.arange(SEEN + unseen) % classes
        common = np.random.default_rng((seed, 1)).normal(size=(classes, PROGRAMS)).astype(np.float32)
        own = shared**0.5 * common[regulator_class] + (1 - shared) ** 0.5 * own
    own -= own[:SEEN].mean(0)  # no offset that all share
    residual = effect * dose[:, None] * own[regulator] + noise * normal(len(rows), PROGRAMS)
    base, loadings, weights = normal(len(rows), PROGRAMS), normal(GENES, PROGRAMS), normal(PROGRAMS, 2)
    lift = (np.eye(PROGRAMS) + 0.1 * manifold * rng.normal(size=(PROGRAMS, PROGRAMS))).astype(np.float32)
    genes = np.linalg.pinv(loadings)
    program = base + residual.astype(np.float32)
    return Fold(
        regulator=regulator,
        dose=dose,
        state=state,
        strategy=np.zeros(len(rows), np.int64),
        group=rows,
        train=train,
        validation=validation,
        test=test,
        cross_fit=np.where(np.isin(rows, train), rows % 3, -1),
        regulator_class=regulator_class,
        delta_program=program,
        program_noise=np.full(program.shape, noise**2, np.float32),
        base_program=base,
        lift=lift,
        trait_weights=weights,
        delta_trait=program @ weights,
        delta_expression=program @ genes,
        base_expression=base @ genes,
        lift_expression=lift @ genes,
        loadings=loadings,
        names={
            "regulator": [f"r{i}" for i in range(SEEN + unseen)],
            "state": ["a", "b"],
            "strategy": ["one"],
            "program": [f"p{i}" for i in range(PROGRAMS)],
            "trait": ["t", "u"],
            "gene": [f"g{i}" for i in range(GENES)],
        },
        meta={"kind": "seen", "seed": seed},
    )


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """A Ray of two cores for the tests of one file."""
    import ray

    from mantra_ray.sweep.cluster import QUIET

    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def planted() -> Callable[..., Fold]:
    """Makes a fold with a planted residual: see `plant`."""
    return plant


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that start Ray first: where processes share the files, short ones at the end let all end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
