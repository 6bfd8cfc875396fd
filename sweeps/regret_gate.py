"""What the write gate and eviction do: write density and gain against gamma, and who gives way in a full bucket."""

import math
import sys

from mantra_ray.cli import run_recipe
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.spec import SweepSpec, grid

GAMMAS = (-math.inf, -2.0, -0.2, -0.05, -0.01, 0.0, 0.01, 0.05, 0.2, 2.0, math.inf)
SIGNALS = ("entropy", "residual")
EVICTIONS = ("pss", "fifo", "random")
LOAD = 4.0  # training records a slot, so that most must give way
WEIGHTS = ("nexus.surprisal_weight", "nexus.rarity_weight", "nexus.novelty_weight")


def recipe(options: Options) -> SweepSpec:
    """Write threshold x gate signal at full size; eviction, and PSS less each of its terms, under load."""
    gammas, signals = (GAMMAS[::5], SIGNALS[:1]) if options.smoke else (GAMMAS, SIGNALS)
    arms = grid(**{"nexus.gate_signal": signals, "nexus.regret_gamma": gammas})
    full = {"nexus.load": LOAD, "nexus.slots": 8}
    arms += [full | {"nexus.eviction": eviction} for eviction in EVICTIONS]
    arms += [full | {weight: 0.0} for weight in WEIGHTS]
    return options.sweep("regret_gate", arms)


if __name__ == "__main__":
    sys.exit(run_recipe(recipe))
