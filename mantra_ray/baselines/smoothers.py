"""Predictors that are weighted sums of training rows, without the weights: time and memory grow as rows x columns.

Each returns a function from values of the m training rows [m, K] (programs, or genes) to predictions of the n
queries [n, K], so that the same weights serve both. A query uses no row of its own group, which is how groups are
left out when settings are chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sparse

from mantra_ray.baselines.headers import Headers, Members, codes, pairs

Smoother = Callable[[np.ndarray], np.ndarray]
# Distance of another regulator, of another state and of another strategy; doses add their difference.
OTHER_REGULATOR, OTHER_STATE, OTHER_STRATEGY = 10.0, 1.0, 0.5
TIE = 1e-6  # doses that agree up to rounding are ties
BLOCK = 2**22  # entries of the largest temporary table


def zero(query: Headers, memory: Headers) -> Smoother:
    """No change."""
    return lambda values: np.zeros((len(query.regulator), values.shape[1]))


def mean(query: Headers, memory: Headers) -> Smoother:
    """Mean of the training rows."""
    return _shrunk(Members(query, memory), 0.0)


def state_mean(query: Headers, memory: Headers) -> Smoother:
    """Mean of the rows of the same state; of all rows where the state has none."""
    same, every = Members(query, memory, "state"), Members(query, memory)
    return lambda values: np.where(same.count > 0, _shrunk(same, 0.0)(values), _shrunk(every, 0.0)(values))


def state_mean_shrunk(query: Headers, memory: Headers, pseudo_count: float = 4.0) -> Smoother:
    """Mean of the same state over other regulators, shrunk to zero."""
    same, own = Members(query, memory, "state"), Members(query, memory, "regulator", "state")
    count = same.count - own.count
    return lambda values: np.where(count > 0, (same.sum(values) - own.sum(values)) / (count + pseudo_count), 0.0)


def lookup(query: Headers, memory: Headers, pseudo_count: float) -> Smoother:
    """Mean of the regulator's rows, shrunk to zero; exactly zero for a regulator without rows."""
    return _shrunk(Members(query, memory, "regulator"), pseudo_count)


def context_mean(query: Headers, memory: Headers, pseudo_count: float) -> tuple[Smoother, np.ndarray]:
    """Mean of the regulator's rows in this state, shrunk to zero, and the share that shrinking leaves [n, 1]."""
    context = Members(query, memory, "regulator", "state")
    return _shrunk(context, pseudo_count), pseudo_count / (context.count + pseudo_count)


def lookup_context(query: Headers, memory: Headers, pseudo_count: float, context_count: float) -> Smoother:
    """Mean of the regulator's rows in this state, shrunk by `context_count` rows to the shrunk regulator mean."""
    (context, left), regulator = context_mean(query, memory, context_count), lookup(query, memory, pseudo_count)
    return lambda values: context(values) + left * regulator(values)


def _shrunk(members: Members, pseudo_count: float) -> Smoother:
    """Mean over members, shrunk to zero by `pseudo_count` rows; 0 where there are none."""
    return lambda values: members.sum(values) / np.maximum(members.count + pseudo_count, TIE)


def neighbours(query: Headers, memory: Headers, k: int) -> Smoother:
    """Mean of the k nearest rows, ties included, in (regulator, state, strategy, dose) space.

    Another state costs 1, another strategy 0.5 and doses their difference; another regulator costs 10, so that
    rows of the same regulator always come first. Rows of other regulators that share state, strategy and dose lie
    equally far and are counted together, by condition, so that no distance is taken twice.
    """
    n, m = len(query.regulator), len(memory.regulator)
    i, j = pairs(query, memory)
    usable = memory.group[j] != query.group[i]
    distance = _distance(query, memory, i, j).astype(np.float32)
    own = np.bincount(i[usable], minlength=n)
    radius = _kth_smallest(i[usable], distance[usable], own, k)
    weights = (usable & (distance <= radius[i] + TIE)).astype(float)

    _, first, condition = np.unique(codes(query, memory, "state", "strategy", "dose")[1], True, True)
    members = sparse.csr_array((np.ones(m), (condition, np.arange(m))), shape=(len(first), m))
    total, hungry, found = members.sum(1), np.flatnonzero(own < k), [np.zeros((2, 0), np.int64)]
    step = max(BLOCK // max(len(first), 1), 1)
    for rows in (hungry[at : at + step] for at in range(0, len(hungry), step)):
        mine = np.flatnonzero(np.isin(i, rows))
        place = np.searchsorted(rows, i[mine]), condition[j[mine]]
        held = np.bincount(place[0] * len(first) + place[1], minlength=len(rows) * len(first))
        others = total - held.reshape(len(rows), -1)
        far = (_distance(query, memory, rows[:, None], first[None, :]) + OTHER_REGULATOR).astype(np.float32)
        within = (far <= _weighted_radius(far, others, k - own[rows])[:, None] + TIE) & (others > 0)
        weights[mine] -= within[place]  # a condition's sum holds the query's own regulator too
        row, column = np.nonzero(within)
        found.append(np.stack([rows[row], column]))
    place = np.concatenate(found, axis=1)
    others = sparse.csr_array((np.ones(place.shape[1]), tuple(place)), shape=(n, len(first)))
    own_rows = sparse.csr_array((weights, (i, j)), shape=(n, m))
    count = np.maximum(others @ total + own_rows.sum(1), TIE)[:, None]
    return lambda values: (own_rows @ values + others @ (members @ values)) / count


def _distance(query: Headers, memory: Headers, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Distance of queries i and rows j but for their regulators."""
    state = OTHER_STATE * (query.state[i] != memory.state[j])
    strategy = OTHER_STRATEGY * (query.strategy[i] != memory.strategy[j])
    return state + strategy + np.abs(query.dose[i] - memory.dose[j])


def _kth_smallest(i: np.ndarray, distance: np.ndarray, count: np.ndarray, k: int) -> np.ndarray:
    """The k-th smallest distance of each query's pairs [n]; infinite where it has fewer."""
    order = np.lexsort((distance, i))
    radius = np.full(len(count), np.inf, np.float32)
    enough = count >= k
    radius[enough] = distance[order][(np.cumsum(count) - count + k - 1)[enough]]
    return radius


def _weighted_radius(distance: np.ndarray, count: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Least distance [n, D] within which `count` [n, D] sums to `needed` [n], above 0; infinite where it never does."""
    order = np.argsort(distance, axis=1)
    reached = np.cumsum(np.take_along_axis(count, order, 1), axis=1) >= needed[:, None]
    last = np.take_along_axis(distance, np.take_along_axis(order, reached.argmax(1)[:, None], 1), 1)[:, 0]
    return np.where(reached[:, -1], last, np.inf)
