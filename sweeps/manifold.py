"""What the graph prior and the manifold are worth, together and each part of the manifold alone."""

import sys

from mantra_ray.cli import run_recipe
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.spec import SweepSpec, grid

PENALTY = 0.1  # weight of the relative energy in the network's loss


def recipe(options: Options) -> SweepSpec:
    """The graph prior, on or off, x the manifold, on or off; then smoothing, descent and penalty alone.

    Without its prior the network has no edges, and the smoothing takes those of the training fold's co-expression.
    Where the data has no unperturbed cells the manifold is the smoothing alone.
    """
    arms = grid(**{"grn.prior": ("given", "none"), "manifold.smooth": (False, True)})
    arms = [arm | {"manifold.energy": arm["manifold.smooth"]} for arm in arms]
    alone = {"manifold.smooth": False, "manifold.energy": False, "manifold.penalty": 0.0}
    for part in ({"manifold.smooth": True}, {"manifold.energy": True}, {"manifold.penalty": PENALTY}):
        arms.append({"grn.prior": "given"} | alone | part)
    return options.sweep("manifold", arms)


if __name__ == "__main__":
    sys.exit(run_recipe(recipe))
