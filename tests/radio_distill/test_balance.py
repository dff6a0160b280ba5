"""Terms → their weights: running, learned and random ones, each against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from radio_distill.balance import MOMENTUM, AdaLoss, Uncertainty, dropped
from teachers.seeding import torch_rng


def test_running_weights_are_one_over_the_running_loss():
    ada = AdaLoss(["a", "b", "c"])
    values = [{"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([8.0, 8.0])}, {"a": torch.tensor([4.0, 4.0])}]
    first, second = (ada.weights(value) for value in values)
    assert first == {"a": pytest.approx(1 / 2), "b": pytest.approx(1 / 8)}  # the first value is the first mean
    assert second == {"a": pytest.approx(1 / (MOMENTUM * 2 + (1 - MOMENTUM) * 4))}  # b was in another stream
    again = AdaLoss(["a", "b", "c"])
    again.load_state(ada.state())
    assert again.weights(values[1]) == ada.weights(values[1])


def test_learned_weights_are_those_of_the_papers_and_settle_at_the_uncertainty_that_costs_least():
    made = Uncertainty(3, ["a/feature", "b/feature"])
    summary = torch.randn(4, 3, generator=torch_rng("summary")).requires_grad_()
    values = {"b/feature": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    with torch.no_grad():
        made.linear.bias.copy_(torch.tensor([9.0, 0.5]))
    weighed = made(summary, values)
    wanted = math.exp(-0.5) * values["b/feature"] + math.log1p(math.exp(0.5))
    torch.testing.assert_close(weighed, {"b/feature": wanted})
    weighed["b/feature"].sum().backward()
    assert summary.grad is None  # it must not learn to look uncertain
    # d/db (e^-b L + log(1 + e^b)) = 0 at e^b = (L + √(L² + 4L)) / 2
    optimiser = torch.optim.SGD([made.linear.bias], lr=0.5)
    for _ in range(300):
        optimiser.zero_grad()
        made(torch.zeros(1, 3), {"b/feature": torch.tensor([2.0])})["b/feature"].sum().backward()
        optimiser.step()
    assert made.linear.bias[1].item() == pytest.approx(math.log((2 + math.sqrt(12)) / 2), abs=1e-3)


def test_the_worst_matched_teacher_of_an_image_stays_and_the_others_go_by_chance():
    losses = {name: torch.rand(3000, generator=torch_rng("losses", name)).requires_grad_() for name in "abc"}
    weights = dropped(losses, 0.5, torch_rng("drop"))
    stacked = torch.stack(list(weights.values()))
    worst = torch.stack([loss.detach() for loss in losses.values()]).argmax(0, keepdim=True)
    assert (stacked.gather(0, worst) > 0).all()
    torch.testing.assert_close(stacked.sum(0), torch.full((3000,), 3.0))
    kept = (stacked > 0).float().sum(0)
    assert kept.mean().item() == pytest.approx(2.0, abs=0.06)  # the worst, and each of two others with 0.5
    assert not any(weight.requires_grad for weight in weights.values())
    assert torch.equal(torch.stack(list(dropped(losses, 0.0, torch_rng("all")).values())), torch.ones(3, 3000))
