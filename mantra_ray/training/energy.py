"""The energy of cell states as a unit of training, and what it makes of a fold's predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mantra_ray.cascade.energy import BATCH, Energy, fit_energy
from mantra_ray.cascade.manifold import Descent
from mantra_ray.cascade.replicas import Replicas
from mantra_ray.config import ExperimentConfig, ManifoldConfig
from mantra_ray.data.controls import energy_wanted
from mantra_ray.data.screen import Screen
from mantra_ray.errors import InputError
from mantra_ray.fields import digest, flatten
from mantra_ray.provenance import code_version
from mantra_ray.training.distributed import Records, course_of, curves_of

CODE = ("cascade.energy", "cascade.replicas", "data.controls", "data.simulate", "training.energy")
LEARNED = (
    "cells",
    "space",
    "components",
    "noise",
    "hidden",
    "updates",
    "replicas",
)  # settings that an energy depends on


@dataclass(frozen=True)
class EnergyUnit:
    """An energy to learn on unperturbed cells; no perturbed record reaches it."""

    path: Path  # named by the hash of all that it depends on
    genes: np.ndarray  # columns that are predicted
    config: ManifoldConfig
    seed: int

    @property
    def cost(self) -> int:
        """What its training time grows with, in the units of the networks' cost."""
        return self.config.updates * BATCH * self.config.hidden

    @property
    def replicas(self) -> int:
        """Workers that train it together; 0: one, and those that would be idle."""
        return self.config.replicas

    def train(
        self, records: Records, device: torch.device | str = "cpu", replicas: Replicas | None = None
    ) -> dict[str, np.ndarray]:
        """Learn; returns the energy's arrays, its errors on held-out cells, its curves and the seconds taken."""
        started, replicas = time.perf_counter(), replicas or Replicas()
        controls = records.controls
        columns = np.flatnonzero(controls.measured[self.genes])
        data = controls.profiles[:, self.genes[columns]], controls.state, records.states, columns
        with torch.random.fork_rng(devices=[]):  # the course seeds torch's own generator, which is the caller's
            course = course_of(self, self.seed, replicas)
            course.recall()
            energy, errors = fit_energy(*data, self.config, self.seed, device, replicas, course)
        numbers = errors | {"seconds": time.perf_counter() - started}
        numbers = {name: np.array(value) for name, value in numbers.items()}
        return energy.arrays() | numbers | curves_of(course)


def energy_units(
    screen: Screen, experiment: ExperimentConfig, genes: Sequence[int], artifacts: Path
) -> list[EnergyUnit]:
    """The energy of the kept genes that an experiment needs; none where it asks for none or no controls are known.

    Raises InputError if no kept gene was measured in the controls.
    """
    if screen.controls is None or not energy_wanted(experiment):
        return []
    genes = np.asarray(genes)
    if not screen.controls.measured[genes].any():
        path = experiment.manifold.controls
        raise InputError(path, "genes", len(genes), "none of the kept genes (--genes) was measured")
    fields = {name: value for name, value in flatten(experiment.manifold).items() if name in LEARNED}
    parts = {"fields": fields, "seed": experiment.seed, "data": screen.sha256, "genes": genes.tolist()}
    key = digest(parts | {"code": code_version(*CODE)})
    return [EnergyUnit(artifacts / f"energy_{key}.npz", genes, experiment.manifold, experiment.seed)]


def descended(
    base: np.ndarray, state: np.ndarray, arrays: dict[str, np.ndarray], config: ManifoldConfig
) -> dict[str, np.ndarray | dict[str, np.ndarray]]:
    """A fold's fields past the descent of its energy (`arrays`), of predictions [N, G] in states [N]."""
    energy = Energy.from_arrays(arrays)
    kept = energy.arrays() | {"steps": np.array(config.steps), "reach": np.array(config.reach)}
    projected = Descent(energy, config.steps, config.reach)(base, state)
    return {"base_expression": projected, "smooth_expression": base, "descent": kept}
