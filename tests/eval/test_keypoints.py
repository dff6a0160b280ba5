"""Keypoints: the truth is found everywhere, noise scores chance, PCK and chance agree with what is counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from known import Known
from torch.nn import functional as F
from worlds import Noise, World

from eval.datasets import tabletop
from eval.datasets.split import KeypointPair, Split
from eval.tabletop.pairs import TURNS
from eval.tabletop.render import render
from eval.tasks import keypoints
from teachers.errors import UserError
from teachers.seeding import numpy_rng, torch_rng

CELLS, CELL = (6, 8), 4
SIZE = (CELLS[0] * CELL, CELLS[1] * CELL)


def make_pairs(count: int = 10) -> tuple[Split, list[torch.Tensor]]:
    """Pictures of 6×8 different cells, each pair's second with the cells of its first in another order; and maps that
    tell the cells apart."""
    rng, maps, pairs = torch_rng("keypoints"), [], []
    for number in range(count):
        own = torch.randn(96, CELLS[0] * CELLS[1], generator=rng)
        order = torch.randperm(own.shape[1], generator=rng)
        maps += [own.unflatten(1, CELLS), own[:, order].unflatten(1, CELLS)]
        chosen = torch.randperm(own.shape[1], generator=rng)[: 2 + number % 4]
        landed = order.argsort()[chosen]
        source, target = (middle(cells) for cells in (chosen, landed))
        other = torch.full_like(target, torch.nan)  # where one place is right, the second is none
        scale, name = 10.0 + 5 * (number % 3), "even" if number % 5 else "odd"
        pairs.append(KeypointPair(2 * number, 2 * number + 1, source, torch.stack([other, target], 1), scale, name))
    split = Split(
        data="keypoints", part="val", count=2 * count, identity="keypoints", source="a test", shape=SIZE,
        image=lambda i: torch.full((3, *SIZE), i, dtype=torch.uint8), keypoint_pairs=pairs,
    )  # fmt: skip
    return split, maps


def middle(cells: torch.Tensor) -> torch.Tensor:
    return CELL * (torch.stack([cells % CELLS[1], cells // CELLS[1]], dim=1) + 0.5)


def noise_of(split: Split, seed: int) -> Known:
    rng = torch_rng("noise", seed)
    return Known(split, [torch.randn(16, *CELLS, generator=rng) for _ in range(split.count)], f"noise {seed}")


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path, val=make_pairs()[0])


def test_the_truth_finds_every_keypoint(world):
    encoder = Known(*make_pairs())
    for scale, alpha in (
        (0.25, 0.1),
        (1.0, 0.25),
    ):  # the map's own grid, and one of pixels
        result = world.run(encoder, "keypoints", scale=scale, alpha=alpha)
        assert {name: metric.value for name, metric in result.metrics.items()} == {
            f"PCK@{alpha:.2f}": 100, f"PCK@{alpha:.2f} of keypoints": 100,
        }  # fmt: skip
    assert [metric.counts for metric in result.metrics.values()] == [True, False]
    assert result.metrics["PCK@0.25"].n == 10 and result.facts["PCK"] == {"even": 100, "odd": 100}
    assert len(result.examples) == 4


def test_noise_scores_chance(world):
    runs = [world.run(noise_of(world.val, seed), "keypoints", alpha=0.5).metrics for seed in range(40)]
    assert 2 < runs[0]["PCK@0.50"].chance < 40
    for name in runs[0]:
        values, chance = [metrics[name].value for metrics in runs], runs[0][name].chance
        assert abs(np.mean(values) - chance) < 4 * np.std(values) / np.sqrt(len(values)), name


def test_pck_and_chance_agree_with_counting(world):
    """Answers, radii and means again, in loops over pixels, pairs and categories."""
    split, maps = world.val, make_pairs()[1]
    rng = torch_rng("wrong")
    maps = [m + 3.0 * torch.randn(m.shape, generator=rng) for m in maps]
    found = world.run(Known(split, maps, "blurred"), "keypoints", alpha=0.6).metrics
    shares: dict[str, list] = {}
    randoms: dict[str, list] = {}
    for pair in split.keypoint_pairs:
        first, second = (F.normalize(maps[i], dim=0).flatten(1) for i in (pair.first, pair.second))
        for source, targets in zip(pair.source.tolist(), pair.targets):
            cell = int(source[1] // CELL) * CELLS[1] + int(source[0] // CELL)
            best = int((first[:, cell] @ second).argmax())
            near = [
                any(np.hypot(*(middle(torch.tensor([c]))[0] - t).tolist()) <= 0.6 * pair.scale for t in targets[1:])
                for c in range(CELLS[0] * CELLS[1])
            ]
            shares.setdefault((pair.category, pair.first), []).append(near[best])
            randoms.setdefault((pair.category, pair.first), []).append(np.mean(near))
    for values, attribute in ((shares, "value"), (randoms, "chance")):
        by_pair = [np.mean([np.mean(v) for (c, _), v in values.items() if c == name]) for name in ("even", "odd")]
        pooled = [np.mean(np.concatenate([v for (c, _), v in values.items() if c == name])) for name in ("even", "odd")]
        assert getattr(found["PCK@0.60"], attribute) == pytest.approx(100 * np.mean(by_pair))
        assert getattr(found["PCK@0.60 of keypoints"], attribute) == pytest.approx(100 * np.mean(pooled))
    assert 20 < found["PCK@0.60"].value < 99  # neither all nor none, or nothing was compared


def test_any_of_the_places_that_are_equally_right_counts():
    targets = torch.tensor([[[10.0, 10.0], [30.0, 20.0]], [[10.0, 10.0], [torch.nan, torch.nan]]])
    pair = KeypointPair(0, 1, torch.zeros(2, 2), targets, 20.0, "cube")
    places = torch.tensor([[31.0, 21.0], [31.0, 21.0]])
    assert keypoints.hits(places, pair, 0.1).tolist() == [True, False]
    assert keypoints.hits(places - 1.0, pair, 0.1).tolist() == [True, False]
    assert keypoints.hits(places + 1.0, pair, 0.1).tolist() == [False, False]  # √8 pixels away, 2 are right


def test_chance_is_the_area_of_the_circles_within_the_picture():
    """Two circles that overlap, and one that the corner cuts: against points thrown at the picture."""
    targets = torch.tensor([[[50.0, 40.0], [58.0, 40.0]], [[2.0, 3.0], [torch.nan, torch.nan]]])
    pair = KeypointPair(0, 1, torch.zeros(2, 2), targets, 120.0, "cube")
    thrown = numpy_rng("thrown").uniform((0, 0), (120, 80), (200_000, 2))
    share = keypoints.chance(pair, (80, 120), 1.0, 0.1)
    for got, places in zip(share, targets.numpy()):
        near = [np.hypot(*(thrown - place).T) <= 12 for place in places if np.isfinite(place).all()]
        assert float(got) == pytest.approx(np.mean(np.any(near, axis=0)), rel=0.05)


def test_pictures_of_any_shape_are_asked_in_their_own_pixels(tmp_path):
    """The model sees both pictures stretched to 24×32; keypoints and answers stay in pixels of 48×32 and 12×96."""
    split, maps = make_pairs(1)
    sizes = [(48, 32), (12, 96)]
    pair = split.keypoint_pairs[0]
    to = [torch.tensor([size[1] / SIZE[1], size[0] / SIZE[0]]) for size in sizes]
    moved = replace(pair, source=pair.source * to[0], targets=pair.targets * to[1], scale=40.0)
    other = replace(
        split, shape=None, keypoint_pairs=[moved], identity="stretched",
        image=lambda i: torch.full((3, *sizes[i]), i, dtype=torch.uint8),
    )  # fmt: skip
    metrics = World(tmp_path, val=other).run(Known(split, maps), "keypoints", scale=1.0, alpha=0.15).metrics
    assert metrics["PCK@0.15"].value == 100 and metrics["PCK@0.15"].chance < 10


def test_so_many_pairs_of_each_category_are_drawn_once(world):
    pairs = world.val.keypoint_pairs
    some = keypoints.selected(pairs, 2)
    assert [pair.category for pair in some].count("odd") == [pair.category for pair in some].count("even") == 2
    assert [id(pair) for pair in some] == [id(pair) for pair in keypoints.selected(pairs, 2)]
    assert keypoints.selected(pairs, None) == pairs
    empty = replace(pairs[0], source=torch.zeros(0, 2), targets=torch.zeros(0, 1, 2))
    assert keypoints.selected([empty, *pairs[1:3]], None) == pairs[1:3]
    assert world.run(Known(*make_pairs()), "keypoints", per_class=2).metrics["PCK@0.10"].n == 4


def test_a_resample_without_a_category_is_the_mean_of_the_others():
    sums = np.array([[[1.0, 4.0], [3.0, 4.0]], [[2.0, 4.0], [0.0, 0.0]]])
    np.testing.assert_allclose(keypoints.class_mean(sums), [50, 50])


def test_what_cannot_be_scored_is_said(world):
    world.val = replace(world.val, keypoint_pairs=[])
    with pytest.raises(UserError, match="keypoints/val holds no pair with keypoints"):
        world.run(noise_of(world.val, 0), "keypoints")
    with pytest.raises(UserError, match="data set 'world' has no pairs with keypoints"):
        World(world.folder).run(Noise(), "keypoints")


def test_on_the_tabletop_the_truth_is_found_and_noise_is_chance(tmp_path):
    """Features that are the main thing's own coordinates, alike under its symmetry."""
    config = tabletop.Config(kind="tabletop", size=64, val=40)
    val = tabletop.open_split("tabletop", config, Path(), "val")
    world, maps = World(tmp_path, val=val), []
    for index in range(val.count):
        scene = render(0, "eval-val", index, 64)
        x, y, z = torch.from_numpy(np.where((scene.instances == 1)[..., None], scene.coordinates, np.nan)).movedim(2, 0)
        radius, turn = torch.hypot(x, y), TURNS.get(scene.kind, 1) * torch.atan2(y, x)
        own = torch.stack([radius * torch.cos(turn), radius * torch.sin(turn), z])
        there = own.isfinite().all(dim=0)
        off = torch.tensor([0.0, 0, 0, -4])[:, None, None]
        maps.append(torch.where(there, torch.cat([own, torch.full((1, 64, 64), 4.0)]), off))
    truth = world.run(Known(val, maps, "own"), "keypoints", scale=1.0)
    assert len(val.keypoint_pairs) >= 30 and truth.metrics["PCK@0.10"].value > 95
    rng = torch_rng("noise")
    noise = [
        world.run(Known(val, [torch.randn(8, 16, 16, generator=rng) for _ in maps], f"n{i}"), "keypoints", scale=0.25)
        for i in range(6)
    ]
    values, tries = [run.metrics["PCK@0.10"].value for run in noise], 6 * 8 * len(val.keypoint_pairs)
    share = noise[0].metrics["PCK@0.10"].chance / 100
    assert abs(np.mean(values) - 100 * share) < 4 * 100 * np.sqrt(share * (1 - share) / tries)
