"""The tabletop as a data set: every truth of a split is the scene's own, and views of one scene share their points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.datasets import tabletop
from eval.datasets.split import TRUTHS
from eval.tabletop.kinds import KINDS, PART_NAMES, SEMANTIC_NAMES
from eval.tabletop.render import render


def split(**changes):
    config = tabletop.Config(kind="tabletop", **({"size": [48, 64], "train": 3, "val": 4, "seed": 5} | changes))
    return tabletop.open_split("world", config, Path(), "val")


@pytest.mark.parametrize("index", range(4))
def test_every_truth_is_the_scenes_own(index):
    world, scene = split(), render(5, "eval-val", index, (48, 64))
    np.testing.assert_array_equal(world.image(index).permute(1, 2, 0), scene.image)
    assert KINDS[world.label(index)] == scene.kind
    for kind in ("parts", "saliency"):
        np.testing.assert_array_equal(getattr(world, kind)(index), getattr(scene, kind).astype(int))
    np.testing.assert_array_equal(world.mask(index), scene.semantic)
    np.testing.assert_array_equal(world.boundary(index), scene.boundaries.astype(int))
    np.testing.assert_array_equal(world.depth(index), scene.depth)
    np.testing.assert_allclose(world.normals(index).permute(1, 2, 0), scene.normals, atol=1e-3)
    assert [(q.text, q.answers[0]) for q in world.questions(index)] == scene.questions
    points = world.points(index).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.isnan(points[..., 0]), scene.instances == 0)
    np.testing.assert_allclose(points[scene.instances > 0], scene.points()[scene.instances > 0], atol=1e-5)


def test_things_have_the_boxes_masks_and_areas_of_the_scene():
    world, scene = split(), render(5, "eval-val", 1, (48, 64))
    things = world.instances(1)
    assert len(things.boxes) == sum((scene.instances == i + 1).any() for i in range(len(scene.things))) > 1
    masks = things.masks()
    assert masks.shape == (len(things.boxes), 48, 64) and torch.equal(masks.flatten(1).sum(1).float(), things.areas)
    for box, mask, kind in zip(things.boxes.long(), masks, things.classes):
        x0, y0, x1, y1 = box.tolist()
        assert mask[y0:y1, x0:x1].sum() == mask.sum() and mask[y0].any() and mask[:, x1 - 1].any()
        assert KINDS[kind] in {thing.kind for thing in scene.things}
    assert not things.crowd.any()


def test_all_that_the_tabletop_knows_can_be_asked():
    world = split(views=2)
    assert all(world.truth(kind) is not None for kind in TRUTHS)
    assert world.thing_names == world.class_names == KINDS
    assert (world.mask_names, world.part_names) == (SEMANTIC_NAMES, PART_NAMES)


def test_views_are_pictures_of_one_scene_in_one_frame():
    world = split(views=2)
    assert world.count == 8 and world.identity != split().identity
    assert not torch.equal(world.image(2), world.image(3)) and world.label(2) == world.label(3)
    np.testing.assert_array_equal(world.image(3).permute(1, 2, 0), render(5, "eval-val", 1, (48, 64), view=1).image)
    first, second = (world.points(i).flatten(1).T for i in (2, 3))
    first, second = (points[~points.isnan().any(dim=1)] for points in (first, second))
    nearest = torch.cdist(first.double(), second.double()).amin(dim=1)
    assert nearest.median() < 0.02  # metres: much of what one view sees, the other sees too
