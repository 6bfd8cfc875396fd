"""The roadmap's variants of the memory, each against the plain one: routing, recursion, several manifolds."""

import sys

from mantra_ray.cli import run_recipe
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.spec import SweepSpec

VARIANTS = (
    {},
    {"nexus.routing": "class"},  # functional slotting
    {"nexus.routing": "levels"},  # a gene-level and a pathway-level memory
    {"nexus.routing": "hash"},  # several hash heads
    {"nexus.correction": "recursive"},
)


def recipe(options: Options) -> SweepSpec:
    """The plain memory, functional slotting, two levels, hash heads and recursive correction, on the same folds."""
    return options.sweep("roadmap", VARIANTS)


if __name__ == "__main__":
    sys.exit(run_recipe(recipe))
