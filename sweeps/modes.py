"""How the memory's reader is trained and what its values hold: Mode B against Mode A, programs against genes, size."""

import sys

from mantra_ray.cli import run_recipe
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.spec import SweepSpec

FULL = {"nexus.d_model": 256, "nexus.layers": 4, "nexus.learning_rate": 1e-3}
MODES = (
    {},
    {"nexus.mode": "language"},
    {"nexus.correct": "genes"},
    {"nexus.mode": "language", "nexus.correct": "genes"},
    {"nexus.top_genes": 8},
    FULL,
    FULL | {"nexus.mode": "language"},
)


def recipe(options: Options) -> SweepSpec:
    """Residual regression and language model, corrections of programs and of genes, small and full transformer."""
    return options.sweep("modes", MODES[:3] if options.smoke else MODES)


if __name__ == "__main__":
    sys.exit(run_recipe(recipe))
