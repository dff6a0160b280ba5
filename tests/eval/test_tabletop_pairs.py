"""Pairs on the tabletop: paired pixels show the same point of the world, or of the kind's own frame."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.datasets import tabletop
from eval.datasets.split import Split
from eval.tabletop.kinds import KIND, KINDS
from eval.tabletop.pairs import FEWEST, KEYPOINTS, TURNS
from eval.tabletop.render import Scene, render
from eval.tabletop.trace import Thing, camera_towards, first_hits

SIZE = (80, 96)


def split(**changes) -> Split:
    config = tabletop.Config(kind="tabletop", **({"size": SIZE, "val": 60, "seed": 3} | changes))
    return tabletop.open_split("tabletop", config, Path(), "val")


@cache
def scene(index: int) -> Scene:
    return render(3, "eval-val", index, SIZE)


@pytest.fixture(scope="module")
def pairs():
    return list(split().keypoint_pairs)


def turned(points: np.ndarray, yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T


def test_keypoints_are_of_main_things_of_one_kind_in_two_scenes(pairs):
    assert len(pairs) > 30 and {pair.category for pair in pairs} == set(TURNS)
    assert not any(KIND[pair.category].round for pair in pairs)
    assert set(TURNS) == {name for name in KINDS if not KIND[name].round}
    for pair in pairs:
        assert pair.first != pair.second and scene(pair.first).kind == scene(pair.second).kind == pair.category
        assert FEWEST <= len(pair.source) <= KEYPOINTS
        assert pair.targets.shape == (len(pair.source), TURNS[pair.category], 2)
        x0, y0, x1, y1 = scene(pair.second).boxes[0]
        assert pair.scale == max(x1 - x0, y1 - y0)


def test_each_place_shows_the_point_of_the_own_frame_that_the_source_shows(pairs):
    """The renderer's own coordinates at the source, turned, projected by the second scene: exactly the place, and what
    is rendered there has those coordinates."""
    gaps, places, hidden = [], 0, 0
    for pair in pairs:
        first, second, fold = scene(pair.first), scene(pair.second), TURNS[pair.category]
        thing = second.things[0]
        for source, targets in zip(pair.source.numpy(), pair.targets.numpy()):
            column, row = (source - 0.5).astype(int)
            assert first.instances[row, column] == 1 and np.array_equal(source, [column + 0.5, row + 0.5])
            own = first.coordinates[row, column].astype(np.float64)
            for step, target in enumerate(targets):
                point = turned(own, 2 * np.pi * step / fold)
                where, depth = second.project(point * thing.scale @ thing.rotation.T + thing.position)
                x, y = np.floor(where).astype(int)
                if np.isnan(target).any():
                    inside = 0 <= x < SIZE[1] and 0 <= y < SIZE[0] and second.instances[y, x] == 1
                    assert not inside or abs(depth - second.depth[y, x]) > 0.0039
                    hidden += 1
                    continue
                np.testing.assert_allclose(target, where, atol=0.01)
                assert second.instances[y, x] == 1
                gaps.append(np.linalg.norm(second.coordinates[y, x] - point))
                places += 1
    # A pixel is about 0.06 of a unit wide here, and more of a surface that is seen aslant.
    assert places > 300 and hidden > 300 and np.median(gaps) < 0.05 and np.max(gaps) < 0.4


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_looks_the_same_after_its_turns_and_after_no_smaller_one(name):
    """Depth of the bare shape, seen from above, under the turn; half of it must look different."""
    kind = KIND[name]
    y, x = np.mgrid[:64, :64].reshape(2, -1).astype(np.float32) + 0.5

    def depth(yaw: float) -> np.ndarray:
        thing = Thing(name, "red", "matte", "large", 0.15, np.array([0, 0, -kind.bottom * 0.15], np.float32), yaw)
        camera = camera_towards(thing.position, 0.3, 0.8, 0.7, 0.0, 1.25)
        return first_hits([thing], camera.position, camera.rays(x, y, 64, 64)).distance

    fold = TURNS.get(name, 1)
    same, other = np.abs(depth(0.2 + 2 * np.pi / fold) - depth(0.2)), np.abs(depth(0.2 + np.pi / fold) - depth(0.2))
    assert (same > 1e-3).mean() < 0.001  # rounding may move an edge over a pixel
    assert ((other > 1e-3).mean() < 0.001) == kind.round


def test_views_are_paired_with_the_first_and_their_cameras_turn():
    world = split(views=3, val=4)
    assert [(pair.first, pair.second) for pair in world.view_pairs] == [
        (3 * i, 3 * i + view) for i in range(4) for view in (1, 2)
    ]
    for pair in world.view_pairs:
        first, second = (render(3, "eval-val", i // 3, SIZE, i % 3) for i in (pair.first, pair.second))
        relative = second.rotation.astype(np.float64) @ first.rotation.T
        axis = [relative[2, 1] - relative[1, 2], relative[0, 2] - relative[2, 0], relative[1, 0] - relative[0, 1]]
        sine = np.linalg.norm(axis) / 2
        assert pair.angle == pytest.approx(np.degrees(np.arctan2(sine, (np.trace(relative) - 1) / 2)), abs=1e-3)
    assert split().view_pairs is None


def test_keypoints_of_a_split_with_views_pair_scenes_and_not_views():
    world = split(views=2, val=20)
    assert len(world.keypoint_pairs) > 5
    assert all(pair.first // 2 != pair.second // 2 for pair in world.keypoint_pairs)
    assert {pair.first % 2 for pair in world.keypoint_pairs} == {0, 1}


def test_pairs_are_the_same_every_time_and_made_when_asked_for(monkeypatch):
    tabletop._keypoint_pairs.cache_clear()
    made = []
    whole = tabletop._keypoint_pairs
    monkeypatch.setattr(tabletop, "_keypoint_pairs", lambda *which: made.append(which) or whole(*which))
    first = split(val=12)
    assert not made
    before = first.keypoint_pairs[0]
    whole.cache_clear()
    again = split(val=12).keypoint_pairs[0]
    assert made and before is not again and torch.equal(before.source, again.source)
    other = split(val=12, seed=4).keypoint_pairs[0]
    assert before.source.shape != other.source.shape or not torch.equal(before.source, other.source)


def test_a_part_too_small_for_pairs_has_none():
    assert len(split(val=1).keypoint_pairs) == 0
