"""Predictions of a checkpoint alone for any regulator, dose and state: the cascade before the memory, and the memory.

What a `Fold` holds for its own records is made here for others, by the mean of the fold's networks, as test records
had it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from mantra_ray.cascade.energy import Energy
from mantra_ray.cascade.graph_inputs import kinship
from mantra_ray.cascade.grn import predict_grn
from mantra_ray.cascade.manifold import Descent
from mantra_ray.cascade.ridge import design
from mantra_ray.errors import InputError
from mantra_ray.forward import Prediction, predict
from mantra_ray.nexus.adapter import trimmed
from mantra_ray.nexus.reader import NOBODY
from mantra_ray.training.checkpoint import Checkpoint
from mantra_ray.training.crossfit import out_of_fold
from mantra_ray.training.explanation import Query, asked_records, number
from mantra_ray.training.networks import inputs_of, networks_of
from mantra_ray.training.recursive import RecursiveCascade
from mantra_ray.training.residual import read_only


@dataclass(frozen=True, eq=False)
class Asked:
    """The cascade before the memory for n queries; fields as in `Fold`."""

    state: np.ndarray
    base_program: np.ndarray
    base_expression: np.ndarray | None
    smooth_expression: np.ndarray | None
    lift: np.ndarray
    lift_expression: np.ndarray | None
    loadings: np.ndarray | None
    trait_weights: np.ndarray
    descent: dict[str, np.ndarray] | None


class Predictor:
    """A checkpoint's networks and memory, for regulators of the data and for any other gene of the networks.

    `regulators` are the names that will be asked for. A gene that was never perturbed takes its embedding from its
    relatives in the graph, as an untrained regulator does (`kinship`), and nothing is recalled for it. Raises
    InputError for a name that is neither, and for a checkpoint without networks.
    """

    def __init__(self, checkpoint: Checkpoint, regulators: Iterable[str]):
        if not checkpoint.before:
            problem = "holds none to predict with: train it again by mantra train"
            raise InputError(checkpoint.path, "networks", None, problem)
        self.checkpoint, before = checkpoint, checkpoint.before
        own = checkpoint.names["regulator"]
        self.known = len(own)
        genes = checkpoint.names["gene"] if "networks" in before else []
        beyond = sorted(set(regulators) - set(own))
        for name in beyond:
            number(checkpoint, "regulator", name, more=genes)
        self.place = {name: i for i, name in enumerate([*own, *beyond])}
        self.cascade = {name: tensor.numpy() for name, tensor in checkpoint.cascade.items()}
        self.slope = np.float32(before["calibration"])
        self.descend: Descent | None = None
        self.recursion: RecursiveCascade | None = None
        if "networks" not in before:
            return
        nodes = [genes.index(name) for name in beyond]
        stored = [self._with_genes(fold, network, nodes) for fold, network in enumerate(before["networks"])]
        self.inputs = [inputs_of(network["inputs"]) for network in stored]
        self.networks = networks_of(before | {"networks": stored})
        self.arrays = {name: tensor.numpy() for name, tensor in before["descent"].items()}
        if self.arrays:
            energy, steps, reach = Energy.from_arrays(self.arrays), self.arrays["steps"], self.arrays["reach"]
            self.descend = Descent(energy, int(steps), float(reach))

    def _with_genes(self, fold: int, network: dict, nodes: list[int]) -> dict:
        """The stored network of a cross-fitting fold with the genes at `nodes` as further regulators."""
        if not nodes:
            return network
        inputs, own = dict(network["inputs"]), network["weights"]["own"]
        inputs["regulator_node"] = torch.cat([inputs["regulator_node"], torch.tensor(nodes)])
        records = self.checkpoint.records
        seen = (records["cross_fit"] >= 0) & (records["cross_fit"] != fold)
        trained = np.isin(np.arange(self.known + len(nodes)), records["regulator"][seen].numpy())
        classes = np.append(self.checkpoint.regulator_class.numpy(), np.full(len(nodes), -1))
        shares = kinship(inputs_of(inputs), trained, classes)[-len(nodes) :]
        learned = shares @ own.double().numpy()[trained[: self.known]]
        weights = network["weights"] | {"own": torch.cat([own, torch.from_numpy(learned).to(own.dtype)])}
        return network | {"inputs": inputs, "weights": weights}

    def predict(
        self, regulator: np.ndarray, dose: np.ndarray, state: np.ndarray
    ) -> tuple[Prediction, Prediction, np.ndarray]:
        """Predictions of queries [n], numbers by `place`, without the memory and with it.

        Also the base's values [n, M] that the memory corrects, in the data's units.
        """
        asked, rows = self._before(regulator, dose.astype(np.float32), state), np.arange(len(regulator))
        checkpoint, nexus = self.checkpoint, self.checkpoint.config.nexus
        base = asked.base_expression if nexus.correct == "genes" else asked.base_program
        alone = predict(asked, rows)
        inside = np.flatnonzero(regulator < self.known)
        if not len(inside):
            return alone, alone, base
        values = torch.as_tensor(base[inside] / checkpoint.scale, dtype=torch.float32)
        records = asked_records(checkpoint, regulator[inside], dose[inside], state[inside], values)
        memories = trimmed(checkpoint.memories)
        if checkpoint.recursion:
            nobodys = torch.full((len(inside),), -1)
            change = self._recursive(asked).changes(memories, records, nobodys).numpy()
            found = self.networks.smooth(change)
        else:
            found = read_only(checkpoint.model, memories, records).value.numpy() * checkpoint.scale
        correction = np.zeros((len(rows), found.shape[1]), np.float32)
        correction[inside] = found
        if checkpoint.recursion or nexus.correct == "genes":
            return alone, predict(asked, rows, expression=correction), base
        return alone, predict(asked, rows, correction), base

    def query(self, regulator: int, dose: float, state: int, base: np.ndarray) -> Query | None:
        """One query for `explanation.explain`, with its base's values [M]; None for a gene that no memory knows."""
        if regulator >= self.known:
            return None
        values = torch.as_tensor(base[None] / self.checkpoint.scale, dtype=torch.float32)
        one = np.array([regulator]), np.array([dose], np.float32), np.array([state])
        return Query(regulator, dose, state, NOBODY, asked_records(self.checkpoint, *one, values))

    def _before(self, regulator: np.ndarray, dose: np.ndarray, state: np.ndarray) -> Asked:
        cascade, before, loadings = self.cascade, self.checkpoint.before, self.cascade.get("loadings")
        fixed = {"lift": cascade["lift"], "trait_weights": cascade["trait_weights"]}
        if "networks" not in before:
            features = design(regulator, dose, state, self.known, len(self.checkpoint.names["state"]))
            program = features @ before["coefficients"].numpy().T + before["intercept"].numpy()
            program = (program * self.slope).astype(np.float32)
            return Asked(state, program, None, None, lift_expression=None, loadings=None, descent=None, **fixed)
        who = regulator, dose, state
        pairs = zip(self.networks.models, self.inputs, strict=True)
        free = [predict_grn(model, inputs, *who) for model, inputs in pairs]
        smooth = self.networks.smooth(out_of_fold(free, np.full(len(regulator), -1)))
        program, expression, descended = smooth @ loadings * self.slope, smooth * self.slope, None
        if self.descend is not None:
            descended = expression
            expression = self.descend(expression, state)
            program = expression @ loadings
        return Asked(
            state, program, expression, descended, lift_expression=cascade["lift_expression"], loadings=loadings,
            descent=self.arrays or None, **fixed,
        )  # fmt: skip

    def _recursive(self, asked: Asked) -> RecursiveCascade:
        if self.recursion is None:
            self.recursion = self.checkpoint.recursive(asked, networks_of(self.checkpoint.before))
        return self.recursion
