"""How much predicted states look like observed ones, before and after the manifold."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 10
MOST = 1000  # records that are looked at: neighbours among more would cost more than they tell


def neighbour_overlap(predicted: np.ndarray, observed: np.ndarray, state: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of the k nearest neighbours of a predicted change that are observed changes.

    predicted, observed [n, G] are of the same records, in states [n]; neighbours (Euclidean) are sought among the
    predicted and observed records of the record's own state, itself left out. About 0.5, `overlap_by_chance`, where
    nothing tells predictions from observations, and 0 where predictions keep to themselves. 0 for no records.
    """
    hits = total = 0
    for one in np.unique(state):
        rows = state == one
        both, count = np.concatenate([predicted[rows], observed[rows]]), int(rows.sum())
        wanted = min(k, 2 * count - 1)
        found = NearestNeighbors(n_neighbors=wanted).fit(both)
        place = found.kneighbors(n_neighbors=wanted + 1, X=both[:count], return_distance=False)
        # Left out by its number: a copy of a record, at the same distance 0, is a neighbour like any other.
        itself = place == np.arange(count)[:, None]
        itself[~itself.any(1), -1] = True
        hits += int((place[~itself] >= count).sum())
        total += count * wanted
    return hits / total if total else 0.0


def overlap_by_chance(state: np.ndarray) -> float:
    """`neighbour_overlap` of predictions that are drawn like the observations, [n] states; 0 for no records."""
    counts = np.unique(state, return_counts=True)[1]
    return float((counts * counts / (2 * counts - 1)).sum() / max(counts.sum(), 1))


def displacement(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Mean norm that the manifold moves predictions [n, G], and its share of the mean norm before; 0 for no records."""
    if not len(before):
        return 0.0, 0.0
    moved = float(np.linalg.norm(after - before, axis=1).mean(dtype=np.float64))
    size = float(np.linalg.norm(before, axis=1).mean(dtype=np.float64))
    return moved, moved / size if size > 0 else 0.0


def judged_rows(rows: np.ndarray) -> np.ndarray:
    """At most `MOST` of the rows, evenly spread."""
    return rows if len(rows) <= MOST else rows[np.linspace(0, len(rows) - 1, MOST).astype(np.int64)]


def realism(before: np.ndarray, after: np.ndarray, observed: np.ndarray, state: np.ndarray) -> dict[str, float]:
    """Numbers for the tables: changes [n, G] predicted before and after the manifold, and observed, in states [n]."""
    moved, share = displacement(before, after)
    return {
        "neighbour_overlap_before": neighbour_overlap(before, observed, state),
        "neighbour_overlap_after": neighbour_overlap(after, observed, state),
        "neighbour_overlap_chance": overlap_by_chance(state),
        "displacement": moved,
        "displacement_share": share,
    }
