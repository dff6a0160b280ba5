"""Soft maps and masks → pixels found at each threshold, and from their sums F-measures.

Shapes: H×W a picture, T thresholds; `...` stands for any leading axes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eval.datasets.split import IGNORE

BETA_SQUARED = 0.3  # of saliency: precision counts more than recall (Achanta et al. 2009)
THRESHOLDS = np.arange(1, 20) / 20


def saliency_counts(scores: Tensor, truth: Tensor, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """One picture's pixels (rightly found, found, salient) at each threshold, T×3.

    Args:
        scores: H×W in [0, 1]; found is what reaches the threshold.
        truth: H×W, 0, 1, and `IGNORE`, which counts for nothing.
    """
    counted = truth != IGNORE
    salient, scores = truth[counted] == 1, scores[counted]
    found = scores >= torch.as_tensor(thresholds, dtype=scores.dtype, device=scores.device)[:, None]
    columns = (found & salient).sum(dim=1), found.sum(dim=1), salient.sum().expand(len(thresholds))
    return torch.stack(columns, dim=1).cpu().numpy().astype(np.float64)


def f_measures(sums: np.ndarray, beta_squared: float = 1.0) -> np.ndarray:
    """Sums (rightly found, found, true) ...×T×3 → F in % at each threshold, ...×T; 0 where nothing was rightly found.

    F = (1 + β²) P R / (β² P + R) of precision P and recall R.
    """
    right, found, true = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    weights = beta_squared * true + found
    return 100 * (1 + beta_squared) * np.divide(right, weights, out=np.zeros_like(right), where=weights > 0)
