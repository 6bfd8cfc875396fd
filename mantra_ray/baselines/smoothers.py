"""Predictors that are weighted sums of training rows: each returns the weights A [n, m] of m rows for n queries.

`allowed` [n, m] says which rows a query may use; leave-one-out is a mask. The same weights serve programs
and expression.
"""

from __future__ import annotations

import numpy as np

from mantra_ray.baselines.headers import Headers, equal


def shrunk_mean(members: np.ndarray, pseudo_count: float = 0.0) -> np.ndarray:
    """Weights of the mean over `members` [n, m], shrunk to zero by `pseudo_count` records; 0 where there are none."""
    count = members.sum(1, keepdims=True) + pseudo_count
    return (members / np.where(count > 0, count, 1.0)).astype(np.float32)


def state_mean(query: Headers, memory: Headers, allowed: np.ndarray) -> np.ndarray:
    """Mean of the allowed rows of the same state; of all allowed rows where the state has none."""
    same = equal(query.state, memory.state) & allowed
    return shrunk_mean(np.where(same.any(1, keepdims=True), same, allowed))


def state_mean_shrunk(query: Headers, memory: Headers, allowed: np.ndarray, pseudo_count: float = 4.0) -> np.ndarray:
    """Mean of the same state over other regulators, shrunk to zero."""
    others = equal(query.state, memory.state) & ~equal(query.regulator, memory.regulator) & allowed
    return shrunk_mean(others, pseudo_count)


def lookup(query: Headers, memory: Headers, allowed: np.ndarray, pseudo_count: float) -> np.ndarray:
    """Mean of the regulator's rows, shrunk to zero; exactly zero for a regulator without rows."""
    return shrunk_mean(equal(query.regulator, memory.regulator) & allowed, pseudo_count)


def context_mean(
    query: Headers, memory: Headers, allowed: np.ndarray, pseudo_count: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the regulator's rows in this state, shrunk to zero, and the share that shrinking leaves [n, 1]."""
    context = equal(query.regulator, memory.regulator) & equal(query.state, memory.state) & allowed
    left = pseudo_count / (context.sum(1, keepdims=True) + pseudo_count)
    return shrunk_mean(context, pseudo_count), left.astype(np.float32)


def lookup_context(
    query: Headers, memory: Headers, allowed: np.ndarray, pseudo_count: float, context_count: float
) -> np.ndarray:
    """Mean of the regulator's rows in this state, shrunk by `context_count` rows to the shrunk regulator mean."""
    context, left = context_mean(query, memory, allowed, context_count)
    return context + left * lookup(query, memory, allowed, pseudo_count)


def header_distance(query: Headers, memory: Headers) -> np.ndarray:
    """Distance in (regulator, dose, state) space, [n, m].

    Another state costs 1, another strategy 0.5 and doses their difference; another regulator costs 10, so that
    rows of the same regulator always come first.
    """
    distance = 10.0 * ~equal(query.regulator, memory.regulator) + 1.0 * ~equal(query.state, memory.state)
    distance += 0.5 * ~equal(query.strategy, memory.strategy)
    return (distance + np.abs(query.dose[:, None] - memory.dose[None, :])).astype(np.float32)


def neighbours(distance: np.ndarray, allowed: np.ndarray, k: int) -> np.ndarray:
    """Mean of the k nearest allowed rows by `distance` [n, m], ties included."""
    distance = np.where(allowed, distance, np.inf)
    k = min(k, distance.shape[1])
    radius = np.partition(distance, k - 1, axis=1)[:, k - 1 : k]
    # Doses that agree up to rounding are ties.
    return shrunk_mean((distance <= radius + 1e-6) & allowed)
