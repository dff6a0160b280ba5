"""Teachers and a student → losses: each term by hand, their sum as the recipe weighs it, the reduction over streams."""

from __future__ import annotations

import copy
import re
from contextlib import nullcontext

import pytest
import torch
import yaml

from radio_distill import loop
from radio_distill.distill import DistillObjective
from radio_distill.engine import join_world, leave_world
from radio_distill.losses import ErrorShare, cosine_distance, squared_error
from radio_distill.recipe import Recipe
from radio_distill.stopping import Stopper
from radio_distill.student import build_student, student_spec
from radio_distill.views import Batch
from teachers.features import Dims, Encoder, Features
from teachers.phi_s import PhiS
from teachers.radio_spec import MlpSpec
from teachers.seeding import seed_of, seeded, torch_rng


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_rng("noise", seed))


# The student ----------------------------------------------------------------------------------------------------------


def test_the_student_is_a_function_of_the_seed_alone(recipe):
    dims = {"a": Dims(6, 10), "b": Dims(None, 40)}
    state = torch.random.get_rng_state()

    def weights(seed: int) -> dict[str, torch.Tensor]:
        return build_student(Recipe.model_validate({**recipe, "seed": seed}), dims).state_dict()

    with seeded("elsewhere"):
        first = weights(5)
    second, other = weights(5), weights(6)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["patch_generator.tokens"], other["patch_generator.tokens"])
    assert torch.equal(state, torch.random.get_rng_state())
    assert first["heads.a.spatial.fc1.weight"].shape == (40, 32)  # as wide as the widest teacher


def test_a_teachers_heads_are_the_recipes_unless_its_own_entry_says_other(recipe):
    recipe["student"] |= {"heads": {"hidden": 20, "blocks": 1, "summary": "v1"}, "mlp": "swiglu", "patch_bias": True}
    recipe["student"] |= {"summary_tokens": "one", "registers": 3, "layer_scale": 0.1, "spectral": True, "damp": 0.01}
    recipe["teachers"]["a"] |= {"head": {"blocks": 0, "up": 2}, "summary_weight": 0}
    recipe["teachers"]["b"] |= {"head": {"features": "attention", "summary": "v2", "hidden": 8}}
    spec = student_spec(Recipe.model_validate(recipe), {"a": Dims(6, 10), "b": Dims(5, 7)})
    a, b = spec.heads.values()
    assert (a.spatial, a.spatial_mlp, a.up, a.summary, a.supervised) == (10, MlpSpec(20, 0, "v2"), 2, None, False)
    assert (b.spatial_mlp, b.summary, b.summary_mlp) == (MlpSpec(8, 1, "attention"), 5, MlpSpec(8, 1, "v2"))
    assert (spec.mlp, spec.patch_bias, spec.registers, spec.token_per_teacher) == ("swiglu", True, 3, False)
    assert (spec.layer_scale, spec.spectral, spec.damp) == (0.1, True, 0.01)


# The objective --------------------------------------------------------------------------------------------------------


class Blind(Encoder):
    """A teacher without summary, of a fixed size, whose features are the colours of its 4-pixel patches."""

    def __init__(self):
        super().__init__()
        self.name, self.patch_size, self.native_size, self.resolution_flexible = "blind", 4, (24, 24), False
        self.dims, self.licence, self.identity = Dims(None, 3), "none", "blind"

    def forward(self, images):
        self.check(images)
        return Features(None, torch.nn.functional.avg_pool2d(images, 4))


@pytest.fixture
def recipe(tiny_recipe, tmp_path) -> dict:
    return tiny_recipe(tmp_path / "run")


def objective(recipe: dict, monkeypatch=None) -> DistillObjective:
    if monkeypatch:
        from teachers import catalogue

        build = catalogue.build
        monkeypatch.setattr(catalogue, "build", lambda name, **kw: Blind() if name == "blind" else build(name, **kw))
    made = DistillObjective(Recipe.model_validate(recipe), "cpu", nullcontext, say=lambda text: None)
    for teacher in made.teachers.values():
        teacher.phi_s.alpha.fill_(2.0)
        teacher.phi_s.mean.fill_(0.1)
    return made


def batch(made: DistillObjective, stream: str = "high", index: int = 0, count: int = 2) -> Batch:
    images = {
        size: (255 * torch.rand(count, 3, *size, generator=torch_rng("batch", *size))).to(torch.uint8)
        for size in made.sizes(stream, index)
    }
    return Batch(images, [str(n) for n in range(count)], stream, index)


