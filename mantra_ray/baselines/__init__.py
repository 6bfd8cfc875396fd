"""Simple predictors that a memory has to beat; each learns from the training rows alone."""

from mantra_ray.baselines.arms import baseline_predictions

__all__ = ["baseline_predictions"]
