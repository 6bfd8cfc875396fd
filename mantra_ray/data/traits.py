"""Gene effects on traits: SMR tables and plain (b, se) tables, aligned to the data's genes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mantra_ray.config import TraitsConfig
from mantra_ray.data.tables import Table, read_table, some
from mantra_ray.errors import InputError

FORMS = (("b_smr", "se_smr"), ("b", "se"))  # columns of effect and standard error, any case
KEYS = ("symbol", "gene", "ensg", "probeid")  # columns that name the gene, any case
VERSIONED = re.compile(r"(ENS[A-Z]*\d+)\.\d+")


@dataclass(frozen=True, eq=False)
class TraitTable:
    """Effect of higher expression of each gene on one trait, [G] in the order of the data's genes."""

    b: np.ndarray  # float32, NaN where the gene is absent
    se: np.ndarray  # float32, NaN where the gene is absent


def trait_files(options: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Trait name -> (file, whether its effects are those of losing the gene) of options `NAME=FILE[:loss|:gain]`.

    Raises InputError on another form or a name that occurs twice.
    """
    files: dict[str, tuple[str, bool]] = {}
    for option in options:
        name, _, path = option.partition("=")
        loss = path.endswith(":loss")
        path = path.removesuffix(":loss").removesuffix(":gain")
        if not name or not path:
            raise InputError("--traits", "traits", option, "NAME=FILE is wanted, or NAME=FILE:loss")
        if name in files:
            raise InputError("--traits", "traits", option, "the trait is named twice")
        files[name] = path, loss
    return files


def read_trait(
    path: str | Path, gene_names: Sequence[str], loss: bool = False, settings: TraitsConfig | None = None
) -> tuple[TraitTable, list[str]]:
    """Read gene effects and align them to `gene_names`; returns the table and notes on what was kept.

    Columns, in any case: `b_SMR` and `se_SMR` (SMR, Zhu et al. 2016, Nature Genetics 48:481) or else `b` and `se`;
    `symbol` or `Gene`, `ensg` or `ProbeID` (the one that more genes of the data are found by; versions of Ensembl ids
    do not count); optionally `p_HEIDI` and `p_SMR`, which the settings' thresholds apply to. b is the effect of higher
    expression; with `loss` the file has that of losing the gene, and signs turn. A gene with several probes or ids
    takes the most precise of its usable rows; rows without b or se are left out.

    Raises InputError on missing columns, se <= 0, p outside [0, 1], a row that occurs twice, or no usable gene.
    """
    settings = settings or TraitsConfig()
    table = read_table(path)
    named = {name.lower(): name for name in table.columns}
    effect, error = (named.get(name, name) for name in next((f for f in FORMS if f[0] in named), FORMS[-1]))
    b, se = table.numbers(effect), table.numbers(error)
    for row in np.flatnonzero(se <= 0)[:1]:
        raise InputError(path, error, se[row].item(), f"row {row}: a standard error must be above 0")
    key, ids, wanted = _matching(table, named, gene_names)

    usable, notes = np.isfinite(b) & np.isfinite(se), []
    if not usable.all():
        notes.append(f"{path}: {(~usable).sum()} rows without {effect} or {error} are left out")
    for column, label, bound in (("p_heidi", "HEIDI", settings.heidi), ("p_smr", "SMR", settings.p_smr)):
        if column not in named:
            continue
        p = _probabilities(table, named[column])
        if label == "SMR" and bound == 1:
            continue
        # A gene with too few variants for HEIDI (NaN) stays; one without a p of SMR cannot pass a threshold on it.
        fails = p < bound if label == "HEIDI" else ~(p <= bound)
        sign = "<" if label == "HEIDI" else ">"
        notes.append(f"{path}: {(usable & fails).sum()} rows fail the {label} test (p {sign} {bound:g}), left out")
        usable &= ~fails

    rows = np.flatnonzero(usable & (ids != ""))
    rows = rows[np.argsort(se[rows], kind="stable")][::-1]  # the most precise last, so that it stays
    place = {ids[row]: row for row in rows}
    at = np.array([place.get(name, -1) for name in wanted], np.int64)
    absent = at < 0
    if absent.all():
        found = some(table.labels(key).tolist())
        raise InputError(path, key, found, f"no usable gene of the data: {some(gene_names)}")
    several = len(rows) - len(place)
    notes.append(
        f"{path}: {(~absent).sum()} of {len(at)} genes have an effect on the trait, found by {key} among {len(b)} rows"
        + (f" ({several} rows give way to a more precise one of their gene)" if several else "")
        + (f"; none for {some([g for g, a in zip(gene_names, absent, strict=True) if a])}" if absent.any() else "")
        + ("; signs turned, as the effects are those of losing the gene" if loss else "")
    )
    aligned = (np.where(absent, np.nan, values[at]).astype(np.float32) for values in (-b if loss else b, se))
    return TraitTable(*aligned), notes


def stable_id(name: str) -> str:
    """A gene's name, an Ensembl id without its version."""
    match = VERSIONED.fullmatch(name)
    return match[1] if match else name


def _matching(table: Table, named: dict[str, str], gene_names: Sequence[str]) -> tuple[str, np.ndarray, list[str]]:
    """The column by which most genes are found, its names [rows] and the genes' names; InputError on a double row."""
    keys = [named[key] for key in KEYS if key in named]
    if not keys:
        raise InputError(table.path, "symbol", ", ".join(table.columns), "a column symbol or ensg is wanted")
    wanted = [stable_id(name) for name in gene_names]
    columns = {key: np.array([stable_id(name) for name in table.labels(key)], object) for key in keys}
    seen: set[tuple[str, ...]] = set()
    for row, identity in enumerate(zip(*columns.values(), strict=True)):
        if identity in seen and any(identity):
            problem = f"row {row}: the gene occurs twice, with no other id to tell its rows apart"
            raise InputError(table.path, keys[0], " ".join(identity).strip(), problem)
        seen.add(identity)
    known = set(wanted) - {""}
    key = max(keys, key=lambda name: len(known & set(columns[name])))
    return key, columns[key], wanted


def _probabilities(table: Table, column: str) -> np.ndarray:
    p = table.numbers(column)
    for row in np.flatnonzero((p < 0) | (p > 1))[:1]:
        raise InputError(table.path, column, p[row].item(), f"row {row}: a probability lies in [0, 1]")
    return p
