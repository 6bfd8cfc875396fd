"""An energy of cell states, learned on unperturbed cells by denoising score matching.

A cell x [G] is described by z, its coordinates on principal axes of the standardised genes, and by what lies off them.
Its energy starts as that of a Gaussian around each cell state, with probabilistic principal components (Tipping and
Bishop 1999) as their common covariance, blurred by noise sigma; a network adds what is not Gaussian:

    E(x) = -log sum_s share_s exp(-distance_s(x, sigma)^2 / 2) + net(z, sigma),
    distance_s^2 = sum_i (z_i - mean_si)^2 / (variance_i + sigma^2) + |off the axes|^2 / (rest + sigma^2).

The network starts at 0 and is trained so that -dE/dz is the direction from a noisy cell back to the clean one (Vincent
2011), at several noise levels at once (Song and Ermon 2019).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from mantra_ray.cascade.replicas import Course, Replicas, Steps, Unkept
from mantra_ray.config import ManifoldConfig

LEVELS = (0.5, 1.0, 2.0)  # noise of the training, in units of the level at which the energy is read
BATCH = 256
LEARNING_RATE = 3e-3
HELD_OUT = 0.1  # share of the cells on which the network has to beat the Gaussians
LOOKS = 10  # at the held-out cells in the course of the training
DRAWS = 4  # of noise for each held-out cell and level
FLOOR = 0.1  # least standard deviation of a gene, as a share of the median


class Energy(nn.Module):
    """E(x) in nats, up to a constant, of log2 expression of G genes, of which the energy looks at g.

    Arrays: columns [g] int64, the genes looked at; mean, deviation [g], which standardise them; axes [g, d],
    orthonormal; variance [d]; rest, the variance along each other direction; centres [C, g] and share [C] of the
    Gaussians; controls [S, g], the mean control of each state; noise, the level at which the energy is read, in
    standard deviations of a gene; and the network's weights as `net.*`.
    """

    ARRAYS = ("columns", "mean", "deviation", "axes", "variance", "rest", "centres", "share", "controls", "noise")

    def __init__(self, arrays: dict[str, np.ndarray], hidden: int):
        super().__init__()
        for name in self.ARRAYS:
            self.register_buffer(name, torch.as_tensor(arrays[name]))
        axes = arrays["axes"].shape[1]
        self.net = nn.Sequential(
            nn.Linear(axes + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        nn.init.zeros_(self.net[-1].weight)

    def on_axes(self, z: Tensor, noise: Tensor, off: Tensor | float = 0.0) -> Tensor:
        """Energy [n] of coordinates z [n, d] at noise levels [n]; off [n, C] is the squared distance off the axes."""
        width, means = self.variance + noise[:, None].square(), self.centres @ self.axes
        distance = ((z[:, None] - means).square() / width[:, None]).sum(2)
        distance = distance + off / (self.rest + noise[:, None].square())
        likelihood = self.share.log() - distance / 2
        centred = z - likelihood.softmax(1) @ means  # what the network finds holds around every state
        beyond = self.net(torch.cat([centred / width.sqrt(), noise.log()[:, None]], 1))[:, 0]
        return beyond - likelihood.logsumexp(1)

    def forward(self, y: Tensor) -> Tensor:
        """Energy [n] of standardised states y [n, g] at the level where it is read."""
        z, means = y @ self.axes, self.centres @ self.axes
        whole = y.square().sum(1, keepdim=True) - 2 * y @ self.centres.T + self.centres.square().sum(1)
        off = whole - (z[:, None] - means).square().sum(2)
        return self.on_axes(z, self.noise.expand(len(y)), off)

    def gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [n] and its gradient [n, g]; -noise^2 times that leads to the expected clean state (Tweedie)."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            energy = self(y)
            (gradient,) = torch.autograd.grad(energy.sum(), y)
        return energy.detach(), gradient

    def relative(self, change: Tensor, state: Tensor) -> Tensor:
        """E(control + change) - E(control) [n] for each gene looked at; change [n, G] in log2 units, state [n]."""
        control = self.controls[state]
        moved = control + change[:, self.columns] / self.deviation
        return (self(moved) - self(control)) / len(self.columns)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that `from_arrays` takes."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()}

    @staticmethod
    def from_arrays(arrays: dict[str, np.ndarray], device: torch.device | str = "cpu") -> Energy:
        """The energy of `arrays()`; other arrays among them are left alone."""
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn, only to be replaced
            energy = Energy(arrays, len(arrays["net.0.bias"]))
        energy.load_state_dict({name: torch.as_tensor(arrays[name]) for name in energy.state_dict()})
        return energy.requires_grad_(False).to(device)


def fit_energy(
    profiles: np.ndarray,
    state: np.ndarray,
    states: int,
    columns: np.ndarray,
    config: ManifoldConfig,
    seed: int,
    device: torch.device | str = "cpu",
    replicas: Replicas | None = None,
    course: Course | None = None,
) -> tuple[Energy, dict[str, float]]:
    """Learn the energy of control cells [cells, g] of log2 expression, g the genes at `columns` of the predictions.

    state [cells] may hold -1, a cell of no known state; a state without control cells gets the mean of all. Some cells
    are held out: of the network's weights in the course of the training, and of none at all, those stay that denoise
    them best. Returns the energy and the denoising errors of the held-out cells, for each axis and in units of the
    noise's variance: `energy_error` and, of the Gaussians alone, `gaussian_error`. On CPU the same bit for bit.
    All `replicas` call this with the same arguments and return the same energy: that of one alone, to float tolerance.
    `course` hears, at each look at the held-out cells, their error `held_out` and the mean `loss` since the last look.
    """
    replicas, course = replicas or Replicas(), course or Unkept(seed)
    standards = replicas.same(lambda: _standards(profiles, state, states, columns, config, seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        energy = Energy(standards, config.hidden).to(device)
    replicas.align_(list(energy.net.parameters()))
    y = (torch.as_tensor(profiles, device=device)[:, _chosen(profiles, config)] - energy.mean) / energy.deviation
    z, levels = y @ energy.axes, energy.noise * torch.tensor(LEVELS, device=device)
    draw, apart = course.draw, math.ceil(HELD_OUT * len(z))
    z = z[torch.randperm(len(z), generator=draw).to(device)]
    held_out, train = z[:apart], z[apart:]

    def error(cells: Tensor, eps: Tensor, level: Tensor, training: bool) -> Tensor:
        """Mean squared error of the noise that the energy finds in cells with noise eps of the given level each.

        Of several replicas each takes its share of the cells, and its part of the mean.
        """
        whole = len(cells)
        cells, eps, level = (replicas.share(array) for array in (cells, eps, level))
        noise = levels[level]
        noisy = (cells + noise[:, None] * eps).requires_grad_()
        (gradient,) = torch.autograd.grad(energy.on_axes(noisy, noise).sum(), noisy, create_graph=training)
        squared = (noise[:, None] * gradient - eps).square()
        return squared.mean() if len(cells) == whole else squared.sum() / (whole * z.shape[1])

    level = torch.arange(len(LEVELS), device=device).repeat_interleave(DRAWS * len(held_out))
    judged = held_out.repeat(DRAWS * len(LEVELS), 1)
    eps = torch.randn(judged.shape, generator=draw).to(device)
    best = Best(energy.net)
    best.add(float(replicas.sum(error(judged, eps, level, training=False))))
    optimiser = torch.optim.AdamW(energy.net.parameters(), LEARNING_RATE)
    steps = Steps(optimiser, LEARNING_RATE, config.updates, replicas)
    looks = sorted({math.ceil(config.updates * look / LOOKS) for look in range(LOOKS + 1)})
    for look in range(course.begin("energy", net=energy.net, steps=steps, best=best) + 1, len(looks)):
        total, updates = torch.zeros((), dtype=torch.float64, device=device), looks[look] - looks[look - 1]
        for _ in range(updates):
            rows = torch.randint(len(train), (BATCH,), generator=draw).to(device)
            noise = torch.randn(BATCH, z.shape[1], generator=draw).to(device)
            chosen = torch.randint(len(LEVELS), (BATCH,), generator=draw).to(device)
            loss = error(train[rows], noise, chosen, training=True)
            steps.begin()
            loss.backward()
            steps.end()
            total += loss.detach()
        best.add(float(replicas.sum(error(judged, eps, level, training=False))))
        course.end_epoch({"loss": float(replicas.sum(total)) / updates, "held_out": best.errors[-1]})
    best.take_()
    return energy.requires_grad_(False), {"energy_error": min(best.errors), "gaussian_error": best.errors[0]}


class Best:
    """The weights of least error so far, of those that were added with their errors."""

    def __init__(self, net: nn.Module):
        self.net, self.errors = net, list[float]()
        self.weights: dict[str, Tensor] = {}

    def add(self, error: float) -> None:
        """The net's weights of this moment, and their error."""
        self.errors.append(error)
        if len(self.errors) == 1 or error < min(self.errors[:-1]):
            self.weights = copy.deepcopy(self.net.state_dict())

    def take_(self) -> None:
        """Give the net the best weights."""
        self.net.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"errors": list(self.errors), "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.errors, self.weights = list(state["errors"]), dict(state["weights"])


