"""Data sets by name (`sim`, `morphic`) or by file, loaded as a `Screen`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import get_args

import numpy as np

from mantra_ray.config import DataConfig, SplitConfig, SplitKind
from mantra_ray.data.fetch import catalogued_file, hash_file
from mantra_ray.data.graph import read_graph
from mantra_ray.data.loadings import loadings_file, read_loadings
from mantra_ray.data.morphic import read_contrasts
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.screen import Screen, read_classes
from mantra_ray.data.simulate import simulate
from mantra_ray.data.sources import CATALOG
from mantra_ray.data.splits import make_split
from mantra_ray.data.storage import read_records
from mantra_ray.data.tables import some
from mantra_ray.data.traits import TraitTable, read_trait, trait_files
from mantra_ray.errors import InputError

READER_VERSION = 1  # raise it when the same files come to mean other numbers: it is part of a screen's hash


def load_screen(config: DataConfig) -> Screen:
    """Load `config.data` as `read_screen` does, with the kinds of split that its records allow.

    Raises InputError on anything unusable, and if no split is possible.
    """
    screen = read_screen(config)
    return screen if screen.splits else possible_splits(screen)


def read_screen(config: DataConfig) -> Screen:
    """Read `config.data`: a catalogued name, or an .npz or .parquet file of records.

    The options graph, loadings, traits and classes add to it, or replace what a catalogued set brings. Nothing is
    selected, clipped or fitted here: that belongs to the training fold. Raises InputError on anything unusable.
    """
    if config.data == "sim":
        screen, _ = simulate(config.simulation)
    elif config.data == "morphic":
        screen = _morphic(config)
    elif Path(config.data).suffix:
        screen = _bare(Path(config.data).stem, read_records(config.data), hash_file(config.data))
    elif config.data in CATALOG:
        entry, recipe = CATALOG[config.data].files[0], CATALOG[config.data].recipe
        problem = f"its file {entry.name} holds no records yet: make them by `{recipe} --out records.parquet`"
        raise InputError("--data", "data", config.data, f"{problem} and give that file as --data")
    else:
        problem = f"is neither a file (.npz, .parquet) nor one of {', '.join(CATALOG)}"
        raise InputError("--data", "data", config.data, problem)
    return _add_options(screen, config)


def _morphic(config: DataConfig) -> Screen:
    paths = {entry.name: catalogued_file(entry, config.data_dir) for entry in CATALOG["morphic"].files}
    data, ensembl, notes = read_contrasts(paths["morphic_ko.npz"])
    traits = {}
    for name in ("MCH", "lymphocyte"):
        traits[name], more = read_trait(paths[f"{name}_lof_burden.csv"], ensembl, loss=True, settings=config.trait)
        notes += more
    classes, class_names, more = read_classes(paths["Lambert_2018_HumanTF.csv"], data.regulator_names)
    return dataclasses.replace(
        _bare("morphic", data, _combine({entry.name: entry.sha256 for entry in CATALOG["morphic"].files})),
        graph=read_graph(paths["dorothea_hs.csv.gz"]),
        traits=traits,
        regulator_class=classes,
        class_names=class_names,
        splits=("strategy", "context", "unseen"),
        notes=(*notes, *more),
    )


def _bare(name: str, data: PerturbationData, sha256: str) -> Screen:
    """Records alone."""
    unknown = np.full(len(data.regulator_names), -1)
    return Screen(name, data, None, None, data.program_names, {}, unknown, (), sha256, (), ())


def _combine(hashes: dict[str, str]) -> str:
    text = json.dumps([hashes, READER_VERSION], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _add_options(screen: Screen, config: DataConfig) -> Screen:
    """The screen with the files that the user named, and notes on what is absent."""
    data, changes = screen.data, {}
    hashes, notes = {"data": screen.sha256}, list(screen.notes)
    if data.delta_expression is None:
        given = [name for name in ("graph", "loadings", "traits") if getattr(config, name)]
        notes.append("no expression changes: there is no gene network, mean and ridge baselines take its place")
        notes += [f"{name} left out: it needs expression changes" for name in given]
        config = dataclasses.replace(config, graph="", loadings="", traits=())
    if config.graph:
        graph = changes["graph"] = read_graph(config.graph)
        hashes["graph"] = hash_file(config.graph)
        outside = sorted(set(data.gene_names) - set(graph.nodes))
        if len(outside) == len(data.gene_names):
            raise InputError(config.graph, "target", some(graph.nodes), f"no gene of the data: {some(data.gene_names)}")
        if outside:
            notes.append(f"{config.graph}: {len(outside)} genes have no edge: {some(outside)}")
    elif screen.graph is None and data.delta_expression is not None:
        notes.append("no graph given: one is made by co-expression on the training fold")
    if config.loadings:
        loadings, programs, more = read_loadings(config.loadings, data.gene_names)
        if data.delta_program is not None and data.delta_program.shape[1] != len(programs):
            problem = f"the data has changes of {data.delta_program.shape[1]} programs"
            raise InputError(config.loadings, "loadings", len(programs), problem)
        changes.update(loadings=loadings, program_names=programs)
        hashes["loadings"], notes = hash_file(loadings_file(config.loadings)), notes + more
    elif screen.loadings is None and data.delta_expression is not None:
        notes.append("no loadings given: programs are fitted on the training fold")
    if config.traits:
        traits, more_hashes, more = _read_traits(config, data.gene_names)
        changes.update(traits=traits, data=_name_traits(data, tuple(traits)))
        hashes, notes = hashes | more_hashes, notes + more
    elif not screen.traits:
        notes.append("no traits given: the trait part is left out")
    if config.classes:
        classes, class_names, more = read_classes(config.classes, data.regulator_names)
        changes.update(regulator_class=classes, class_names=class_names)
        hashes["classes"], notes = hash_file(config.classes), notes + more
    elif not screen.class_names:
        notes.append("no classes given: the class of every regulator is unknown")
    sha256 = screen.sha256 if len(hashes) == 1 else _combine(hashes)
    return dataclasses.replace(screen, **changes, sha256=sha256, notes=tuple(notes))


def _read_traits(config: DataConfig, gene_names: tuple[str, ...]) -> tuple[dict[str, TraitTable], dict, list[str]]:
    """Tables by trait, hashes of what they depend on, and notes."""
    traits, hashes, notes = {}, {}, []
    for name, (path, loss) in trait_files(config.traits).items():
        traits[name], more = read_trait(path, gene_names, loss, config.trait)
        hashes[f"trait {name}"] = hash_file(path) + (" of loss" if loss else "")
        notes += more
    return traits, hashes, notes


def _name_traits(data: PerturbationData, traits: tuple[str, ...]) -> PerturbationData:
    """The data with its observed traits, if any, called as the tables; their number must agree."""
    if data.delta_trait is None:
        return data
    if len(traits) != len(data.trait_names):
        problem = f"the data has changes of {len(data.trait_names)} traits: {some(data.trait_names)}; name as many"
        raise InputError("--traits", "traits", ", ".join(traits), problem)
    if set(traits) == set(data.trait_names):
        order = [data.trait_names.index(name) for name in traits]
        return dataclasses.replace(data, delta_trait=data.delta_trait[:, order], trait_names=traits)
    if data.trait_names != tuple(f"trait{t}" for t in range(len(traits))):  # names that were given, and differ
        problem = f"the data calls its traits {some(data.trait_names)}"
        raise InputError("--traits", "traits", ", ".join(traits), problem)
    return dataclasses.replace(data, trait_names=traits)


def possible_splits(screen: Screen) -> Screen:
    """The screen with the kinds of split that its records allow, and notes on the others."""
    kinds, notes = {}, []  # kinds by what they hold out
    for kind in get_args(SplitKind):
        try:
            held_out = make_split(screen.data, SplitConfig(kind=kind), seed=0).test.tobytes()
        except InputError as error:
            notes.append(f"split {kind!r} is left out: it {error.problem}")
            continue
        if kinds.setdefault(held_out, kind) != kind:  # as strategy with a single state
            notes.append(f"split {kind!r} is left out: for these records it is {kinds[held_out]!r}")
    if not kinds:
        raise InputError(screen.name, "records", len(screen.data), f"no split is possible: {'; '.join(notes)}")
    return dataclasses.replace(screen, splits=tuple(kinds.values()), notes=(*screen.notes, *notes))
