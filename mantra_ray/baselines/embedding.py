"""Embeddings of regulators for ridge regression: their genes' principal components, and a random control."""

from __future__ import annotations

import numpy as np
from sklearn.utils.extmath import randomized_svd

from mantra_ray.forward import Fold


def gene_embedding(fold: Fold, size: int, seed: int) -> np.ndarray:
    """Principal components of each regulator's own gene over training records, [R, size]; 0 where not measured.

    An embedding by which an unseen regulator resembles seen ones (Ahlmann-Eltze, Huber and Anders 2025). Scaled to
    a mean square norm of 1 over the regulators that have one.
    """
    observed = fold.delta_expression[fold.train]
    centred = observed - observed.mean(0)
    components = min(size, min(centred.shape) - 1)
    _, scale, genes = randomized_svd(centred, components, random_state=seed)
    column = {name: i for i, name in enumerate(fold.names["gene"])}
    regulators = fold.names["regulator"]
    embedding = np.zeros((len(regulators), components))
    measured = [i for i, name in enumerate(regulators) if name in column]
    embedding[measured] = (genes.T * scale)[[column[regulators[i]] for i in measured]]
    return _scaled(embedding)


def random_embedding(like: np.ndarray, seed: int) -> np.ndarray:
    """Normal deviates for the regulators that have an embedding [R, size]: what any code of that size achieves."""
    deviates = np.random.default_rng(seed).normal(size=like.shape)
    return _scaled(deviates * like.any(1, keepdims=True))


def _scaled(embedding: np.ndarray) -> np.ndarray:
    square = np.square(embedding).sum() / max(embedding.any(1).sum(), 1)
    return embedding / np.sqrt(square) if square > 0 else embedding
