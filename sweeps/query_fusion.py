"""How much of a query is meaning and how much is place, and how sharply it reads."""

import sys

from mantra_ray.cli import run_recipe
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.spec import SweepSpec, grid

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
TAUS = (0.03, 0.1, 0.3)


def recipe(options: Options) -> SweepSpec:
    """Semantic share of the query (alpha) x read temperature (tau)."""
    alphas, taus = (ALPHAS[::2], TAUS[1:2]) if options.smoke else (ALPHAS, TAUS)
    return options.sweep("query_fusion", grid(**{"nexus.tau": taus, "nexus.query_alpha": alphas}))


if __name__ == "__main__":
    sys.exit(run_recipe(recipe))
