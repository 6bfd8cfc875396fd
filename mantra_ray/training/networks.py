"""A fold's cross-fitted networks and its manifold as one file beside it, for what goes on from the trained GRN-GNN."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mantra_ray.cascade.graph_inputs import GrnInputs
from mantra_ray.cascade.grn import Grn
from mantra_ray.cascade.smoother import LaplacianSmoother
from mantra_ray.config import GrnConfig
from mantra_ray.data.graph import Graph
from mantra_ray.errors import InputError
from mantra_ray.files import atomic

SHAPE = ("hidden", "layers")  # of the configuration: what a network is built from


@dataclass(frozen=True)
class Networks:
    """A fold's networks, in the order of its cross-fitting folds, and the manifold that their predictions pass."""

    models: list[Grn]
    scales: list[float]  # log2 units of each network's outputs
    smooth: Callable[[np.ndarray], np.ndarray]  # of changes [n, G]; the identity where the manifold is off


def network_arrays(model: Grn, inputs: GrnInputs, config: GrnConfig) -> dict[str, np.ndarray]:
    """All that a network is rebuilt from, as flat arrays: `inputs.*`, `config.*` and `weights.*`."""
    arrays = {f"inputs.{name}": np.asarray(value) for name, value in vars(inputs).items()}
    arrays |= {f"config.{name}": np.asarray(getattr(config, name)) for name in SHAPE}
    return arrays | {f"weights.{name}": tensor.detach().cpu().numpy() for name, tensor in model.named_parameters()}


def smoother(graph: Graph | None, smoothing: float) -> Callable[[np.ndarray], np.ndarray]:
    """The manifold's projection of changes [n, G]; the identity without a graph."""
    if graph is None:
        return lambda change: change
    return LaplacianSmoother(graph.source, graph.target, graph.weight, len(graph.nodes), smoothing)


def save_networks(path: Path, results: Sequence[dict[str, np.ndarray]], graph: Graph | None, smoothing: float) -> None:
    """Write the networks of a fold's results and the manifold's graph of G genes (None: off) atomically.

    The file holds plain tensors and numbers, so that `torch.load(weights_only=True)` reads it.
    """
    stored: dict = {"networks": [], "manifold": None}
    for result in results:
        network: dict[str, dict] = {"inputs": {}, "config": {}, "weights": {}}
        for name, array in result.items():
            group, _, key = name.partition(".")
            if key:
                network[group][key] = torch.from_numpy(array) if array.ndim else array.item()
        stored["networks"].append(network)
    if graph is not None:
        ends = {name: torch.from_numpy(getattr(graph, name)) for name in ("source", "target", "weight")}
        stored["manifold"] = {"genes": len(graph.nodes), "smoothing": smoothing, **ends}
    with atomic(path) as partial, partial.open("wb") as handle:  # a name would enter the file's bytes
        torch.save(stored, handle)


def load_networks(path: Path, device: torch.device | str = "cpu") -> Networks:
    """Read what `save_networks` wrote; InputError if the file is not there or damaged."""
    try:
        return networks_of(read_tensors(path), device)
    except Exception as error:
        raise InputError(path, "networks", type(error).__name__, f"cannot be read: {error}") from error


def networks_of(stored: dict, device: torch.device | str = "cpu") -> Networks:
    """The networks of what `save_networks` stored; raises whatever a content that is none leads to."""
    models = [_rebuild(**network, device=device) for network in stored["networks"]]
    graph, smoothing = None, 0.0
    if stored["manifold"] is not None:
        arrays = {name: stored["manifold"][name].numpy() for name in ("source", "target", "weight")}
        graph = Graph(("",) * stored["manifold"]["genes"], **arrays)
        smoothing = stored["manifold"]["smoothing"]
    scales = [network["inputs"]["scale"] for network in stored["networks"]]
    return Networks(models, scales, smoother(graph, smoothing))


def networks_file(folder: Path, meta: dict) -> Path:
    """Where the networks of a fold lie, beside it; InputError where its `meta` names a file of another folder."""
    name = str(meta["networks"])
    if name != Path(name).name or name == "..":
        raise InputError(folder, "networks", name, "must be the name of a file beside the fold")
    return folder / name


def are_whole(path: Path) -> bool:
    """Whether `load_networks` would succeed, as far as the file's check sums tell."""
    try:
        return bool(read_tensors(path)["networks"])
    except Exception:  # whatever the unpickler makes of a damaged file
        return False


def read_tensors(path: Path) -> dict:
    """Tensors and numbers of a file that torch wrote, its check sums verified; ValueError where one is wrong."""
    with zipfile.ZipFile(path) as archive:  # torch writes check sums but does not read them
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"{broken} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def inputs_of(stored: dict) -> GrnInputs:
    """What a stored network knows of the graph and of its training fold."""
    return GrnInputs(**{name: value.numpy() if torch.is_tensor(value) else value for name, value in stored.items()})


def _rebuild(inputs: dict, config: dict, weights: dict, device: torch.device | str) -> Grn:
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, only to be replaced
        # What is added to states in float32 would be lost in the rounding of shorter ones.
        settings = dataclasses.replace(GrnConfig(), **config, precision="float32")
        model = Grn(inputs_of(inputs), settings, device)
    named = dict(model.named_parameters())
    if named.keys() != weights.keys():
        raise ValueError("weights of another network")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    return model
