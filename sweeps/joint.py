"""Geometry, total slots, regret threshold, query fusion, temperature and eviction together."""

import sys

from mantra_ray.cli import run_recipe
from mantra_ray.sweep.knobs import NUISANCE, Knob
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.spec import GEOMETRIES, SweepSpec

SHAPES = tuple({"nexus.buckets": buckets, "nexus.slots": slots} for buckets, slots in GEOMETRIES.values())
SPACE = (
    Knob("geometry", SHAPES),
    Knob("nexus.load", (0.25, 1.0, 4.0)),  # total slots, as a share of what there is to hold: data differ in size
    Knob("nexus.regret_gamma", (-2.0, -0.2, 0.0, 0.2, 1.0)),
    Knob("nexus.query_alpha", range=(0.0, 1.0)),
    Knob("nexus.tau", range=(0.03, 0.3), log=True),
    Knob("nexus.eviction", ("pss", "fifo", "random")),
    *NUISANCE,
)


def recipe(options: Options) -> SweepSpec:
    """Memory geometry x total slots (as training records a slot) x regret gamma x query alpha x temperature x eviction.

    Searched by Optuna's TPE unless --search says otherwise; the full grid has over a thousand configurations.
    """
    return options.sweep("joint", space=SPACE, search="tpe")


if __name__ == "__main__":
    sys.exit(run_recipe(recipe))
