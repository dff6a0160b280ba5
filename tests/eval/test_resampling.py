"""Standard errors over test items against the truth: many test sets of a made-up world, where all is known."""

from __future__ import annotations

import numpy as np
import pytest

from eval.resampling import counts, ends, hits, metric, percentage, ratio, together


def test_the_spread_over_resamples_is_the_standard_error():
    right = np.random.default_rng(0).random(400) < 0.3
    score = metric(hits(right), percentage, "split", direction="higher", unit="%", chance=25.0)
    assert score.value == pytest.approx(100 * right.mean()) and score.n == 400
    binomial = 100 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert np.std(score.resamples) == pytest.approx(binomial, rel=0.2)


def test_models_are_judged_on_the_same_resamples():
    rows = np.random.default_rng(0).random((60, 2)) + 1

    def scored(identity):
        return metric(rows, ratio, identity, direction="lower", unit="").resamples

    assert scored("a") == scored("a") != scored("b")


def test_a_resample_without_a_value_leaves_no_resamples():
    rows = np.zeros((3, 2))
    rows[0] = 1  # most resamples of three pictures miss the only one that counts
    assert metric(rows, ratio, "s", direction="lower", unit="").resamples == []


# --- items that are not independent ----------------------------------------------------------------------------------


def spread(values: np.ndarray, drawn) -> float:
    rows = np.stack([values, np.ones(len(values))], axis=1)
    return float(np.std(metric(rows, ratio, drawn, direction="higher", unit="").resamples, ddof=1))


def over_test_sets(draw, drawn, sets=300) -> tuple[float, float]:
    """How the mean differs between test sets, and the standard error that one set gives, on average."""
    found = [draw() for _ in range(sets)]
    errors = [spread(values, drawn) for values in found]
    return float(np.std([values.mean() for values in found], ddof=1)), float(np.sqrt(np.mean(np.square(errors))))


def test_each_item_by_itself_is_drawn_as_ever():
    for groups in (None, range(9), [5, 7, 8, 9, 11, 12, 13, 20, 21]):
        assert (together("split", groups, 9).weights == counts("split", 9)).all()


def test_pictures_of_one_object_are_drawn_together():
    rng = np.random.default_rng(0)
    objects = np.repeat(np.arange(30), 8)
    together_drawn, alone = together("s", objects, 240), together("s", None, 240)
    assert (together_drawn.weights.reshape(-1, 30, 8) == together_drawn.weights.reshape(-1, 30, 8)[..., :1]).all()

    def draw():
        return rng.normal(size=30)[objects] + rng.normal(size=240)

    true, found = over_test_sets(draw, together_drawn)
    assert found == pytest.approx(true, rel=0.12)
    assert over_test_sets(draw, alone)[1] < 0.6 * true  # what it was to take them for independent


@pytest.mark.parametrize("own", [0.3, 1.0])
def test_pairs_that_share_pictures_vary_as_their_pictures_do(own):
    """200 pairs of 60 pictures, as on the tabletop; `own`: what is a pair's and not of its pictures."""
    rng = np.random.default_rng(1)
    pairs = np.array([rng.choice(60, 2, replace=False) for _ in range(200)])

    def draw():
        return rng.normal(size=60)[pairs].sum(axis=1) + own * rng.normal(size=200)

    drawn = ends("s", pairs)
    assert drawn.weights.min() >= 0
    true, found = over_test_sets(draw, drawn)
    assert 0.9 * true < found < 1.25 * true
    assert over_test_sets(draw, together("s", None, 200))[1] < 0.65 * true


def test_pairs_that_share_nothing_vary_by_themselves():
    rng = np.random.default_rng(2)
    drawn = ends("s", np.arange(300).reshape(150, 2))
    true, found = over_test_sets(lambda: rng.normal(size=150), drawn)
    assert found == pytest.approx(true, rel=0.12)
