"""Linear probe: both solvers find one optimum, which is scikit-learn's; the truth scores perfectly, noise chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from worlds import CLASSES, Fake, Noise, Truth, World, make_split

from eval.tasks import TASKS, linear
from eval.tasks.task import NotApplicable
from teachers.errors import UserError
from teachers.features import Dims
from teachers.seeding import torch_rng


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def blobs(count: int, width: int = 12, classes: int = 5, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds, channels of very different sizes."""
    rng = torch_rng("blobs", count)
    centres = torch.randn(classes, width, generator=torch_rng("centres"))
    labels = torch.randint(0, classes, (count,), generator=rng)
    features = centres[labels] + spread * torch.randn(count, width, generator=rng)
    return features * torch.logspace(-2, 2, width) + 5, labels


def objective(fit, features, labels, strength):
    weights, intercepts = (part.double() for part in fit)
    loss = F.cross_entropy(features.double() @ weights.T + intercepts, labels, reduction="sum")
    return float(strength * loss + weights.square().sum() / 2)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("strength", [1e-3, 0.1])
def test_both_solvers_find_the_one_optimum(classes, strength, monkeypatch):
    monkeypatch.setattr(linear, "BLOCK", 64 * classes)  # torch's in blocks of 64 pictures
    features, labels = blobs(300, classes=classes)
    mean, deviation = linear.moments(features)
    features = (features - mean) / deviation
    ours, theirs = (solve(features, labels, strength) for solve in (linear.with_torch, linear.with_scikit))
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(ours[1] - ours[1].mean(), theirs[1] - theirs[1].mean(), atol=2e-3, rtol=1e-2)
    answers = [(features @ weights.T + intercepts).argmax(1) for weights, intercepts in (ours, theirs)]
    assert (answers[0] != answers[1]).sum() <= 1
    least = objective(theirs, features, labels, strength)
    assert objective(ours, features, labels, strength) == pytest.approx(least, rel=1e-4)
    for seed in range(3):  # and it is one: every step away from it costs
        away = [part + 0.01 * torch.randn(part.shape, generator=torch_rng("away", seed)) for part in theirs]
        assert objective(away, features, labels, strength) > least


def known_world(world: World, features: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> Fake:
    """A model whose summaries of picture i are given, in a world whose labels are."""
    for part in ("train", "val"):
        split = make_split(part, len(labels[part]))
        label = labels[part]
        setattr(world, part, replace(split, label=lambda i, label=label: int(label[i]), class_names=tuple("abcdefg")))
    both = torch.cat([features["val"], torch.zeros(128 - len(features["val"]), features["val"].shape[1])])
    table = torch.cat([both, features["train"]])  # training pictures are numbered from 128
    model = Fake("known", Dims(table.shape[1], CLASSES))
    seen = Truth()
    model.see = lambda pixels: seen.see(pixels)._replace(summary=table[pixels[:, 2, 0, 0].long()])
    return model


@pytest.mark.parametrize("small", [0, 10**9])
def test_scores_are_those_of_a_scikit_learn_pipeline(world, small):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = {}, {}
    (features["train"], labels["train"]), (features["val"], labels["val"]) = blobs(120), blobs(100)
    result = world.run(known_world(world, features, labels), "linear", grid=[0.01], small=small)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, tol=1e-8))
    oracle.fit(features["train"].double().numpy(), labels["train"].numpy())
    wanted = 100 * oracle.score(features["val"].double().numpy(), labels["val"].numpy())
    assert result.metrics["linear top-1"].value == pytest.approx(wanted, abs=1e-9) and 30 < wanted < 95
    assert result.facts["solver"] == ("scikit-learn" if small else "torch") and result.facts["C"] == 0.01


def test_the_c_that_generalises_is_chosen():
    features, labels = blobs(200, width=100)  # as many channels as pictures to learn from: a loose fit learns noise
    features[:, 5:] = 100 * torch.randn(200, 95, generator=torch_rng("noise"))
    grid = [1e-5, 3e-3, 100.0]
    held = linear.held_out(labels)
    mean, deviation = linear.moments(features[~held])
    scaled, right = (features - mean) / deviation, []
    for strength in grid:
        weights, intercepts = linear.with_scikit(scaled[~held], labels[~held], strength)
        right.append(int(((scaled[held] @ weights.T + intercepts).argmax(1) == labels[held]).sum()))
    assert linear.choose(features, labels, grid[::-1], linear.with_scikit) == grid[int(np.argmax(right))]
    assert len(set(right)) > 1
    same = linear.choose(torch.zeros(50, 3), torch.arange(50) % 2, [1.0, 0.1, 10.0], linear.with_scikit)
    assert same == 0.1  # nothing to tell them apart


def test_a_fifth_of_each_class_is_held_out_but_never_a_class_as_a_whole():
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate([50, 25, 5, 2, 1, 1, 1, 1, 1, 1])])
    held = linear.held_out(labels)
    counts = labels[held].bincount(minlength=10)
    assert counts[:3].tolist() == [10, 5, 1] and counts[3] <= 1 and counts[4:].tolist() == [0] * 6
    assert torch.equal(held, linear.held_out(labels))


def test_a_class_with_a_single_picture_breaks_nothing(world):
    label = world.train.label
    world.train = replace(world.train, label=lambda i: 3 if i == 3 else min(label(i), 2))
    assert world.run(Truth(), "linear").facts["unseen"] == []
    world.train = make_split("train", 4)  # now every class has one
    assert world.run(Truth(), "linear").facts["C"] == 1e-4


def test_linear_of_the_truth_and_of_noise(world):
    truth = world.run(Truth(), "linear").metrics["linear top-1"]
    assert truth.value == 100 and truth.n == 48 and truth.chance == 25
    assert truth.direction == "higher" and truth.unit == "%" and truth.counts
    noise = [world.run(Noise(f"noise {i}"), "linear").metrics["linear top-1"].value for i in range(6)]
    assert abs(np.mean(noise) - 25) < 4 * 43.3 / np.sqrt(6 * 48)  # four standard errors of a coin that knows nothing


def test_channels_that_never_change_are_no_signal():
    mean, deviation = linear.moments(torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]]))
    assert deviation[0] == 1 and mean.tolist() == pytest.approx([0.1, 3.0])
    assert deviation[1] == pytest.approx(np.std([1, 3, 5]))


def test_linear_says_what_it_cannot_score(world):
    world.train = make_split("train", 3)
    result = world.run(Truth(), "linear")
    assert result.facts["unseen"] == ["ring"] and result.metrics["linear top-1"].value == 75
    world.train = replace(world.train, label=lambda i: 1)
    with pytest.raises(UserError, match="of one class"):
        world.run(Truth(), "linear")
    world.val = replace(world.val, label=None)
    with pytest.raises(UserError, match="has no labels"):
        world.run(Truth(), "linear")
    with pytest.raises(NotApplicable, match="no summary"):
        TASKS["linear"].parts(world.context(Fake("maps", Dims(None, 4)), "linear"))
