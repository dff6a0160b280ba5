"""A step → its learning rate: a linear warm-up and a cosine, begun anew in every stage."""

from __future__ import annotations

import math

import pytest

from radio_distill.recipe import Recipe
from radio_distill.schedule import learning_rate


@pytest.fixture
def recipe(tiny_recipe) -> Recipe:
    stages = [{"steps": 10}, {"steps": 20, "lr": 0.5, "warmup": 0}, {"steps": 3}]
    optim = {"lr": 1.0, "warmup": 4, "final_lr": 0.1}
    return Recipe.model_validate(tiny_recipe("run") | {"stages": stages, "optim": optim})


def test_steps_fall_into_stages(recipe):
    assert recipe.steps == 33
    assert [recipe.stage_at(step) for step in (0, 9, 10, 29, 30, 32, 33)] == [
        (0, 0), (0, 9), (1, 0), (1, 19), (2, 0), (2, 2), (2, 3)
    ]  # fmt: skip


def test_a_stage_warms_up_from_a_hundredth_and_falls_as_a_cosine_to_its_last_share(recipe):
    rates = [learning_rate(recipe, step) for step in range(10)]
    assert rates[:4] == pytest.approx([0.01 + 0.99 * n / 4 for n in (1, 2, 3, 4)])
    assert rates[4] == pytest.approx(1.0)
    for step in range(4, 10):
        assert rates[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (step - 4) / 6)) / 2)


def test_every_stage_has_a_cycle_and_may_have_a_peak_and_a_warm_up_of_its_own(recipe):
    assert learning_rate(recipe, 10) == pytest.approx(0.5)
    assert learning_rate(recipe, 20) == pytest.approx(0.5 * (0.1 + 0.9 / 2))
    short = [learning_rate(recipe, step) for step in (30, 31, 32)]  # a stage shorter than the warm-up only warms up
    assert short == pytest.approx([0.01 + 0.99 * n / 3 for n in (1, 2, 3)])
