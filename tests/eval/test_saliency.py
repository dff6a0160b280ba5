"""Saliency's F-measure against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import fbeta_score

from eval.datasets.split import IGNORE
from eval.saliency import BETA_SQUARED, THRESHOLDS, f_measures, saliency_counts
from teachers.seeding import torch_rng


def pictures(count: int = 5):
    rng = torch_rng("saliency")
    truth = torch.randint(0, 2, (count, 9, 12), generator=rng)
    scores = (0.4 * truth + 0.7 * torch.rand(truth.shape, generator=rng)).clamp(0, 1)
    truth[:, :2, 5:] = IGNORE
    return scores, truth


@pytest.mark.parametrize("beta_squared", [0.3, 1.0])
def test_f_agrees_with_scikit_learn_over_all_pixels_together(beta_squared):
    scores, truth = pictures()
    counts = sum(saliency_counts(s, t) for s, t in zip(scores, truth))
    counted = truth != IGNORE
    wanted = [
        100
        * fbeta_score(
            truth[counted].numpy(), (scores[counted] >= float(np.float32(threshold))).numpy(), beta=beta_squared**0.5
        )
        for threshold in THRESHOLDS
    ]
    np.testing.assert_allclose(f_measures(counts, beta_squared), wanted, rtol=1e-9)


def test_the_conventions_are_those_of_the_field():
    assert BETA_SQUARED == 0.3
    np.testing.assert_allclose(THRESHOLDS, np.arange(0.05, 0.99, 0.05))


def test_the_largest_f_is_that_of_the_precision_recall_curve():
    from sklearn.metrics import precision_recall_curve

    scores, truth = pictures(1)
    levels = (scores * 20).floor() / 20  # in steps of the thresholds: the curve has no others
    counted = truth[0] != IGNORE
    precision, recall, at = precision_recall_curve(truth[0][counted], levels[0][counted])
    inside = (at > 0) & (at < 1)
    precision, recall = precision[:-1][inside], recall[:-1][inside]
    wanted = 100 * (1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-12)).max()
    assert f_measures(saliency_counts(levels[0], truth[0]), 0.3).max() == pytest.approx(wanted, rel=1e-6)


def test_a_perfect_map_scores_100_and_an_empty_one_nothing():
    truth = pictures()[1][0]
    np.testing.assert_allclose(f_measures(saliency_counts((truth == 1).float(), truth), 0.3), 100)
    assert (f_measures(saliency_counts(torch.zeros(truth.shape), truth), 0.3) == 0).all()
    assert (f_measures(np.zeros((4, 3))) == 0).all()  # nothing there, nothing found


def test_sums_may_have_leading_axes():
    counts = np.stack([saliency_counts(s, t) for s, t in zip(*pictures())])
    assert f_measures(counts, 0.3).shape == (5, 19)
    np.testing.assert_array_equal(f_measures(counts, 0.3)[2], f_measures(counts[2], 0.3))


def test_ignored_pixels_count_for_nothing():
    scores, truth = pictures(1)
    spoilt = scores.masked_fill(truth == IGNORE, 1.0)
    np.testing.assert_array_equal(saliency_counts(scores[0], truth[0]), saliency_counts(spoilt[0], truth[0]))
