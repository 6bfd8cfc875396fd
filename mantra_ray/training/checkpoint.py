"""A trained memory as one file: weights, memory, and all that is needed to explain or repeat its predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mantra_ray.cascade.ridge import design
from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten, unflatten
from mantra_ray.files import atomic
from mantra_ray.forward import Base, Fold
from mantra_ray.nexus.adapter import Memories, Nexus
from mantra_ray.nexus.cam import EMPTY, PER_SLOT, Memory
from mantra_ray.nexus.routing import Route
from mantra_ray.nexus.tokens import Vocabulary
from mantra_ray.provenance import code_version
from mantra_ray.training.crossfit import ridge_models
from mantra_ray.training.inputs import make_inputs
from mantra_ray.training.networks import Networks, load_networks, networks_file, read_tensors
from mantra_ray.training.nexus import Trained
from mantra_ray.training.recursive import RecursiveCascade, TrainedRecursion

CODE = ("config", "cascade", "nexus", "forward", "training")
FORMAT = 2  # of the file; raise it when what `save` stores changes its meaning
NAME, VOCABULARY = "model.pt", "vocab.json"
STATISTICS = ("mean", "variance", "count")
CASCADE = ("lift", "lift_expression", "trait_weights", "loadings")  # of a fold: what a correction comes to


@dataclass(frozen=True)
class Checkpoint:
    """What `save` wrote, on the CPU; N records, M values each, R regulators, K programs, T traits."""

    path: Path
    config: ExperimentConfig
    code: str  # version of the code that trained
    data_sha256: str
    stage: str  # stage key of the fold
    names: dict[str, list[str]]  # as in the fold, and `class`
    regulator_class: Tensor  # [R] int64, -1 where unknown
    model: Nexus
    memories: Memories
    scale: float  # of values and corrections
    records: dict[str, Tensor]  # regulator, dose, state, cross_fit [N], base [N, M] (in units of scale), train [N] bool
    # lift [K, K], trait_weights [K, T] and, of data with expression, loadings [G, K] and lift_expression [K, G]
    cascade: dict[str, Tensor]
    before: dict[str, Any]  # what predicts without the memory: see `_before`; empty where the fold had no networks
    recursion: dict[str, Tensor]  # weights of the recursion and its networks; none where the correction is added
    curves: list[dict]
    diagnostics: dict[str, float]

    def trained(self, fold: Fold, folder: Path) -> Trained:
        """The model on its fold, to predict what it predicted when it was saved: on the CPU the same bit for bit.

        `folder` is that of the fold's file, where the networks of a recursive correction lie. Raises InputError if
        the fold is of other data, names or settings.
        """
        self._check("data sha256", fold.meta.get("data", ""), self.data_sha256)
        for kind, names in fold.names.items():
            mine = self.names[kind]
            self._check(f"number of names, {kind}", len(names), len(mine))
            for name, own in zip(names, mine, strict=True):
                self._check(f"names, {kind}", name, own)
        for field, of_fold, own in (
            ("split.kind", fold.meta["kind"], self.config.split.kind),
            ("seed", fold.meta["seed"], self.config.seed),
            ("stage (settings or code of what lies before the memory)", fold.meta.get("stage", ""), self.stage),
        ):
            self._check(field, of_fold, own)
        inputs = make_inputs(fold, self.config.nexus)
        self._check("vocabulary", inputs.vocabulary, self.model.vocabulary)
        self._check("routes", inputs.routes, self.model.routes)
        self._check("scale of the residuals", inputs.scale, self.scale)
        rest = self.model, self.memories, inputs, self.curves, self.diagnostics
        if not self.recursion:
            return Trained(*rest)
        networks = load_networks(networks_file(folder, fold.meta))
        return TrainedRecursion(*rest, self.recursive(fold, networks), networks)

    def recursive(self, fold: Base, networks: Networks) -> RecursiveCascade:
        """The trained recursion; the weights of `networks` become its own. InputError where shapes do not fit."""
        cascade = RecursiveCascade(fold, networks, self.model, self.scale)
        with torch.no_grad():
            for name, parameter in recursion_weights(cascade).items():
                own = self.recursion[name]
                self._check(f"shape of {name}", tuple(parameter.shape), tuple(own.shape))
                parameter.copy_(own)
        return cascade.eval()

    def check_parts(self) -> None:
        """InputError, naming the first that does not fit, unless names, vocabulary and arrays are of one training."""
        vocabulary, cascade, names = self.model.vocabulary, self.cascade, self.names
        counts = {
            "regulator": {"vocabulary": vocabulary.regulators, "regulator_class": len(self.regulator_class)},
            "program": {"vocabulary": vocabulary.programs, "lift": len(cascade["lift"])},
            "trait": {"trait_weights": cascade["trait_weights"].shape[1]},
            "gene": {"loadings": len(cascade["loadings"])} if "loadings" in cascade else {},
            "state": {},
        }
        for network in self.before.get("networks", ()):
            counts["gene"]["networks"] = network["inputs"]["genes"]
            counts["state"]["networks"] = network["inputs"]["states"]
            counts["regulator"]["networks"] = len(network["inputs"]["regulator_node"])
        for kind, parts in counts.items():
            for part, count in parts.items():
                self._check(f"number of names, {kind}", count, len(names[kind]), f"the part {part}")

    def _check(self, field: str, other: Any, own: Any, whose: str = "") -> None:
        if other != own:
            problem = f"{whose} does not fit the checkpoint, which has {own!r}".lstrip()
            raise InputError(self.path, field, other, problem)


def recursion_weights(cascade: RecursiveCascade) -> dict[str, Tensor]:
    """The parameters that a recursion has beyond the memory's model."""
    return {name: one for name, one in cascade.named_parameters() if not name.startswith("nexus.")}


