"""A memory in its smallest form: a regulator's shrunk mean corrected by its records, weighed by learned similarity."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.optimize import minimize

from mantra_ray.baselines.headers import Headers, pairs
from mantra_ray.baselines.smoothers import Smoother

# log pseudo-count; match weights of state, strategy and dose (not negative); gate: bias, state held, log rows held.
START = (0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
BOUNDS = ((-4.0, 6.0), (0.0, 20.0), (0.0, 20.0), (0.0, 20.0), (-8.0, 8.0), (-8.0, 8.0), (-8.0, 8.0))

# Pairs of rows, times columns, that fitting looks at: 240 MB in float64.
ENTRIES = 30_000_000


class Pairs:
    """Pairs (query i, row j) of one regulator that may be used, and the weights that parameters give them."""

    def __init__(self, query: Headers, memory: Headers, i: np.ndarray, j: np.ndarray):
        self.shape = len(query.regulator), len(memory.regulator)
        state, strategy = query.state[i] == memory.state[j], query.strategy[i] == memory.strategy[j]
        match = np.stack([state, strategy, -np.abs(query.dose[i] - memory.dose[j])], axis=1)
        held = np.bincount(i, minlength=self.shape[0])
        state_held = np.bincount(i, weights=state, minlength=self.shape[0]) > 0
        gate = np.stack([np.ones_like(state_held), state_held, np.log1p(held)], axis=1)
        self.i, self.j = torch.from_numpy(i), torch.from_numpy(j)
        self.match, self.gate = torch.from_numpy(match.astype(float)), torch.from_numpy(gate.astype(float))
        self.held = torch.from_numpy(held.astype(float))

    def weights(self, parameters: torch.Tensor) -> torch.Tensor:
        """Weight of each pair: (1 - gate) / (rows + pseudo-count) + gate * softmax(match), [pairs]."""
        score = torch.exp(self.match @ parameters[1:4] - parameters[1:3].sum())
        total = torch.zeros(self.shape[0], dtype=score.dtype).index_add(0, self.i, score)
        gate = torch.sigmoid(self.gate @ parameters[4:])[self.i]
        mean = 1.0 / (self.held[self.i] + parameters[0].exp())
        return (1 - gate) * mean + gate * score / total[self.i]

    def predict(self, parameters: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Weighted sums of `target` [m, K] for each query, [n, K]."""
        out = torch.zeros(self.shape[0], target.shape[1], dtype=target.dtype)
        return out.index_add(0, self.i, self.weights(parameters)[:, None] * target[self.j])


def residual_memory(query: Headers, memory: Headers, target: np.ndarray) -> Smoother:
    """The memory fitted leave-one-out on target [m, K]; it predicts zero for a regulator without rows.

    In fitting, a row never sees itself, and half of its weight in the loss comes from predicting it with all rows
    of its own state hidden, so that the gate learns how far to trust records of other states. Where few regulators
    have very many rows, an even share of the rows is predicted in fitting.
    """
    i, j = pairs(memory, memory)
    every = -(-len(i) * target.shape[1] // ENTRIES) or 1
    i, j = i[i % every == 0], j[i % every == 0]
    shown = (i != j, memory.state[i] != memory.state[j])
    views = [Pairs(memory, memory, i[usable], j[usable]) for usable in shown]
    truth = torch.from_numpy(target.astype(float))
    scale = truth[::every].square().mean().clamp(min=1e-12)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(values, requires_grad=True)
        error = sum((view.predict(parameters, truth) - truth)[::every].square().mean() for view in views) / (2 * scale)
        error.backward()
        return error.item(), parameters.grad.numpy()

    fitted = minimize(loss, np.array(START), jac=True, bounds=BOUNDS, method="L-BFGS-B").x
    found = Pairs(query, memory, *pairs(query, memory))
    weights = found.weights(torch.from_numpy(fitted)).numpy()
    weights = sparse.csr_array((weights, (found.i.numpy(), found.j.numpy())), shape=found.shape)
    return lambda values: weights @ values
