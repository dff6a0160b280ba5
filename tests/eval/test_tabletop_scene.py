"""Scenes: the same everywhere, and every label true to the geometry."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from eval.tabletop.kinds import COLOURS, KIND, KINDS, PART_NAMES, SEMANTIC_NAMES, part_ids
from eval.tabletop.layout import draw
from eval.tabletop.render import Scene, render

COUNT = 24


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render(7, "test", index) for index in range(COUNT)]


def test_a_scene_depends_on_seed_split_and_index_alone(scenes):
    again = render(7, "test", 3)
    for field in fields(Scene):
        if field.name != "things":
            np.testing.assert_equal(getattr(again, field.name), getattr(scenes[3], field.name))


def test_no_two_scenes_of_any_split_or_seed_are_equal(scenes):
    others = [render(seed, split, i) for seed, split in ((7, "train"), (8, "test")) for i in range(COUNT // 2)]
    assert len({scene.image.tobytes() for scene in [*scenes, *others]}) == COUNT + len(others)


@pytest.mark.parametrize("size", [48, (96, 128), (160, 96)])
def test_size_changes_the_sampling_and_not_the_scene(scenes, size):
    for scene in scenes[:4]:
        other = render(7, "test", scene.index, size)
        shape = (size, size) if isinstance(size, int) else size
        assert other.image.shape == (*shape, 3) and other.depth.shape == shape
        assert other.captions == scene.captions and other.label == scene.label
        # The middle of the picture shows the same point of the world, to within a pixel.
        middle = scene.depth[63:65, 63:65].mean()
        assert other.depth[shape[0] // 2, shape[1] // 2] == pytest.approx(middle, rel=0.05)


def test_the_main_thing_is_the_class_and_covers_most_in_both_views(scenes):
    for scene in scenes:
        second = render(7, "test", scene.index, view=1)
        assert second.kind == scene.kind == scene.things[0].kind == KINDS[scene.label]
        for view in (scene, second):
            areas = np.bincount(view.instances.ravel(), minlength=len(view.things) + 1)[1:]
            assert areas.argmax() == 0 and areas[0] > 0.02 * view.instances.size and areas.min() > 0
            np.testing.assert_array_equal(view.saliency, view.instances == 1)


def test_masks_partition_the_picture(scenes):
    for scene in scenes:
        background = scene.instances == 0
        assert set(np.unique(scene.semantic[background])) <= {0, 1}
        np.testing.assert_array_equal(scene.parts == 0, background)
        assert np.isnan(scene.coordinates[background]).all() and np.isfinite(scene.coordinates[~background]).all()
        for number, thing in enumerate(scene.things, start=1):
            mine = scene.instances == number
            assert {SEMANTIC_NAMES[i] for i in np.unique(scene.semantic[mine])} == {thing.kind}
            assert set(np.unique(scene.parts[mine])) <= set(part_ids(thing.shape))
    assert {PART_NAMES[i] for scene in scenes for i in np.unique(scene.parts)} > {"mushroom cap", "mushroom stem"}


def test_boundaries_are_where_a_lower_or_right_neighbour_differs(scenes):
    scene = scenes[0]
    codes = np.where(scene.instances > 0, 10 + scene.instances, scene.semantic)
    for row, column in np.random.default_rng(0).integers(0, 127, (400, 2)):
        here = codes[row, column]
        expected = here != codes[row + 1, column] or here != codes[row, column + 1]
        assert scene.boundaries[row, column] == expected


def test_boxes_are_tight(scenes):
    for scene in scenes:
        for number, (x0, y0, x1, y1) in enumerate(scene.boxes, start=1):
            mine = scene.instances == number
            assert mine.sum() == mine[y0:y1, x0:x1].sum()
            edges = (mine[y0, x0:x1], mine[y1 - 1, x0:x1], mine[y0:y1, x0], mine[y0:y1, x1 - 1])
            assert all(edge.any() for edge in edges)


def test_depth_and_own_coordinates_name_the_same_points(scenes):
    for scene in scenes:
        points = scene.points()
        for number, thing in enumerate(scene.things, start=1):
            mine = scene.instances == number
            world = scene.coordinates[mine] * thing.scale @ thing.rotation.T + thing.position
            np.testing.assert_allclose(points[mine], world, atol=1e-5)
        np.testing.assert_allclose(points[scene.semantic == 0][:, 2], 0, atol=1e-5)  # the table
        assert (points[..., 2] > -1e-5).all()


def test_projecting_a_pixels_point_gives_the_pixel_back(scenes):
    image, depth = scenes[2].project(scenes[2].points())
    y, x = np.mgrid[:128, :128] + 0.5
    np.testing.assert_allclose(image, np.stack([x, y], -1), atol=1e-3)
    np.testing.assert_allclose(depth, scenes[2].depth, rtol=1e-5)


def test_normals_are_unit_face_the_camera_and_stand_on_the_surface(scenes):
    for scene in scenes:
        assert np.abs(np.linalg.norm(scene.normals, axis=-1) - 1).max() < 1e-4
        rays = (scene.points() - scene.position) @ scene.rotation.T
        assert ((scene.normals * rays).sum(-1) < 1e-3).all()
        chord = np.diff(scene.points(), axis=1) @ scene.rotation.T  # from each pixel to its right neighbour
        n = (scene.normals[:, 1:] + scene.normals[:, :-1]) / 2
        slope = np.abs((chord * n).sum(-1)) / np.linalg.norm(chord, axis=-1)
        same = (scene.parts[:, 1:] == scene.parts[:, :-1]) & ~scene.boundaries[:, :-1]
        smooth = same & ((scene.normals[:, 1:] * scene.normals[:, :-1]).sum(-1) > 0.9)
        assert np.quantile(slope[smooth], 0.99) < 0.02


def test_a_point_seen_in_two_views_has_the_same_coordinates(scenes):
    matched = 0
    for scene in scenes[:8]:
        second = render(7, "test", scene.index, view=1)
        assert not np.allclose(second.position, scene.position)
        image, depth = second.project(scene.points())
        column, row = np.floor(image[..., 0]).astype(int), np.floor(image[..., 1]).astype(int)
        within = (column >= 0) & (column < 128) & (row >= 0) & (row < 128)
        column, row = column.clip(0, 127), row.clip(0, 127)
        both = within & (scene.instances > 0) & (second.instances[row, column] == scene.instances)
        both &= np.abs(second.depth[row, column] - depth) < 0.004
        gap = np.linalg.norm(second.coordinates[row, column] - scene.coordinates, axis=-1)[both]
        matched += len(gap)
        # Half a pixel is 0.003 m, or 0.03 of a unit, and several times that where a surface is seen aslant.
        assert np.median(gap) < 0.04 and gap.max() < 0.25
    assert matched > 4000


def test_things_stand_on_the_table_and_never_in_each_other():
    for index in range(100):
        things = draw(1, "test", index)[0].things
        for i, thing in enumerate(things):
            assert thing.position[2] == pytest.approx(-KIND[thing.kind].bottom * thing.scale)
            for other in things[:i]:
                gap = np.linalg.norm(thing.position[:2] - other.position[:2])
                assert gap > thing.shape.footprint * thing.scale + other.shape.footprint * other.scale


@pytest.mark.parametrize("name", KINDS)
def test_a_kinds_bounds_hold_its_solids(name):
    kind = KIND[name]
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 3000))
    start *= 4 / np.linalg.norm(start, axis=0)
    d = rng.uniform(-1.5, 1.5, (3, 3000)) - start
    start, d = start.astype(np.float32), (d / np.linalg.norm(d, axis=0)).astype(np.float32)
    for part in kind.parts:
        t = part.solid.hit(start, d, 0.0)
        p = (start + np.where(np.isfinite(t), t, 0) * d)[:, np.isfinite(t)]
        assert p.shape[1] > 20
        assert np.linalg.norm(p, axis=0).max() <= kind.reach + 1e-3
        assert np.hypot(p[0], p[1]).max() <= kind.footprint + 1e-3
        assert p[2].min() >= kind.bottom - 1e-3


def test_the_picture_shows_the_colour_that_is_named(scenes):
    """The main thing's middle shade has a hue nearer to its colour's than to any other's (grey ones apart)."""
    hued = {name: np.array(rgb) / sum(rgb) for name, rgb in COLOURS.items() if name not in ("white", "black")}
    right = []
    for index in range(60):
        scene = render(9, "test", index, 64)
        if scene.things[0].colour in hued:
            primary = part_ids(scene.things[0].shape)[0]
            pixels = scene.image[(scene.instances == 1) & (scene.parts == primary)].astype(float)
            shade = np.median(pixels, axis=0)
            near = min(hued, key=lambda name: np.abs(hued[name] - shade / shade.sum()).sum())
            right.append(near == scene.things[0].colour)
    assert len(right) > 25 and np.mean(right) > 0.85
