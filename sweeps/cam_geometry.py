"""Which memory geometry, regret threshold and query fusion are best, and how each geometry bears load."""

import sys

from mantra_ray.cli import run_recipe
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.spec import GEOMETRIES, SweepSpec, grid

GAMMAS = (-2.0, 0.0, 1.0)
ALPHAS = (0.0, 0.5, 1.0)
LOADS = (0.25, 1.0, 4.0)  # training records a slot; small data never fill the full size


def recipe(options: Options) -> SweepSpec:
    """Memory geometry x regret gamma x query alpha at full size, and each geometry at several memory loads."""
    gammas, alphas, loads = (GAMMAS[:1], ALPHAS[1:2], LOADS[1:2]) if options.smoke else (GAMMAS, ALPHAS, LOADS)
    arms = []
    for buckets, slots in GEOMETRIES.values():
        geometry = {"nexus.buckets": buckets, "nexus.slots": slots}
        arms += [geometry | knobs for knobs in grid(**{"nexus.regret_gamma": gammas, "nexus.query_alpha": alphas})]
    for buckets, slots in GEOMETRIES.values():
        arms += [{"nexus.buckets": buckets, "nexus.slots": slots, "nexus.load": load} for load in loads]
    return options.sweep("cam_geometry", arms)


if __name__ == "__main__":
    sys.exit(run_recipe(recipe))