def save(
    path: Path,
    trained: Trained,
    fold: Fold,
    config: ExperimentConfig,
    class_names: Sequence[str] = (),
    folder: Path | None = None,
) -> None:
    """Write a checkpoint atomically: plain tensors, numbers and text, which `torch.load(weights_only=True)` reads.

    With `folder`, where the fold's file and its networks lie, it can predict for any regulator, dose and state.
    """
    model, records = trained.model, trained.inputs.records
    recursive = isinstance(trained, TrainedRecursion)
    stored = {
        "format": FORMAT,
        "config": flatten(config),
        "code": code_version(*CODE),
        "data_sha256": fold.meta.get("data", ""),
        "stage": fold.meta.get("stage", ""),
        "names": fold.names | {"class": list(class_names)},
        "regulator_class": torch.tensor(fold.regulator_class),
        "vocabulary": dataclasses.asdict(model.vocabulary),
        "routes": [dataclasses.asdict(route) for route in model.routes],
        "weights": model.state_dict(),
        "memories": [_filled(memory) for memory in trained.memories],
        "scale": trained.inputs.scale,
        "records": {
            **{name: torch.tensor(getattr(fold, name)) for name in ("regulator", "dose", "state", "cross_fit")},
            "base": records.base,
            "train": torch.tensor(np.isin(np.arange(len(records)), fold.train)),
        },
        "cascade": {name: torch.tensor(getattr(fold, name)) for name in CASCADE if getattr(fold, name) is not None},
        "before": {} if folder is None else _before(fold, folder, config.grn.folds),
        "recursion": recursion_weights(trained.cascade) if recursive else {},
        "curves": trained.curves,
        "diagnostics": trained.diagnostics,
    }
    with atomic(path) as partial:
        torch.save(_on_cpu(stored), partial)


