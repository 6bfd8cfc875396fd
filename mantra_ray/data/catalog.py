"""Data sets by name (`sim`, `morphic`) or by file, loaded as a `Screen`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from mantra_ray.config import DataConfig, SplitConfig, SplitKind
from mantra_ray.data.graph import read_graph
from mantra_ray.data.morphic import read_contrasts
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.screen import Screen, TraitTable, read_classes, read_loadings, read_trait
from mantra_ray.data.simulate import simulate
from mantra_ray.data.splits import make_split
from mantra_ray.data.storage import read_records
from mantra_ray.data.tables import some
from mantra_ray.errors import InputError

FOLDER_VARIABLE = "MANTRA_DATA_DIR"
READER_VERSION = 1  # raise it when the same files come to mean other numbers: it is part of a screen's hash


@dataclass(frozen=True)
class CataloguedFile:
    """A public file, named by its content."""

    name: str
    sha256: str
    source: str
    licence: str
    citation: str


BURDEN = "https://github.com/emdann/GWT_perturbseq_analysis_2025 at 95fe7237"
CATALOG: dict[str, tuple[CataloguedFile, ...]] = {
    "sim": (),
    "morphic": (
        CataloguedFile(
            "morphic_ko.npz",
            "51d64e00e579257699fab051a46519ef82cd74f300b6dc433703b8e11cd7f77c",
            "https://github.com/morphic-bio/MorPhiC_bulk_RNAseq at 6918e161, results/*/raw/*_DEseq2_raw.tsv stacked, "
            "a row a contrast, genes that all contrasts share",
            "MIT",
            "MorPhiC consortium, Molecular Phenotypes of Null Alleles in Cells",
        ),
        CataloguedFile(
            "dorothea_hs.csv.gz",
            "bc867a091e7a9de958130aae798df53a469b850346c52b65e54f62fa7cdf99fd",
            "https://github.com/saezlab/dorothea at 1461fb75, human regulons as tf,confidence,target,mor",
            "GPL-3",
            "Garcia-Alonso et al. 2019, Genome Research 29:1363",
        ),
        CataloguedFile(
            "Lambert_2018_HumanTF.csv",
            "1c10e5b841b02901fdf0a64116a6a75b383aa1a706bae4181ab269fa94ccc799",
            BURDEN,
            "MIT",
            "Lambert et al. 2018, Cell 172:650",
        ),
        CataloguedFile(
            "MCH_lof_burden.csv",
            "5baaaa7525330c4f725fc71329b1c95f4abd3b22f8449ef900c2897a01eb193c",
            BURDEN + ", Backman_2021_86_fullFeatures.per_gene_estimates.tsv with se = (upper - lower) / 3.92",
            "MIT",
            "Backman et al. 2021, Nature 599:628; Zeng et al. 2024 (GeneBayes), Nature Genetics 56:1632",
        ),
        CataloguedFile(
            "lymphocyte_lof_burden.csv",
            "e5170758f9be2cbc3e6c47c9102d28b503c8144a353103031f18d7ed033b3609",
            BURDEN + ", Backman_LymphocyteCount_*.per_gene_estimates.tsv with se = (upper - lower) / 3.92",
            "MIT",
            "Backman et al. 2021, Nature 599:628; Zeng et al. 2024 (GeneBayes), Nature Genetics 56:1632",
        ),
    ),
}


def load_screen(config: DataConfig) -> Screen:
    """Load `config.data`: a catalogued name, or an .npz or .parquet file of records.

    The options graph, loadings, traits and classes add to it, or replace what a catalogued set brings. Nothing is
    selected, clipped or fitted here: that belongs to the training fold. Raises InputError on anything unusable.
    """
    if config.data == "sim":
        screen, _ = simulate(config.simulation)
    elif config.data == "morphic":
        screen = _morphic(config)
    elif Path(config.data).suffix:
        screen = _bare(Path(config.data).stem, read_records(config.data), hash_file(config.data))
    else:
        problem = f"is neither a file (.npz, .parquet) nor one of {', '.join(CATALOG)}"
        raise InputError("--data", "data", config.data, problem)
    screen = _add_options(screen, config)
    return screen if screen.splits else _possible_splits(screen)


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hex digits; InputError if it cannot be read."""
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(path, "file", type(error).__name__, f"cannot be read: {error.strerror}") from error


def catalogued_file(entry: CataloguedFile, folder: str) -> Path:
    """Path of a catalogued file in `folder` (default: from the environment), its content checked, or InputError."""
    folder = folder or os.environ.get(FOLDER_VARIABLE, "")
    advice = f"get it from {entry.source} ({entry.licence}; sha256 {entry.sha256})"
    if not folder:
        problem = f"name the folder that holds {entry.name} by --data-dir or {FOLDER_VARIABLE}; {advice}"
        raise InputError(entry.name, "data_dir", folder, problem)
    path = Path(folder).expanduser() / entry.name
    if not path.is_file():
        raise InputError(path, "file", str(path), f"there is no such file; {advice} and put it in {path.parent}")
    found = hash_file(path)
    if found != entry.sha256:
        raise InputError(path, "sha256", found, f"is not the catalogued file; {advice} and put it in {path.parent}")
    return path


def _morphic(config: DataConfig) -> Screen:
    paths = {entry.name: catalogued_file(entry, config.data_dir) for entry in CATALOG["morphic"]}
    data, ensembl, notes = read_contrasts(paths["morphic_ko.npz"])
    traits = {}
    for name in ("MCH", "lymphocyte"):  # the tables give the effect of losing a gene, hence the flip
        traits[name], more = read_trait(paths[f"{name}_lof_burden.csv"], ensembl, flip=True)
        notes += more
    classes, class_names, more = read_classes(paths["Lambert_2018_HumanTF.csv"], data.regulator_names)
    return dataclasses.replace(
        _bare("morphic", data, _combine({entry.name: entry.sha256 for entry in CATALOG["morphic"]})),
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
        hashes["loadings"], notes = hash_file(config.loadings), notes + more
    elif screen.loadings is None and data.delta_expression is not None:
        notes.append("no loadings given: programs are fitted on the training fold")
    if config.traits:
        traits, more = _read_traits(config.traits, data.gene_names)
        hashes |= {f"trait {name}": hash_file(path) for name, path in _trait_files(config.traits).items()}
        changes.update(traits=traits, data=_name_traits(data, tuple(traits)))
        notes += more
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


def _trait_files(options: tuple[str, ...]) -> dict[str, str]:
    files: dict[str, str] = {}
    for option in options:
        name, _, path = option.partition("=")
        if not name or not path:
            raise InputError("--traits", "traits", option, "NAME=FILE is wanted")
        if name in files:
            raise InputError("--traits", "traits", option, "the trait is named twice")
        files[name] = path
    return files


def _read_traits(options: tuple[str, ...], gene_names: tuple[str, ...]) -> tuple[dict[str, TraitTable], list[str]]:
    traits, notes = {}, []
    for name, path in _trait_files(options).items():
        traits[name], more = read_trait(path, gene_names)
        notes += more
    return traits, notes


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


def _possible_splits(screen: Screen) -> Screen:
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
