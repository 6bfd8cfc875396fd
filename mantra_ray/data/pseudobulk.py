"""Pseudo-bulk screens as AnnData: a row is a perturbation, as in the processed files of Replogle et al. 2022.

Rows are named like 10023_ZZZ3_P1P2_ENSG00000036549: a number, the gene, the guide set and the gene's identifier.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mantra_ray.data.cohort import ONE_STATE, read_genes
from mantra_ray.data.h5ad import H5ad, opened
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.tables import some
from mantra_ray.errors import InputError

ROW = re.compile(r"^\d+_(?P<regulator>.+)_(?P<strategy>[^_]+)_(?P<identifier>[^_]+)$")
CELLS = "num_cells_filtered"  # annotation with the cells behind a row, where the file has it
BAD_GENES = 0.05  # share of genes that may have values which are not finite; the genome-wide file has 0.9 %
SE_FLOOR = 1e-3  # below any noise that such files have; a gene that is constant in the controls needs one


def import_pseudobulk(
    path: str | Path,
    control: str = "non-targeting",
    gene_column: str = "",
    suffix_duplicates: bool = True,
    matrix: str = "X",
    log: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> tuple[PerturbationData, list[str]]:
    """Records of a pseudo-bulk file, one a row, and notes: the difference to the mean of the control rows.

    Control rows have `control` in their name; guide sets become strategies, doses are 1. `log` takes log2(1 + x) first,
    for means of counts; otherwise changes keep the file's units. The spread of the control rows gives the standard
    errors: with n the cells of a row (1 where unknown), a gene's variance per cell is a = sum of n (x - mean)^2 /
    (controls - 1), and a record's se^2 is a / n + a / (cells of all controls). Raises InputError.
    """
    with opened(path, matrix) as file:
        names = file.obs_names()
        is_control = np.array([control in name for name in names])
        rows, controls = np.flatnonzero(~is_control), np.flatnonzero(is_control)
        if len(controls) < 2 or not len(rows):
            problem = f"names of two control rows at least, and of others, are wanted; rows are {some(names)}"
            raise InputError(path, "control", control, problem)
        parsed = [ROW.match(names[row]) for row in rows]
        for row, match in zip(rows, parsed, strict=True):
            if not match:
                raise InputError(path, "obs index", names[row], f"row {row} is not named NUMBER_GENE_GUIDES_IDENTIFIER")
        genes = read_genes(file, gene_column, suffix_duplicates)
        cells = _cells(file)
        x = np.empty(file.shape, np.float32)
        blocks = file.blocks()
        for done, (start, stop) in enumerate(blocks, 1):
            x[start:stop] = file.rows(start, stop).todense()
            if on_progress:
                on_progress(done, len(blocks), "rows")
    notes = []
    fine = np.isfinite(x).all(axis=0)
    if not fine.all():
        if (~fine).mean() > BAD_GENES:
            row, gene = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
            problem = f"row {row}, gene {gene}: is not finite, nor are values of {(~fine).mean():.0%} of the genes"
            raise InputError(path, matrix, x[row, gene].item(), problem)
        notes.append(f"{(~fine).sum():,} genes with values that are not finite are left out")
        x, genes = x[:, fine], [gene for gene, good in zip(genes, fine, strict=True) if good]
    if log:
        for row, gene in np.argwhere(x < 0)[:1]:
            raise InputError(path, matrix, x[row, gene].item(), f"row {row}, gene {gene}: is negative, log needs means")
        np.log2(1 + x, out=x)
    else:
        notes.append("changes are in the units of the file")
    weight = np.ones(len(names)) if cells is None else cells
    for row in np.flatnonzero(weight <= 0)[:1]:
        raise InputError(path, f"obs/{CELLS}", float(weight[row]), f"row {row} has no cells")
    if cells is None:
        notes.append(f"all rows count alike, the file has no {CELLS}")
    own, total = weight[controls, None], weight[controls].sum()
    mean = (own * x[controls]).sum(axis=0) / total
    variance = (own * (x[controls] - mean) ** 2).sum(axis=0) / (len(controls) - 1)
    scale = np.sqrt(1 / weight[rows] + 1 / total)
    notes.append(f"{len(controls):,} control rows")
    fields: dict[str, object] = {}
    for name in ("regulator", "strategy"):
        found, fields[name] = np.unique([match[name] for match in parsed], return_inverse=True)
        fields[name + "_names"] = tuple(found.tolist())
    data = PerturbationData(
        **fields,
        dose=np.ones(len(rows), np.float32),
        state_names=(ONE_STATE,),
        delta_expression=(x[rows] - mean.astype(np.float32)),
        delta_expression_se=np.maximum(np.outer(scale, np.sqrt(variance)), SE_FLOOR).astype(np.float32),
        n_cells=None if cells is None else cells[rows].astype(np.float32),
        group=np.zeros(len(rows), np.int64),
        gene_names=tuple(genes),
    )
    return data.validate(path), notes


def _cells(file: H5ad) -> np.ndarray | None:
    return file.numbers(CELLS) if CELLS in file.obs_columns else None
