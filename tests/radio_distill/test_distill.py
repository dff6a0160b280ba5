"""Teachers and a student → losses: each term by hand, their sum as the recipe weighs it, the reduction over streams."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml

from radio_distill import loop
from radio_distill.distill import DistillObjective
from radio_distill.engine import join_world, leave_world
from radio_distill.losses import ErrorShare, feature_mse, meet, resize_map, summary_cosine
from radio_distill.recipe import Recipe, StudentConfig
from radio_distill.stopping import Stopper
from radio_distill.student import build_student, decay_groups
from radio_distill.views import Batch
from teachers.errors import UserError
from teachers.features import Dims, Encoder, Features
from teachers.phi_s import PhiS
from teachers.seeding import seed_of, seeded, torch_rng


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_rng("noise", seed))


# Losses ---------------------------------------------------------------------------------------------------------------


def test_losses_are_means_over_everything_and_fp32():
    a, b = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    assert feature_mse(a, b).item() == pytest.approx(((a - b) ** 2).mean().item(), rel=1e-6)
    assert feature_mse(a.bfloat16(), b).dtype == torch.float32
    x, y = noise(6, 7), noise(6, 7, seed=1)
    cosines = [np.dot(p, q) / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(x.numpy(), y.numpy())]
    assert summary_cosine(x, y).item() == pytest.approx(1 - np.mean(cosines), rel=1e-5)
    assert summary_cosine(x, 3 * x).item() == pytest.approx(0, abs=1e-6)


def enlarged(values: np.ndarray, size: int) -> np.ndarray:
    """One axis at a finer grid, bilinear, pixel centres on pixel centres."""
    out = []
    for i in range(size):
        at = min(max((i + 0.5) * len(values) / size - 0.5, 0), len(values) - 1)
        low = min(int(at), len(values) - 2)
        out.append((1 - at + low) * values[low] + (at - low) * values[low + 1])
    return np.array(out)


def shrunk(values: np.ndarray, size: int) -> np.ndarray:
    """One axis at a coarser grid: a triangle as wide as two coarse cells around each coarse centre."""
    scale, out = len(values) / size, []
    for i in range(size):
        distance = np.abs(np.arange(len(values)) + 0.5 - (i + 0.5) * scale) / scale
        weights = np.clip(1 - distance, 0, None)
        out.append(np.tensordot(weights / weights.sum(), values, axes=1))
    return np.array(out)


@pytest.mark.parametrize(("policy", "grid"), [("student", (3, 4)), ("teacher", (6, 10)), ("max", (6, 10))])
def test_maps_meet_on_the_grid_of_the_policy(policy, grid):
    student, teacher = noise(1, 2, 3, 4), noise(1, 2, 6, 10, seed=1)
    predicted, target = meet(student, teacher, policy)
    assert predicted.shape[-2:] == target.shape[-2:] == grid
    kept, moved, resize = (predicted, target, shrunk) if policy == "student" else (target, predicted, enlarged)
    assert kept is (student if policy == "student" else teacher)
    source = (teacher if policy == "student" else student)[0].permute(1, 2, 0).double().numpy()
    rows = resize(source, grid[0])
    wanted = resize(rows.swapaxes(0, 1), grid[1]).swapaxes(0, 1)
    np.testing.assert_allclose(moved[0].permute(1, 2, 0).numpy(), wanted, atol=1e-5)
    assert meet(teacher, student, "max")[0] is teacher and meet(teacher, student, "student")[0] is teacher


def test_a_map_at_its_own_grid_is_not_touched():
    features = noise(1, 2, 3, 4)
    assert resize_map(features, (3, 4)) is features
    assert resize_map(torch.ones(1, 2, 3, 4), (5, 2)).allclose(torch.ones(1, 2, 5, 2))


def test_the_error_share_is_what_is_left_of_the_variance():
    pairs = [(noise(2, 3, h, w, seed=h), 3 + 2 * noise(2, 3, h, w, seed=9 + h)) for h, w in ((4, 5), (2, 2), (1, 7))]
    share = ErrorShare()
    for pair in pairs:
        share.update(*pair)
    x, t = (np.concatenate([p[i].permute(0, 2, 3, 1).reshape(-1, 3).double().numpy() for p in pairs]) for i in (0, 1))
    assert share.value() == pytest.approx(((x - t) ** 2).sum() / ((t - t.mean(0)) ** 2).sum(), rel=1e-9)

    perfect, constant = ErrorShare(), ErrorShare()
    for _, target in pairs:
        perfect.update(target, target)
        constant.update(torch.tensor(t.mean(0)).view(1, 3, 1, 1).expand_as(target), target)
    assert perfect.value() == 0 and constant.value() == pytest.approx(1, rel=1e-9)


# The student ----------------------------------------------------------------------------------------------------------


def test_the_student_is_a_function_of_the_seed_alone():
    config = StudentConfig(arch="vit_nano", width=32, depth=1, num_heads=2, patch=8, cpe_max=32)
    dims = {"a": Dims(6, 10), "b": Dims(None, 40)}
    state = torch.random.get_rng_state()
    with seeded("elsewhere"):
        first = build_student(config, dims, seed=5).state_dict()
    second, other = build_student(config, dims, seed=5).state_dict(), build_student(config, dims, seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["patch_generator.tokens"], other["patch_generator.tokens"])
    assert torch.equal(state, torch.random.get_rng_state())
    assert first["heads.a.spatial.fc1.weight"].shape == (40, 32)  # as wide as the widest teacher


def test_matrices_decay_and_positions_tokens_norms_and_biases_do_not():
    config = StudentConfig(arch="vit_nano", width=32, depth=1, num_heads=2, patch=8, cpe_max=32)
    model = build_student(config, {"a": Dims(6, 10)}, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = decay_groups(model, lr=0.1, weight_decay=0.5)
    assert (decayed["weight_decay"], spared["weight_decay"], decayed["lr"], decayed["lr_scale"]) == (0.5, 0.0, 0.1, 1.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    left = {names[id(parameter)] for parameter in spared["params"]}
    assert {"patch_generator.positions.pos_embed", "patch_generator.tokens", "blocks.0.norm1.weight"} <= left
    rest = [name for name in left if not any(part in name for part in ("norm", "final.0", "patch_generator"))]
    assert rest and all(name.endswith("bias") for name in rest)
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed["params"])


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
        wanted[f"{name}/feature"] = feature_mse(said[name].features, 2.0 * (seen.spatial - 0.1))
        if name == "a":
            wanted["a/summary"] = summary_cosine(said["a"].summary, seen.summary)
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
    share = ErrorShare()
    share.update(said.features, seen.spatial)
    assert figures["low/a/feature_error"] == pytest.approx(share.value(), rel=1e-6)
    assert figures["low/a/summary_error"] == pytest.approx(summary_cosine(said.summary, seen.summary).item(), rel=1e-5)


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
    with pytest.raises(UserError, match=text) as caught:
        objective(recipe, monkeypatch)
    assert caught.value.todo == "change streams.high.size, or teachers.a"


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
    sizes = [made.student_size("high", index) for index in range(40)]
    assert set(sizes) == {(32, 48), (48, 64)} and 10 < sizes.count((32, 48)) < 30
    assert sizes == [objective(recipe).student_size("high", index) for index in range(40)]
    assert yaml.safe_dump(made.sizes("low", 3))  # plain numbers, which a loader process can be sent