def _chosen(profiles: np.ndarray, config: ManifoldConfig) -> np.ndarray:
    """Columns of the profiles that the energy looks at: the most variable ones, or with principal components all."""
    genes = profiles.shape[1]
    if config.space == "pca" or config.components >= genes:
        return np.arange(genes)
    variance = profiles.var(0, dtype=np.float64)
    return np.sort(np.argsort(-variance, kind="stable")[: config.components])


def _standards(
    profiles: np.ndarray, state: np.ndarray, states: int, columns: np.ndarray, config: ManifoldConfig, seed: int
) -> dict[str, np.ndarray]:
    """The arrays of an energy, without its network."""
    chosen = _chosen(profiles, config)
    cells = profiles[:, chosen].astype(np.float64)
    mean, deviation = cells.mean(0), cells.std(0)
    middle = np.median(deviation)
    deviation = np.maximum(deviation, FLOOR * middle if middle > 0 else 1.0)
    y = (cells - mean) / deviation
    known = np.unique(state)
    centres = np.stack([y[state == s].mean(0) for s in known])
    around = y - centres[np.searchsorted(known, state)]
    pca = PCA(min(config.components, *y.shape), random_state=seed).fit(around)
    floats = {
        "mean": mean,
        "deviation": deviation,
        "axes": pca.components_.T,
        "variance": pca.explained_variance_,
        "rest": np.array(pca.noise_variance_),
        "centres": centres,
        "share": np.array([(state == s).mean() for s in known]),
        "controls": np.stack([centres[known == s].sum(0) for s in range(states)]),  # 0 is the mean of all
        "noise": np.array(config.noise),
    }
    arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in floats.items()}
    return arrays | {"columns": np.asarray(columns, np.int64)[chosen]}
