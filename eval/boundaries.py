"""Soft boundary maps and true boundaries → pixels matched at each threshold, from whose sums follows the ODS F-measure.

The measure of the BSDS benchmark (Martin, Fowlkes, Malik 2004; Arbeláez et al. 2011): at each threshold the map is
thinned, and its pixels are matched with true ones, one to one, where they lie no further apart than a tolerance. ODS is
the largest F with one threshold for the whole data set. The benchmark's matching is the cheapest of those that match
most pixels; how many are matched is all that F asks, so the largest matching alone is looked for here.

Shapes: H×W a picture, T thresholds.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import cKDTree

from eval.datasets.split import IGNORE


def even_thresholds(count: int) -> np.ndarray:
    """`count` of them between 0 and 1, exclusive, as the benchmark spreads its 99."""
    return np.arange(1, count + 1) / (count + 1)


def boundary_counts(
    scores: np.ndarray, truth: np.ndarray, thresholds: np.ndarray, tolerance: float = 0.0075
) -> np.ndarray:
    """One picture's boundary pixels (matched, found, true) at each threshold, T×3.

    The truth is thinned too: what is two pixels wide could never be found whole by what is one pixel wide.

    Args:
        scores: H×W in [0, 1]; boundary is what reaches the threshold.
        truth: H×W, 0, 1, and `IGNORE`: what is found there counts for nothing.
        tolerance: how far apart a pair may be, as a share of the picture's diagonal.
    """
    assert scores.shape == truth.shape, f"{scores.shape} against {truth.shape}"
    reach, counted = tolerance * float(np.hypot(*scores.shape)), truth != IGNORE
    true = _pixels(truth == 1, counted)
    tree = cKDTree(true)
    rows = []
    for threshold in thresholds:
        found = _pixels(scores >= threshold, counted)
        rows.append((matched(found, tree, reach), len(found), len(true)))
    return np.array(rows, dtype=np.float64)


def matched(found: np.ndarray, true: cKDTree, reach: float) -> int:
    """How many of the pixels `found` n×2 can have a true one of their own at most `reach` away."""
    if not len(found) or not true.n:
        return 0
    pairs = cKDTree(found).sparse_distance_matrix(true, reach, output_type="ndarray")
    source, first, second, sink = 0, 1, 1 + len(found), 1 + len(found) + true.n
    edges = (
        (np.full(len(found), source), first + np.arange(len(found))),
        (first + pairs["i"], second + pairs["j"]),
        (second + np.arange(true.n), np.full(true.n, sink)),
    )
    rows, columns = (np.concatenate(ends) for ends in zip(*edges))
    # The largest matching is the largest flow of ones. scipy's own matching takes minutes to hours at 425×560 pixels.
    ones = np.ones(len(rows), dtype=np.int32)
    return int(maximum_flow(csr_matrix((ones, (rows, columns)), shape=(sink + 1, sink + 1)), source, sink).flow_value)


def _pixels(mask: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """The thinned mask's pixels n×2 (row, column), without those that do not count.

    Zhang and Suen's thinning: the benchmark's (Guo and Hall) takes twelve times as long in scikit-image.
    """
    from skimage.morphology import skeletonize

    return np.argwhere(skeletonize(mask) & counted)
