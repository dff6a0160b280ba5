"""Boundary scores against an exhaustive matching, a library's, and cases that can be counted by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.spatial import cKDTree

from eval.boundaries import boundary_counts, even_thresholds, matched
from eval.datasets.split import IGNORE
from eval.saliency import f_measures
from teachers.seeding import numpy_rng


def most_pairs(found: np.ndarray, true: np.ndarray, reach: float) -> int:
    """The size of the largest matching, by trying everything."""
    near = [tuple(np.flatnonzero(np.hypot(*(true - pixel).T) <= reach)) for pixel in found]

    @cache
    def most(index: int, taken: frozenset) -> int:
        if index == len(found):
            return 0
        alone = most(index + 1, taken)
        return max([alone, *(1 + most(index + 1, taken | {j}) for j in near[index] if j not in taken)])

    return most(0, frozenset())


@pytest.mark.parametrize("reach", [1.0, 1.5, 2.3])
def test_matching_agrees_with_trying_everything(reach):
    rng = numpy_rng("matching", str(reach))
    for _ in range(25):
        found, true = (np.argwhere(rng.random((4, 6)) < share) for share in (0.35, 0.3))
        if len(true):
            assert matched(found, cKDTree(true), reach) == most_pairs(found, true, reach)


def test_matching_agrees_with_a_library():
    networkx = pytest.importorskip("networkx")
    rng = numpy_rng("larger matching")
    found, true = (np.argwhere(rng.random((24, 30)) < share) for share in (0.2, 0.12))
    graph = networkx.Graph()
    first, second = ([(side, i) for i in range(len(pixels))] for side, pixels in (("f", found), ("t", true)))
    graph.add_nodes_from(first + second)
    for i, pixel in enumerate(found):
        graph.add_edges_from((("f", i), ("t", j)) for j in np.flatnonzero(np.hypot(*(true - pixel).T) <= 2.3))
    pairs = networkx.bipartite.hopcroft_karp_matching(graph, first)
    greedy = len({tuple(true[np.hypot(*(true - pixel).T).argmin()]) for pixel in found})
    assert matched(found, cKDTree(true), 2.3) == len(pairs) // 2 and greedy != len(pairs) // 2


def test_matching_ends_soon_on_pictures_of_nyudv2s_size():
    """Thousands of pixels with ten partners each: scipy's own matching had not ended after minutes."""
    from time import process_time

    from scipy.ndimage import gaussian_filter

    rng = numpy_rng("a large picture")
    regions = (gaussian_filter(rng.normal(size=(425, 560)), 9) > 0).astype(int)
    truth = np.zeros_like(regions)
    truth[:, :-1] |= regions[:, 1:] != regions[:, :-1]
    truth[:-1] |= regions[1:] != regions[:-1]
    shifted = np.roll(truth, (2, 3), axis=(0, 1)).astype(float)
    begun = process_time()
    ((matches, found, true),) = boundary_counts(shifted, truth, np.array([0.5]), tolerance=0.011)
    assert process_time() - begun < 10
    assert min(found, true) > 3000 and 0.9 * found < matches <= min(found, true)


def line(column: int, width: int = 1, shape=(20, 30)) -> np.ndarray:
    mask = np.zeros(shape)
    mask[:, column : column + width] = 1
    return mask


def test_counts_by_hand():
    (right, found, true), reach = boundary_counts(line(10), line(10), np.array([0.5]), 0.03)[0], 0.03 * np.hypot(20, 30)
    assert 1 < reach < 2 and right == found == true >= 18  # thinning may take a pixel off an end
    assert boundary_counts(line(11), line(10), np.array([0.5]), 0.03)[0].tolist() == [true] * 3
    assert boundary_counts(line(12), line(10), np.array([0.5]), 0.03)[0].tolist() == [0, true, true]
    both = line(9) + line(11)  # either might be it; only one can
    assert boundary_counts(both, line(10), np.array([0.5]), 0.03)[0].tolist() == [true, 2 * true, true]
    assert boundary_counts(np.zeros((20, 30)), line(10), np.array([0.5]), 0.03)[0].tolist() == [0, 0, true]
    assert boundary_counts(line(10), np.zeros((20, 30)), np.array([0.5]), 0.03)[0].tolist() == [0, true, 0]


@pytest.mark.parametrize("tolerance", [0.11, 0.17])  # of a diagonal of 10: 1.1 and 1.7 pixels
def test_counts_and_ods_of_random_maps_agree_with_trying_everything(tolerance):
    from skimage.morphology import skeletonize

    rng, levels, total = numpy_rng("tiny maps", str(tolerance)), np.array([0.3, 0.6, 0.8]), 0
    wanted = np.zeros((3, 3))
    for _ in range(8):
        scores, truth = rng.random((6, 8)), (rng.random((6, 8)) < 0.3).astype(int)
        truth[rng.random((6, 8)) < 0.1] = IGNORE
        counted, true = truth != IGNORE, np.argwhere(skeletonize(truth == 1))
        for row, level in enumerate(levels):
            found = np.array([p for p in np.argwhere(skeletonize(scores >= level)) if counted[tuple(p)]]).reshape(-1, 2)
            wanted[row] += most_pairs(found, true, tolerance * 10), len(found), len(true)
        total = total + boundary_counts(scores, truth, levels, tolerance)
    np.testing.assert_array_equal(total, wanted)
    precision, recall = wanted[:, 0] / wanted[:, 1], wanted[:, 0] / wanted[:, 2]
    np.testing.assert_allclose(f_measures(total), 200 * precision * recall / (precision + recall))


def test_what_is_wide_is_thinned_on_either_side():
    thick = boundary_counts(line(9, 3), line(10), np.array([0.5]), 0.03)[0]
    assert f_measures(thick) > 90 and thick[1] <= 20
    stairs = np.eye(20, 30) + np.eye(20, 30, 1)  # two pixels a row, as a mask's edges on a slope are
    assert f_measures(boundary_counts(stairs, stairs, np.array([0.5]), 0.03)[0]) == 100


def test_each_threshold_cuts_the_map_anew():
    scores = 0.3 * line(4) + 0.6 * line(10) + 0.9 * line(20)
    counts = boundary_counts(scores, line(10) + line(20), np.array([0.2, 0.5, 0.8, 0.95]), 0.001)
    one = counts[2, 1]
    assert (counts / one).tolist() == [[2, 3, 2], [2, 2, 2], [1, 1, 2], [0, 0, 2]]
    np.testing.assert_allclose(f_measures(counts), [80, 100, 200 / 3, 0])


def test_ignored_pixels_count_for_nothing():
    truth = line(10) + line(20)
    counts = boundary_counts(line(10), truth, np.array([0.5]), 0.03)[0]
    truth[:, 15:] = IGNORE
    half = boundary_counts(line(10) + line(25), truth, np.array([0.5]), 0.03)[0]
    assert half.tolist() == [counts[0], counts[0], counts[0]] and counts[2] == 2 * counts[0]


def test_the_tolerance_is_a_share_of_the_diagonal():
    for shape in ((30, 40), (60, 80)):  # diagonals 50 and 100
        reach = int(0.04 * np.hypot(*shape))
        near, far = (
            boundary_counts(line(10 + off, 1, shape), line(10, 1, shape), [0.5], 0.04) for off in (reach, reach + 1)
        )
        assert near[0, 0] == near[0, 2] and far[0, 0] == 0


def test_thresholds_are_spread_evenly_inside_zero_and_one():
    assert even_thresholds(3).tolist() == [0.25, 0.5, 0.75]
    np.testing.assert_allclose(even_thresholds(99), np.linspace(0.01, 0.99, 99))
