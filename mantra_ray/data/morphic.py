"""The MorPhiC knock-out contrasts, turned into records."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mantra_ray.data.records import PerturbationData
from mantra_ray.errors import InputError

REPAIRED = "reverted"  # strategy of repaired lines: controls, not perturbations
SE_FLOOR = 0.01  # log2 units; the smallest standard error in the file is 0.026


def read_contrasts(path: Path) -> tuple[PerturbationData, tuple[str, ...], list[str]]:
    """Read `morphic_ko.npz`: records, the Ensembl id of each gene, and notes.

    Dose is not recorded: where the regulator itself is measured it is 1 - 2 ** log2fc of its own gene, clipped to
    [0, 1], elsewhere the median of its strategy. A state is system/day/oxygen; contrasts of one data set and state
    share wild-type samples and so a group. Raises InputError if the file is not of that form.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            columns = {name: stored[name] for name in stored.files}
        kept = columns["strategy"] != REPAIRED
        change, se = (columns[name][kept].astype(np.float32) for name in ("log2fc", "lfcse"))
        label = {k: columns[k][kept] for k in ("regulator", "strategy", "system", "day", "oxygen", "dataset")}
        symbols, ensembl = columns["symbol"].tolist(), tuple(columns["ensg"].tolist())
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(path, "file", type(error).__name__, f"cannot be read: {error}") from error
    genes = unique_names(symbols, ensembl)
    context = ["/".join(parts) for parts in zip(label["system"], label["day"], label["oxygen"], strict=True)]
    regulators, regulator = np.unique(label["regulator"], return_inverse=True)
    states, state = np.unique(context, return_inverse=True)
    strategies, strategy = np.unique(label["strategy"], return_inverse=True)
    _, group = np.unique([f"{d}/{c}" for d, c in zip(label["dataset"], context, strict=True)], return_inverse=True)
    dose, measured = _doses(change, regulator, strategy, [symbols.index(r) if r in symbols else -1 for r in regulators])
    data = PerturbationData(
        regulator=regulator.astype(np.int64),
        dose=dose,
        state=state.astype(np.int64),
        delta_expression=change,
        delta_expression_se=np.maximum(np.nan_to_num(se, nan=np.nanmax(se)), SE_FLOOR),
        strategy=strategy.astype(np.int64),
        group=group.astype(np.int64),
        gene_names=genes,
        regulator_names=tuple(regulators.tolist()),
        state_names=tuple(states.tolist()),
        strategy_names=tuple(strategies.tolist()),
    ).validate(path)
    notes = [
        f"{int((~kept).sum())} contrasts of repaired lines ({REPAIRED}) are left out",
        f"dose is the loss of the regulator's own transcript in {measured.sum()} records, "
        f"elsewhere ({(~measured).sum()}) the median of the strategy",
    ]
    return data, ensembl, notes


def unique_names(symbols: list[str], ensembl: tuple[str, ...]) -> tuple[str, ...]:
    """Gene symbols, those that occur twice (or are empty) with the Ensembl id appended."""
    counts = {symbol: symbols.count(symbol) for symbol in set(symbols)} if len(set(symbols)) < len(symbols) else {}
    return tuple(
        f"{symbol}_{identifier}" if counts.get(symbol, 1) > 1 else symbol
        for symbol, identifier in zip(symbols, ensembl, strict=True)
    )


def _doses(
    change: np.ndarray, regulator: np.ndarray, strategy: np.ndarray, gene: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Dose [N] float32, and which records have it from their own gene; `gene` is each regulator's column or -1."""
    column = np.array(gene)[regulator]
    measured = column >= 0
    own = change[np.arange(len(change)), np.maximum(column, 0)]
    dose = np.clip(1 - np.exp2(own), 0, 1)
    overall = np.median(dose[measured]) if measured.any() else 1.0
    for s in np.unique(strategy):
        known = measured & (strategy == s)
        dose[~measured & (strategy == s)] = np.median(dose[known]) if known.any() else overall
    return dose.astype(np.float32), measured
