"""From a fold to what the memory trains on: vocabulary, routes and records, in units of the training residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mantra_ray.config import NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.forward import Fold
from mantra_ray.nexus.records import Records
from mantra_ray.nexus.routing import Route, make_routes
from mantra_ray.nexus.tokens import Vocabulary


@dataclass
class Space:
    """The space in which corrections are judged, against the residual that was observed.

    Programs: after the manifold. Genes: all genes, and with the same weight their programs, whose noise is less.
    """

    lift: Tensor | None = None  # [K, K] what the manifold makes of a correction of programs
    genes: float = 1.0  # factors that give both parts of a residual of genes the same power
    loadings: Tensor | None = None  # [G, K]

    def observed(self, residual: Tensor) -> Tensor:
        """Residuals [N, M] as they are judged."""
        if self.loadings is None:
            return residual
        return torch.cat([self.genes * residual, residual @ self.loadings], dim=1)

    def reached(self, correction: Tensor) -> Tensor:
        """What corrections [N, M] come to, in the same columns."""
        return self.observed(correction) if self.lift is None else correction @ self.lift

    def error(self, residual: Tensor, correction: Tensor) -> Tensor:
        """Mean squared error [N]."""
        return (self.observed(residual) - self.reached(correction)).square().mean(1)


@dataclass
class Inputs:
    """All rows of a fold as the memory's model takes them; edges and scale come from training rows alone."""

    vocabulary: Vocabulary
    routes: tuple[Route, ...]
    records: Records  # all N rows
    scale: float  # root mean square of the training residuals: the unit of values and corrections
    space: Space


def check_memory(config: NexusConfig, has_expression: bool, has_classes: bool) -> None:
    """Raise InputError where the memory asks for what the data does not have."""
    asks = {"correct": config.correct == "genes", "top_genes": config.top_genes > 0}
    asks["correction"] = config.correction == "recursive"
    for name in (name for name, asked in asks.items() if asked and not has_expression):
        field = "--nexus." + name.replace("_", "-")
        raise InputError("options", field, getattr(config, name), "the data has no changes of expression")
    if config.routing in ("class", "levels") and not has_classes:
        problem = "no regulator's class is known; name a file of them (--classes)"
        raise InputError("options", "--nexus.routing", config.routing, problem)


def make_inputs(fold: Fold, config: NexusConfig, residual: np.ndarray | None = None, device: str = "cpu") -> Inputs:
    """Records whose values are changes of programs, or of genes where `config.correct` says so.

    `residual` [N, M] takes the place of the fold's own (the shuffled control). Raises InputError where the fold
    lacks what the config asks for.
    """
    train, expression = fold.train, fold.delta_expression
    check_memory(config, expression is not None, bool((fold.regulator_class >= 0).any()))
    genes = config.correct == "genes"
    if genes and not np.allclose(fold.lift, np.eye(fold.programs), atol=1e-4):
        raise InputError("options", "--nexus.correct", "genes", "a gene correction passes no manifold: leave it off")
    base = fold.base_expression if genes else fold.base_program
    own = (expression if genes else fold.delta_program) - base
    residual = own if residual is None else residual
    scale = float(np.sqrt(np.mean(np.square(residual[train], dtype=np.float64)))) or 1.0
    program_scale = float(np.sqrt(np.mean(np.square(fold.residual[train], dtype=np.float64)))) or 1.0
    vocabulary = Vocabulary.learn(
        fold.dose[train],
        fold.delta_program[train],
        regulators=len(fold.regulator_class),
        states=int(fold.state.max()) + 1,
        dose_bins=config.dose_bins,
        magnitude_bins=config.magnitude_bins,
        top_programs=config.top_programs,
        delta_expression=expression[train] if config.top_genes else None,
        top_genes=config.top_genes,
    )
    try:
        routes = make_routes(config, len(train), int(fold.regulator_class.max(initial=-1)) + 1)
    except ValueError as error:
        raise InputError("options", "--nexus.routing", config.routing, str(error)) from error
    regulator, kind = torch.tensor(fold.regulator), torch.tensor(fold.regulator_class[fold.regulator])
    record = torch.arange(len(regulator))
    arrays = {
        "header": vocabulary.header(fold.regulator, fold.dose, fold.state),
        "content": vocabulary.content(fold.delta_program, expression if config.top_genes else None),
        "dose": fold.dose.astype(np.float32),
        "base": (base / scale).astype(np.float32),
        "residual": (residual / scale).astype(np.float32),
        "noise": (fold.program_noise.mean(1) / program_scale**2).astype(np.float32),  # relative, whatever the values
        "bucket": torch.stack([route.bucket(regulator, kind, record) for route in routes], dim=1),
        "state": fold.state,
        "record": record,
        "known": np.isin(fold.regulator, fold.regulator[train]),
    }
    records = Records(**{name: torch.as_tensor(array, device=device) for name, array in arrays.items()})
    return Inputs(vocabulary, routes, records, scale, _space(fold, records.residual, genes))


def _space(fold: Fold, residual: Tensor, genes: bool) -> Space:
    if not genes:
        return Space(lift=torch.tensor(fold.lift, device=residual.device))
    loadings = torch.tensor(fold.loadings, device=residual.device)
    count, programs = loadings.shape
    power = float((residual[torch.as_tensor(fold.train)] @ loadings).square().sum(1).mean())
    both = (count + programs) / 2
    return Space(genes=(both / count) ** 0.5, loadings=loadings * (both / max(power, 1e-12)) ** 0.5)
