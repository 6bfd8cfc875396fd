"""What each part of the memory is worth: the full model less one part at a time, and its controls."""

import math
import sys

from mantra_ray.cli import run_recipe
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.spec import SweepSpec

LOADED = {"nexus.load": 4.0, "nexus.slots": 8}  # training records a slot, so that most must give way
WITHOUT = (
    {"nexus.regret_gamma": -math.inf},  # the gate: all is written
    {"nexus.query_alpha": 1.0},  # the centroid in the query
    {"nexus.query_alpha": 0.0},  # the hidden state in the query
    {"nexus.read": "soft"},  # the hard read
    {"nexus.transport": "none"},  # what was observed, beside how far the base missed it
    {"nexus.start": "plain"},  # the least-squares start
    {"nexus.hide_state": 0.0},
    {"nexus.hide_regulator": 0.0},
    {"nexus.language_weight": 0.0},
    {"nexus.routing": "random"},  # control: the bucket knows nothing of the regulator
    {"grn.calibrate": False},
    {"grn.prior": "none"},
)
WITHOUT_UNDER_LOAD = (
    {"nexus.eviction": "fifo"},
    {"nexus.eviction": "random"},
    {"nexus.regret_gamma": -math.inf},
    {"nexus.read": "soft"},
    {"nexus.routing": "random"},
)


def recipe(options: Options) -> SweepSpec:
    """The full model less one part at a time, at full size and, where it matters how full a bucket is, under load.

    Controls: random routing is a configuration of its own. The others are arms of the last tables: bias alone (`bias`),
    no memory (`gnn`), an empty one (`memory_off`) and one with exchanged contents (`memory_shuffled`).
    """
    loaded = [LOADED | part for part in ({}, *WITHOUT_UNDER_LOAD)]
    arms = [{}, *WITHOUT[:3], *loaded[:2]] if options.smoke else [{}, *WITHOUT, *loaded]
    return options.sweep("ablation", arms)


if __name__ == "__main__":
    sys.exit(run_recipe(recipe))