def load(path: Path) -> Checkpoint:
    """Read what `save` wrote; InputError if the file is not there, damaged, or no such checkpoint."""
    if not path.is_file():
        raise InputError(path, "checkpoint", path.name, "is not there: mantra train writes it")
    try:
        stored = read_tensors(path)
        if (found := stored.pop("format", None)) != FORMAT:
            raise InputError(path, "format", found, f"this version reads format {FORMAT}: train it again")
        config = unflatten(ExperimentConfig, stored.pop("config"))
        vocabulary = Vocabulary(**stored.pop("vocabulary"))
        routes = tuple(Route(**route) for route in stored.pop("routes"))
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn, only to be replaced
            model = Nexus(vocabulary, config.nexus, routes, stored["records"]["base"].shape[1]).eval()
        model.load_state_dict(stored.pop("weights"))
        pairs = zip(model.empty_memory(), stored.pop("memories"), strict=True)
        memories = tuple(_fill(memory, **filled) for memory, filled in pairs)
        checkpoint = Checkpoint(path=path, config=config, model=model, memories=memories, **stored)
        checkpoint.check_parts()
        return checkpoint
    except InputError:
        raise
    except Exception as error:  # whatever the unpickler or torch makes of what is not ours
        raise InputError(path, "checkpoint", type(error).__name__, f"cannot be read: {error}") from error


def load_folder(folder: Path) -> Checkpoint:
    """The checkpoint of a folder that `mantra train` wrote; InputError also if another vocabulary lies beside it."""
    checkpoint, path = load(folder / NAME), folder / VOCABULARY
    if path.exists():
        try:
            beside = Vocabulary.load(path)
        except (OSError, ValueError) as error:
            raise InputError(path, "vocabulary", type(error).__name__, f"cannot be read: {error}") from error
        if beside != checkpoint.model.vocabulary:
            raise InputError(path, "vocabulary", beside.size, f"is not that of {NAME} ({checkpoint.model.vocabulary})")
    return checkpoint


def _before(fold: Fold, folder: Path, folds: int) -> dict[str, Any]:
    """What lies before the memory, to predict records that the fold does not hold.

    The fold's networks with the manifold's graph, and the energy's arrays where predictions descend it; without
    expression the mean of the cross-fitted ridges (a committee of linear models is one). `calibration` scales either.
    """
    before: dict[str, Any] = {"calibration": float(fold.meta["calibration"])}
    if fold.delta_expression is not None:
        before |= read_tensors(networks_file(folder, fold.meta))
        descent = fold.descent or {}
        return before | {"descent": {name: torch.tensor(array) for name, array in descent.items()}}
    regulators, states = len(fold.names["regulator"]), len(fold.names["state"])
    features = design(fold.regulator, fold.dose, fold.state, regulators, states)
    models = ridge_models(features, fold.delta_program, fold.cross_fit, folds)
    weights = {"coefficients": [model.coef_ for model in models], "intercept": [model.intercept_ for model in models]}
    return before | {name: torch.tensor(np.mean(parts, 0, np.float64)) for name, parts in weights.items()}


def _filled(memory: Memory) -> dict[str, Tensor]:
    """A memory without its empty slots: bucket and slot [n, 2] of the filled ones, and what they hold."""
    at = (memory.record != EMPTY).nonzero()
    held = {name: getattr(memory, name)[at[:, 0], at[:, 1]] for name in PER_SLOT}
    return {"at": at, **held, **{name: getattr(memory, name) for name in STATISTICS}}


def _fill(memory: Memory, at: Tensor, **held: Tensor) -> Memory:
    """An empty memory with what `_filled` kept."""
    for name in PER_SLOT:
        getattr(memory, name)[at[:, 0], at[:, 1]] = held[name]
    return dataclasses.replace(memory, **{name: held[name] for name in STATISTICS})


def _on_cpu(value: Any) -> Any:
    """Nested dicts and lists with their tensors detached and on the CPU."""
    if torch.is_tensor(value):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {name: _on_cpu(one) for name, one in value.items()}
    return [_on_cpu(one) for one in value] if isinstance(value, list) else value