def test_the_loss_is_the_weighted_sum_of_every_teachers_terms(recipe, monkeypatch):
    recipe["teachers"]["a"] |= {"summary_weight": 0.5, "feature_weight": 3.0}
    recipe["teachers"]["b"] |= {"summary_weight": 0.0}
    recipe["teachers"]["c"] = {"encoder": "blind"}
    recipe["streams"]["high"]["size"] = 48
    made = objective(recipe, monkeypatch)
    one = batch(made)
    assert set(one.images) == {(48, 48), (24, 24)}  # a and b follow the student's grid, c has its own
    with seeded("step"):
        total, logs = made.losses(made.model, one, 0, torch_rng("step"))
    with seeded("step"):
        said = made.model(one.float((48, 48)))
    wanted = {}
    for name, size in (("a", (48, 48)), ("b", (24, 24)), ("c", (24, 24))):
        seen = made.teachers[name].base(one.float(size))
        wanted[f"{name}/feature"] = squared_error(said[name].features, 2.0 * (seen.spatial - 0.1)).mean()
        wanted[f"{name}/feature_teacher"] = (said[name].features / 2.0 + 0.1 - seen.spatial).square().mean()
        if name == "a":
            wanted["a/summary"] = cosine_distance(said["a"].summary, seen.summary).mean()
            cosines = 1 - cosine_distance(said["a"].summary, seen.summary)
            wanted["a/summary_degrees"] = cosines.acos().rad2deg().mean()
    assert logs.keys() == wanted.keys()  # a weight of 0 is not computed, a teacher without summary has no such term
    torch.testing.assert_close(logs, wanted)
    weighed = 3 * wanted["a/feature"] + 0.5 * wanted["a/summary"] + wanted["b/feature"] + wanted["c/feature"]
    torch.testing.assert_close(total, weighed)


def test_held_out_figures_use_the_evaluating_student_and_leave_it_as_it_was(recipe):
    made = objective(recipe)
    made.model.train()
    low, high = batch(made, "low", count=3), batch(made, "high", count=2)
    figures = made.evaluate([low, high, low])
    assert made.model.training
    assert set(figures) == {f"{s}/{t}/{f}_error" for s in ("low", "high") for t in "ab" for f in ("feature", "summary")}
    made.model.eval()
    with torch.no_grad():
        said, seen = made.model(low.float((32, 32)))["a"], made.teachers["a"].targets(low.float((32, 32)), False)
    share, cosine = ErrorShare(), cosine_distance(said.summary, seen.summary).mean().item()
    share.update(said.features, seen.spatial)
    assert figures["low/a/feature_error"] == pytest.approx(share.value(), rel=1e-6)
    assert figures["low/a/summary_error"] == pytest.approx(cosine, rel=1e-5)


def test_what_was_fitted_goes_through_state(recipe):
    made, other = objective(recipe), objective(recipe)
    made.teachers["a"].phi_s = PhiS(24)
    made.teachers["a"].phi_s.rotation.copy_(torch.linalg.qr(noise(24, 24))[0])
    other.load_state(made.state())
    assert all(torch.equal(value, other.state()[key]) for key, value in made.state().items())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"sharpen": "tile"}, r"streams.high.size \[40, 40\]: .* cannot take images of 40×40"),
        ({"encoder": "blind"}, r"streams.high.size \[32, 48\]: teachers.a: one crop cannot be both 32×48 and 24×24"),
    ],
)
def test_a_size_that_a_teacher_cannot_take_is_told_before_anything_is_read(recipe, monkeypatch, change, text):
    recipe["streams"]["high"] |= {"size": [[40, 40]] if "sharpen" in change else [[32, 48]], "sharpen": True}
    recipe["teachers"]["a"] |= change | ({"options": {}} if "encoder" in change else {})
    [mistake] = objective(recipe, monkeypatch).sights.mistakes()
    assert re.search(text, mistake.what) and mistake.todo == "change streams.high.size, or teachers.a"


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduce", "shares"),
    [("stream_mean", (1 / 2, 1 / 2)), ("sample_mean", (4 / 6, 2 / 6)), ({"low": 1, "high": 4}, (1 / 5, 4 / 5))],
    ids=["stream_mean", "sample_mean", "weights"],
)
def test_the_step_takes_the_gradient_of_the_streams_reduced_as_the_recipe_says(recipe, monkeypatch, reduce, shares):
    recipe["loss"] = {"reduce": reduce}
    taken = {}

    def catch(engine):
        taken.update({name: p.grad.clone() for name, p in engine.module.named_parameters() if p.grad is not None})
        engine.step()
        return 1.0

    monkeypatch.setattr(loop, "optimizer_step", catch)
    made = objective(recipe)
    model = copy.deepcopy(made.model)
    world = join_world(1)
    try:
        training = loop.Training(made.recipe, made, world)
        streams = {name: training.stream(name, resume=False, seed=0) for name in ("low", "high")}
        fields, _, _ = training.one_step(streams, Stopper())
        again = {name: training.stream(name, resume=False, seed=0) for name in ("low", "high")}
        losses = []
        for name in ("low", "high"):
            torch.manual_seed(seed_of("step", 0, 0, name, 0))
            losses.append(made.losses(model.train(), next(again[name]), 0, torch_rng("unused"))[0])
    finally:
        leave_world()
    reduced = sum(share * loss for share, loss in zip(shares, losses))
    reduced.backward()
    assert fields["loss"] == pytest.approx(reduced.item(), rel=1e-5)
    assert [fields["low/loss"], fields["high/loss"]] == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert taken.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(taken[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_size_of_a_batch_is_drawn_once_for_all_ranks(recipe):
    made = objective(recipe)
    sizes = [made.sights.student_size("high", index) for index in range(40)]
    assert set(sizes) == {(32, 48), (48, 64)} and 10 < sizes.count((32, 48)) < 30
    assert sizes == [objective(recipe).sights.student_size("high", index) for index in range(40)]
    assert yaml.safe_dump(made.sizes("low", 3))  # plain numbers, which a loader process can be sent
