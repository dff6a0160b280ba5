"""Surface normals: the truth scores almost perfectly, noise scores chance; the loss agrees with its formula; unknown
pixels count for nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from worlds import CELL, Fake, Noise, World, make_split

from eval.tasks import normals
from eval.tasks.normals import angular_loss
from teachers.errors import UserError
from teachers.features import Dims, Features
from teachers.seeding import torch_rng

QUICK = {"hidden": 16, "finest": 2, "steps": 60, "batch": 16, "lr": 1e-2, "labels": 16}
LINEAR = QUICK | {"head": "linear", "steps": 150, "lr": 0.1}


def bumps(part: str, count: int, shape=(16, 16)):
    """A smooth surface a picture, facing the camera here and the ceiling there: N×3×H×W."""
    rng = torch_rng("bumps", part)
    coarse = 0.6 * torch.randn(count, 3, 2, 2, generator=rng) + torch.tensor([0.0, -0.5, -1.0])[:, None, None]
    return F.normalize(F.interpolate(coarse, shape, mode="bilinear", align_corners=True), dim=1)


class Normals(Fake):
    """Features are the mean normal of each cell; a picture is known by its number (blue)."""

    def __init__(self, values: dict[str, torch.Tensor], **about):
        super().__init__("normals", Dims(None, 3))
        self.values = values
        for name, value in about.items():
            setattr(self, name, value)

    def see(self, pixels):
        numbers = pixels[:, 2, 0, 0].long().tolist()
        maps = torch.stack([self.values["train"][n - 128] if n >= 128 else self.values["val"][n] for n in numbers])
        return Features(None, F.avg_pool2d(maps, CELL))


@pytest.fixture
def world(tmp_path):
    values = {"train": bumps("train", 64), "val": bumps("val", 24)}
    splits = {part: replace(make_split(part, len(own)), normals=own.__getitem__) for part, own in values.items()}
    world = World(tmp_path, **splits)
    world.values = values
    return world


@pytest.mark.parametrize("settings", [QUICK | {"steps": 150}, LINEAR], ids=["dpt", "linear"])
def test_the_truth_scores_almost_perfectly(world, settings):
    result = world.run(Normals(world.values), "normals", **settings)
    found = result.metrics
    assert found["normals <11.25°"].value > 95 and found["normals <11.25°"].chance < 20
    assert found["normals RMSE"].value < 6 and found["normals RMSE"].chance > 25
    assert [name for name, metric in found.items() if metric.counts] == ["normals <11.25°", "normals RMSE"]
    assert [metric.direction for metric in found.values()] == ["higher"] * 3 + ["lower"] * 2
    assert all(metric.n == 24 and len(metric.resamples) == 200 for metric in found.values())
    assert len(result.examples) == 4 and result.examples[0].answer.shape == (16, 16, 3)


def test_noise_scores_about_chance(world):
    found = [world.run(Noise(f"noise {i}"), "normals", **LINEAR).metrics for i in range(3)]
    for name, tolerance in {"normals <11.25°": 4, "normals RMSE": 1.5, "normals mean": 1.5}.items():
        mean = np.mean([metrics[name].value for metrics in found])
        assert mean == pytest.approx(found[0][name].chance, abs=tolerance), name


def test_chance_is_the_score_of_the_mean_direction(world):
    found = world.run(Noise(), "normals", **QUICK | {"steps": 1}).metrics
    mean = world.values["train"].double().mean(dim=(0, 2, 3))
    cosine = torch.einsum("c,nchw->nhw", mean / mean.norm(), world.values["val"].double()).clamp(-1, 1)
    degrees = cosine.acos().rad2deg()
    for angle in (11.25, 22.5, 30):
        wanted = 100 * float((degrees < angle).double().mean())
        assert found[f"normals <{angle:g}°"].chance == pytest.approx(wanted, abs=1e-3)
    assert found["normals mean"].chance == pytest.approx(float(degrees.mean()), rel=1e-5)
    rmse = degrees.square().mean(dim=(1, 2)).sqrt().mean()  # of each picture, then the mean
    assert found["normals RMSE"].chance == pytest.approx(float(rmse), rel=1e-5)


def test_unknown_pixels_count_for_nothing(world):
    """Every way to be unknown is one; a picture of which nothing is known is not counted."""
    whole = world.run(Normals(world.values), "normals", **QUICK | {"steps": 10}).metrics
    results = []
    for channels in (slice(None), slice(0, 1), slice(2, 3)):  # NaN in one component is enough
        for part, values in world.values.items():
            holed = values.clone()
            holed[:, channels, :5, 3:9] = torch.nan
            holed[7, channels] = torch.nan
            setattr(world, part, replace(getattr(world, part), normals=holed.__getitem__))
        results.append(world.run(Normals(world.values), "normals", **QUICK | {"steps": 10}).metrics)
    assert results[0] == results[1] == results[2]
    assert results[0]["normals RMSE"].n == 23 and results[0]["normals RMSE"].value != whole["normals RMSE"].value


def test_rectangular_pictures(tmp_path):
    shape = (12, 20)
    values = {"train": bumps("train", 64, shape), "val": bumps("val", 12, shape)}
    world = World(tmp_path)
    for part, own in values.items():
        split = make_split(part, len(own))
        images = [split.image(i)[:, :1, :1].expand(3, *shape).clone() for i in range(len(own))]
        setattr(world, part, replace(split, image=images.__getitem__, normals=own.__getitem__, shape=shape))
    assert world.run(Normals(values, native_size=shape), "normals", **QUICK).metrics["normals <30°"].value > 95


def test_seeds_differ_and_repeat(world):
    first, again, other = (
        world.run(Noise(), "normals", seed, **QUICK | {"steps": 5}).metrics["normals RMSE"].value for seed in (0, 0, 1)
    )
    assert first == again != other


def test_what_cannot_be_scored_is_refused(world):
    unknown = torch.full((3, 16, 16), torch.nan)
    known = world.val
    world.val = replace(known, normals=lambda i: unknown)
    with pytest.raises(UserError, match="no pixel of world/val has a known normal"):
        world.run(Noise(), "normals", **QUICK | {"steps": 1})
    world.train = replace(world.train, normals=lambda i: unknown)
    with pytest.raises(UserError, match="no pixel of world/train has a known normal"):
        world.run(Noise(), "normals", **QUICK)
    world.train = replace(world.train, normals=None)
    with pytest.raises(UserError, match="'world' has no surface normals"):
        world.run(Noise(), "normals")


# --- the loss --------------------------------------------------------------------------------------------------------


def some_pair(*shape):
    rng = torch_rng("normals loss", *shape)
    predicted = torch.randn(shape[0], 4, *shape[1:], generator=rng)
    truth = F.normalize(torch.randn(shape[0], 3, *shape[1:], generator=rng), dim=1)
    unknown = torch.rand(shape[0], 1, *shape[1:], generator=rng) < 0.2
    return predicted, truth.masked_fill(unknown, torch.nan)


def test_loss_agrees_with_the_formula():
    predicted, truth = some_pair(2, 4, 5)
    terms = []
    for p, t in zip(predicted.movedim(1, -1).reshape(-1, 4).double(), truth.movedim(1, -1).reshape(-1, 3).double()):
        if not t.isnan().any():
            x = float(p[3])
            kappa = (x if x > 0 else math.expm1(x)) + 1.01
            angle = math.acos(float(p[:3] @ t / p[:3].norm()))
            terms.append(math.log(1 + math.exp(-kappa * math.pi)) - math.log(kappa**2 + 1) + kappa * angle)
    assert 0 < len(terms) < 40
    assert angular_loss(predicted, truth).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_loss_is_a_likelihood():
    """It is −log of a density over the sphere, up to log 2π: the density integrates to one whatever κ."""
    theta = (torch.arange(400, dtype=torch.float64) + 0.5) * math.pi / 400
    truth = torch.stack([theta.sin(), torch.zeros_like(theta), theta.cos()])[None, :, :, None]
    for x in (-2.0, 0.0, 3.0):
        mass = 0.0
        for k in range(400):
            cell = torch.tensor([0.0, 0.0, 1.0, x], dtype=torch.float64)[None, :, None, None]
            mass += float(torch.exp(-angular_loss(cell, truth[:, :, k : k + 1]))) * math.sin(float(theta[k]))
        assert mass * math.pi / 400 == pytest.approx(1, rel=1e-3)


def test_loss_ignores_what_is_unknown_and_has_a_gradient_at_the_truth():
    predicted, truth = some_pair(2, 4, 5)
    predicted.requires_grad_()
    angular_loss(predicted, truth).backward()
    unknown = truth.isnan().any(dim=1, keepdim=True).expand_as(predicted)
    assert predicted.grad.isfinite().all() and (predicted.grad[unknown] == 0).all()
    assert angular_loss(predicted, torch.full_like(truth, torch.nan)) == 0
    exact = torch.cat([truth.nan_to_num(1.0), torch.zeros(2, 1, 4, 5)], dim=1).requires_grad_()
    angular_loss(exact, truth).backward()
    assert exact.grad.isfinite().all()


def test_a_head_that_is_unsure_pays_less_for_errors():
    truth = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None]
    wrong, right = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    loss = {
        (name, x): angular_loss(torch.cat([direction, torch.tensor([x])])[None, :, None, None], truth).item()
        for name, direction in {"wrong": wrong, "right": right}.items() for x in (-3.0, 3.0)
    }  # fmt: skip
    assert loss["wrong", -3.0] < loss["wrong", 3.0] and loss["right", -3.0] > loss["right", 3.0]
    assert normals.GROUP == "Probe3D" and normals.COUNTS
