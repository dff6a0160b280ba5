"""Correspondence between views: the truth finds every point, noise finds as many as chance says, brute force agrees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from known import Known
from scipy.spatial.distance import cdist
from torch.nn import functional as F
from worlds import Noise, World

from eval.datasets import tabletop
from eval.datasets.split import Split, ViewPair
from eval.matching import enlarged, sampled, spread
from eval.resampling import together
from eval.tasks import correspondence
from eval.tasks.correspondence import Points, best, match, metrics, points_of, recall
from teachers.errors import UserError
from teachers.seeding import torch_rng

GRID = (12, 16)


def lifted(points: torch.Tensor) -> torch.Tensor:
    """Points 3×H×W → features whose cosine falls with the distance between points; off the thing, far from all."""
    there = points.isfinite().all(dim=0, keepdim=True)
    off = points.new_tensor([0, 0, 0, -1])[:, None, None]
    return torch.where(there, torch.cat([points, torch.ones_like(points[:1])]), off)


def make_views(count: int = 6) -> Split:
    """Pairs of 24×32 pictures that show the same 192 points of a block of 40 cm, in another order; a few are off it."""
    rng = torch_rng("views")
    points = []
    for _ in range(count // 2):
        own = 0.4 * torch.rand(3, GRID[0] * GRID[1], generator=rng)
        own[:, torch.randperm(own.shape[1], generator=rng)[:20]] = torch.nan
        points += [own, own[:, torch.randperm(own.shape[1], generator=rng)]]
    large = [p.unflatten(1, GRID).repeat_interleave(2, 1).repeat_interleave(2, 2) for p in points]
    angles = [10.0, 45.0, float("nan")]
    return Split(
        data="views", part="val", count=count, identity="views", source="a test", shape=(24, 32),
        image=lambda i: torch.full((3, 24, 32), i, dtype=torch.uint8), points=lambda i: large[i],
        view_pairs=[ViewPair(2 * i, 2 * i + 1, angles[i]) for i in range(count // 2)],
    )  # fmt: skip


def truth_of(split: Split, grid: tuple[int, int] = GRID) -> Known:
    maps = [F.interpolate(split.points(i)[None], grid, mode="nearest-exact")[0] for i in range(split.count)]
    return Known(split, [lifted(points) for points in maps], "truth")


def noise_of(split: Split, seed: int, width: int = 8) -> Known:
    rng = torch_rng("noise", seed)
    return Known(split, [torch.randn(width, *GRID, generator=rng) for _ in range(split.count)], f"noise {seed}")


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path, val=make_views())


def test_the_truth_finds_every_point(world):
    result = world.run(truth_of(world.val), "correspondence", scale=0.5)
    assert {name: metric.value for name, metric in result.metrics.items()} == dict.fromkeys(
        ["recall", "recall@1cm", "recall@2cm", "recall@5cm", "recall@2cm 0–30°", "recall@2cm 30–60°"], 100
    )
    assert [name for name, metric in result.metrics.items() if metric.counts] == ["recall"]
    assert result.metrics["recall"].n == 3 and result.metrics["recall@2cm 0–30°"].n == 1
    assert all(metric.direction == "higher" and metric.chance < 10 for metric in result.metrics.values())


def test_noise_finds_as_many_as_chance_says(world):
    runs = [world.run(noise_of(world.val, seed), "correspondence", scale=0.5).metrics for seed in range(12)]
    for name in ("recall@2cm", "recall@5cm"):
        chance, values = runs[0][name].chance, [metrics[name].value for metrics in runs]
        share, tries = chance / 100, 12 * 3 * 172
        assert abs(np.mean(values) - chance) < 4 * 100 * np.sqrt(share * (1 - share) / tries), name
    assert runs[0]["recall"].chance == pytest.approx(np.mean([runs[0][f"recall@{cm}cm"].chance for cm in (1, 2, 5)]))


def test_matches_agree_with_brute_force():
    """Every step again in numpy: cosine distances, the ratio test, distances in space, the share of a random match."""
    rng = torch_rng("brute")
    first, second = (
        Points(
            F.normalize(torch.randn(n, 5, generator=rng)),
            0.1 * torch.rand(n, 3, generator=rng),
            torch.rand(n, 2, generator=rng),
        )
        for n in (70, 55)
    )
    matched = match(first, second)
    apart = cdist(first.features.numpy(), second.features.numpy(), "cosine")
    order = np.argsort(apart, axis=1)
    least, second_least = (np.take_along_axis(apart, order[:, [k]], 1)[:, 0] for k in (0, 1))
    exact = cdist(first.space.numpy(), second.space.numpy())
    error = exact[np.arange(70), order[:, 0]]
    np.testing.assert_array_equal(matched.found, order[:, 0])
    np.testing.assert_allclose(matched.ratio, 1 - least / second_least, atol=1e-4)
    np.testing.assert_allclose(matched.error, error, atol=1e-6)
    np.testing.assert_array_equal(matched.nearest, exact.argmin(axis=1))
    stays = cdist(first.places.numpy(), second.places.numpy()).argmin(axis=1)
    np.testing.assert_allclose(matched.still, exact[np.arange(70), stays], atol=1e-6)
    kept = error[np.argsort(least / second_least)[:20]]
    np.testing.assert_allclose(
        recall(best(matched, 20)), [(kept < limit).mean() for limit in (0.01, 0.02, 0.05)], rtol=1e-6
    )
    expected = [(exact < limit).mean() for limit in (0.01, 0.02, 0.05)]
    np.testing.assert_allclose(matched.random.mean(dim=0), expected, rtol=1e-5)


def test_a_large_set_is_compared_in_blocks_with_the_same_answer(monkeypatch):
    rng = torch_rng("blocks")
    views = [
        Points(F.normalize(torch.randn(50, 5, generator=rng)), *torch.rand(50, 5, generator=rng).split([3, 2], dim=1))
        for _ in range(2)
    ]
    whole = match(*views)
    monkeypatch.setattr(correspondence, "ROWS", 7)
    for name, values in vars(match(*views)).items():
        torch.testing.assert_close(values, getattr(whole, name))


def test_figures_are_means_over_pairs_and_bins_hold_the_pairs_of_their_angle():
    recalls = np.array([[0.1, 0.2, 0.9], [0.3, 0.6, 0.6], [0.0, 0.4, 0.5]])
    found = metrics(recalls, recalls / 10, np.array([29.9, 30.0, np.nan]), together("identity", None, 3))
    assert found["recall"].value == pytest.approx(100 * recalls.mean()) and len(found["recall"].resamples) == 200
    assert found["recall"].chance == pytest.approx(10 * recalls.mean())
    assert found["recall@1cm"].value == pytest.approx(100 * 0.4 / 3)
    assert {name for name in found if "°" in name} == {"recall@2cm 0–30°", "recall@2cm 30–60°"}
    assert found["recall@2cm 0–30°"].value == pytest.approx(20)
    assert found["recall@2cm 30–60°"].value == pytest.approx(60) and found["recall@2cm 30–60°"].n == 1


def test_points_are_those_of_the_thing_where_the_picture_shows_them():
    split = make_views()
    space = split.points(0)
    view = points_of(torch.randn(3, 6, 8), space, 0.5)
    assert len(view.space) == 172 and view.features.shape == (172, 3)
    for place, point in zip(view.places[::17], view.space[::17]):
        x, y = place.long().tolist()
        assert torch.equal(space[:, y, x], point)


def test_on_the_tabletop_the_truth_finds_what_can_be_found(tmp_path):
    """Not every point of a view is seen in the other: the truth must find the nearest one that is."""
    config = tabletop.Config(kind="tabletop", size=[48, 64], val=4, views=2)
    val = tabletop.open_split("tabletop", config, Path(), "val")
    world = World(tmp_path, val=val)
    result = world.run(truth_of(val, (48, 64)), "correspondence", scale=1.0, matches=100)
    assert result.metrics["recall@5cm"].value == 100 and result.metrics["recall@1cm"].value > 97
    noise = world.run(noise_of(val, 0), "correspondence", scale=0.25)
    assert noise.metrics["recall"].value < 4 * noise.metrics["recall"].chance
    examples = result.examples
    assert len(examples) == 4 and all(e.picture.shape == e.truth.shape == e.answer.shape for e in examples)
    assert (examples[0].truth != examples[0].answer).any()  # the rings are green instead of white


def test_the_ratio_test_prefers_points_that_both_views_show(tmp_path):
    config = tabletop.Config(kind="tabletop", size=64, val=4, views=2)
    val = tabletop.open_split("tabletop", config, Path(), "val")
    world = World(tmp_path, val=val)
    few, all_ = (
        world.run(truth_of(val, (64, 64)), "correspondence", scale=1.0, matches=n).metrics["recall@1cm"].value
        for n in (50, 10**6)
    )
    assert few > all_ + 3


def test_a_pair_without_the_thing_is_left_out_and_told(world):
    split = world.val
    nothing = torch.full((3, 24, 32), torch.nan)
    world.val = replace(split, points=lambda i: nothing if i == 3 else split.points(i))
    result = world.run(truth_of(split), "correspondence", scale=0.5)
    assert result.metrics["recall"].n == result.facts["pairs"] == 2
    assert result.facts["pairs left out, the thing not in both"] == 1
    world.val = replace(split, points=lambda i: nothing)
    with pytest.raises(UserError, match="no pair of views/val shows the thing in both"):
        world.run(truth_of(split), "correspondence", scale=0.5)


def test_what_cannot_be_scored_is_said(world):
    split = world.val
    world.val = replace(split, view_pairs=[])
    with pytest.raises(UserError, match="views/val holds no pairs of views"):
        world.run(truth_of(split), "correspondence")
    with pytest.raises(UserError, match="data set 'world' has no object points"):
        World(world.folder).run(Noise(), "correspondence")
    with pytest.raises(ValueError, match="scale"):
        world.run(truth_of(split), "correspondence", scale=0)


# --- what both correspondence tasks share ----------------------------------------------------------------------------


def test_sampling_agrees_with_scipy():
    from scipy.ndimage import map_coordinates

    rng = torch_rng("sampled")
    features = torch.randn(4, 6, 8, generator=rng)
    places = torch.rand(30, 2, generator=rng) * torch.tensor([80.0, 30.0])
    cells = places.numpy()[:, ::-1].T * np.array([[6 / 30], [8 / 80]]) - 0.5  # a cell's number is its middle
    wanted = np.stack([map_coordinates(layer, cells, order=1, mode="nearest") for layer in features.numpy()], axis=1)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(sampled(features, places, (30, 80)), wanted, atol=1e-5)


def test_an_enlarged_map_keeps_every_place_where_it_was():
    """A ramp stays a ramp: the middle of a cell of the large grid has the value that lies there in the picture."""
    x = (torch.arange(8) + 0.5) / 8
    features = torch.stack([x.expand(4, 8), torch.ones(4, 8)])
    for mode, off in (("bilinear", 1e-5), ("bicubic", 0.006)):  # torch's bicubic bends a ramp a little
        large = enlarged(features, (8, 24), mode)
        torch.testing.assert_close(large.norm(dim=0), torch.ones(8, 24))
        wanted = ((torch.arange(24) + 0.5) / 24)[6:-6]
        torch.testing.assert_close((large[0] / large[1])[0, 6:-6], wanted, atol=off, rtol=0)


def test_spread_points_lie_far_apart():
    points = torch.rand(400, 2, generator=torch_rng("spread"))
    chosen = spread(points, 8)
    assert len(set(chosen.tolist())) == 8 and torch.pdist(points[chosen]).min() > 0.3
    assert sorted(spread(points[:3], 8).tolist()) == [0, 1, 2]
