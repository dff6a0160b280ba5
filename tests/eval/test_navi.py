"""NAVI layout: rendered scenes written as NAVI writes photographs come back with their own depth, points and pairs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from worlds import World

from eval.config import load_recipe
from eval.datasets import navi
from eval.feature_cache import View
from eval.tabletop.render import Scene, render
from teachers.errors import UserError

SIZE, SIDE, VIEWS = (96, 128), 48, 5


def scene(view: int) -> Scene:
    return render(0, "navi", 2, SIZE, view)


def note(view: int) -> dict:
    """The camera of a view as NAVI says it: object (here: world) → camera, millimetres."""
    picture = scene(view)
    x, y, z, w = Rotation.from_matrix(picture.rotation).as_quat()
    shift = -1000 * picture.rotation.astype(np.float64) @ picture.position
    camera = {"q": [w, x, y, z], "t": shift.tolist(), "focal_length": float(picture.intrinsics[0, 0])}
    return {"filename": f"{view:03d}.jpg", "image_size": list(SIZE), "camera": camera, "split": "val"}


def write_scene(folder: Path, views: range) -> None:
    for sub in ("images", "depth"):
        (folder / sub).mkdir(parents=True)
    for view in views:
        picture = scene(view)
        Image.fromarray(picture.image).save(folder / f"images/{view:03d}.jpg", quality=95)
        disparity = np.where(picture.instances == 1, 655.35 / picture.depth, 0)
        Image.fromarray(np.round(disparity).astype(np.uint16)).save(folder / f"depth/{view:03d}.png")
    (folder / "annotations.json").write_text(json.dumps([note(view) for view in reversed(views)]))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("navi")
    write_scene(root / "navi_v1/toy/wild_set", range(VIEWS))
    write_scene(root / "navi_v1/toy/multiview_00_pixel_5", range(2))
    write_scene(root / "navi_v1/toy/multiview-01-canon_t4i", range(1))
    (root / "navi_v1/toy/3d_scan").mkdir()
    return root


@pytest.fixture
def root(written, tmp_path) -> Path:
    """A copy that may be spoilt."""
    import shutil

    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path


def open_split(root: Path, part: str = "val", **changes):
    config = {"kind": "navi", "path": "navi_v1", "size": SIDE} | changes
    return navi.open_split("navi", navi.Config(**config), root, part)


def world_pixels(points: torch.Tensor, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points 3×H×W that are known → N×3, where the renderer's camera sees them (x, y), and their depth."""
    known = points.flatten(1).T.numpy()
    known = known[np.isfinite(known).all(axis=1)]
    return known, *scene(view).project(known)


def test_points_are_those_of_the_world_that_was_rendered(written):
    split = open_split(written)
    assert split.count == VIEWS and split.shape == (SIDE, SIDE)
    for view in range(VIEWS):
        points, depth = split.points(view), split.depth(view)
        assert torch.equal(points.isfinite().all(dim=0), depth.isfinite())
        known, places, deep = world_pixels(points, view)
        rows, columns = np.floor(places[:, 1]).astype(int), np.floor(places[:, 0]).astype(int)
        np.testing.assert_allclose(places, np.stack([columns, rows], axis=1) + 0.5, atol=0.02)  # centres of pixels
        wanted = scene(view).points()[rows, columns]
        assert (scene(view).instances[rows, columns] == 1).all()
        assert np.abs(known - wanted).max() < 1e-3  # the file's steps of depth are up to 0.8 mm here
        np.testing.assert_allclose(np.sort(deep), np.sort(depth[depth.isfinite()].numpy()), atol=1e-5)


def test_points_of_two_views_coincide(written):
    """What both views show lies in one place: a point of one, projected into the other, has that picture's depth."""
    split, compared = open_split(written), 0
    for first, second in ((0, 1), (1, 2), (3, 4)):
        known, _, _ = world_pixels(split.points(first), first)
        there = split.points(second).flatten(1).T
        there = there[there.isfinite().all(dim=1)].double()
        nearest = torch.cdist(torch.from_numpy(known).double(), there).amin(dim=1).numpy()
        shown = scene(second)
        image, deep = shown.project(known)
        columns, rows = np.floor(image).astype(int).T
        inside = (columns >= 0) & (columns < SIZE[1]) & (rows >= 0) & (rows < SIZE[0])
        rows, columns = rows.clip(0, SIZE[0] - 1), columns.clip(0, SIZE[1] - 1)
        both = inside & (shown.instances[rows, columns] == 1) & (np.abs(shown.depth[rows, columns] - deep) < 0.003)
        assert both.sum() > 50 and np.median(nearest[both]) < 0.005 and nearest[both].max() < 0.03
        compared += both.sum()
    assert compared > 500


def test_the_square_holds_the_whole_thing_and_the_picture_is_its(written):
    split = open_split(written)
    for view in range(VIEWS):
        picture, depth = scene(view), split.depth(view).isfinite()
        rows, columns = (np.flatnonzero((picture.instances == 1).any(axis=axis)) for axis in (1, 0))
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        assert depth.float().mean() == pytest.approx((picture.instances == 1).sum() / side**2, abs=0.02)
        assert depth[0].any() + depth[:, 0].any() >= 1  # it touches the square on its longer sides
        _, places, _ = world_pixels(split.points(view), view)
        inner = picture.image[np.floor(places[:, 1]).astype(int), np.floor(places[:, 0]).astype(int)]
        image = split.image(view)
        assert image.shape == (3, SIDE, SIDE) and image.dtype == torch.uint8
        shown = image[:, depth].T.float().numpy()
        assert np.abs(shown - inner).mean() < 12  # JPEG, and a bicubic resize beside a nearest pixel


@pytest.mark.parametrize("size", [SIDE, 96])  # fewer pixels than the files', and more
def test_normals_are_those_of_the_surface(written, size):
    split = open_split(written, size=size)
    for view in range(2):
        normals, known = split.normals(view), split.normals(view).isfinite().all(dim=0)
        _, places, _ = world_pixels(split.points(view), view)
        wanted = np.zeros((size, size, 3), np.float32)
        wanted[split.depth(view).isfinite().numpy()] = scene(view).normals[tuple(places.astype(int)[:, ::-1].T)]
        torch.testing.assert_close(normals[:, known].norm(dim=0), torch.ones(int(known.sum())))
        angle = torch.rad2deg((normals.movedim(0, 2) * torch.from_numpy(wanted))[known].sum(dim=1).clamp(-1, 1).acos())
        assert known.sum() > 0.2 * split.depth(view).isfinite().sum() and angle.median() < 8


def test_shrunk_files_and_those_of_full_size_show_the_same_points(root, written):
    folder = root / "navi_v1/toy/wild_set"
    for sub, how in (("images", Image.Resampling.BICUBIC), ("depth", Image.Resampling.NEAREST)):
        for file in (folder / sub).iterdir():
            Image.open(file).resize((SIZE[1] // 2, SIZE[0] // 2), how).save(file)
    small, large = open_split(root).points(0), open_split(written).points(0)
    small, large = (points.flatten(1).T[points.isfinite().all(dim=0).flatten()].double() for points in (small, large))
    assert torch.cdist(small, large).amin(dim=1).max() < 0.02 and torch.cdist(small, large).amin(dim=1).median() < 0.005


def test_pairs_are_of_one_scene_and_within_the_angle(written):
    split = open_split(written, every=1)
    assert [pair.first for pair in split.view_pairs] == list(range(VIEWS))
    for pair in split.view_pairs:
        first, second = (Rotation.from_matrix(scene(view).rotation) for view in (pair.first, pair.second))
        assert pair.angle == pytest.approx(np.degrees((first * second.inv()).magnitude()), abs=0.01)
        assert pair.first != pair.second
    again = [(pair.first, pair.second) for pair in open_split(written, every=1).view_pairs]
    assert again == [(pair.first, pair.second) for pair in split.view_pairs]
    assert [pair.first for pair in open_split(written, every=2).view_pairs] == [0, 2, 4]
    limit = sorted(pair.angle for pair in split.view_pairs)[1]
    assert all(pair.angle <= limit for pair in open_split(written, every=1, max_angle=limit).view_pairs)
    assert len(open_split(written, every=1, max_angle=0.01).view_pairs) == 0
    train = open_split(written, "train", every=1)  # 1 picture of one scene, 2 of another: the first has no partner
    assert train.count == 3 and [(pair.first, pair.second) for pair in train.view_pairs] == [(1, 2), (2, 1)]


def test_the_truth_is_found_again_by_the_task(written, tmp_path):
    from test_correspondence import truth_of

    split = open_split(written, every=1)
    world = World(tmp_path, val=split)
    metrics = world.run(truth_of(split, (SIDE, SIDE)), "correspondence", scale=1.0, matches=100).metrics
    assert metrics["recall@5cm"].value == 100 and metrics["recall@1cm"].value > 95


def test_a_limit_takes_some_pictures_and_identity_tells(written):
    whole, some = open_split(written), open_split(written, val_limit=3)
    assert some.count == 3 and len({whole.identity, some.identity, open_split(written, size=24).identity}) == 3
    assert whole.identity == open_split(written).identity


def test_depth_changed_in_place_is_another_truth_and_other_pictures(root):
    """The square that is shown lies around what the depth calls the object."""
    before, files = open_split(root), sorted(root.glob("navi_v1/toy/wild_set/depth/*.png"))
    os.utime(files[0], ns=(0, files[0].stat().st_mtime_ns + 1))
    after = open_split(root)
    assert after.identity == before.identity and after.truth_identity != before.truth_identity
    assert View(after, (32, 32), "crop").key != View(before, (32, 32), "crop").key
    notes = root / "navi_v1/toy/wild_set/annotations.json"
    status = notes.stat()
    notes.write_text(notes.read_text().replace("val", "VAL"))
    os.utime(notes, ns=(0, status.st_mtime_ns))
    assert open_split(root).truth_identity != after.truth_identity


def test_a_recipe_can_name_it(tmp_path):
    text = "data: {navi: {kind: navi, path: navi_v1}}\ntasks: {navi: {task: correspondence, data: navi, size: 512}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe, _ = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.datasets["navi"].size == 512 and recipe.task_settings["navi"].matches == 1000


def test_mistakes_are_said_with_their_path(root):
    with pytest.raises(UserError) as absent:
        open_split(root, path="none")
    assert all(word in str(absent.value) for word in (str(root / "none"), "annotations.json", "http", "--data-root"))
    with pytest.raises(UserError, match="holds no scene that begins with 'video'"):
        open_split(root, val="video")
    folder = root / "navi_v1/toy/wild_set"
    picture = np.zeros(SIZE, np.uint16)
    for pixels, complaint in [
        (picture, "depth/000.png is 0 everywhere"),
        (picture.astype(np.uint8), "depth/000.png is no 16-bit grey picture"),
        (picture[:, :96], "depth/000.png is 96×96, the annotation says 96×128"),
        (np.full((48, 64), 900, np.uint16), "images/000.jpg is 96×128, its depth 48×64"),
    ]:
        Image.fromarray(pixels).save(folder / "depth/000.png")
        navi._square.cache_clear()
        with pytest.raises(UserError, match=complaint):
            open_split(root).image(0)
    (folder / "depth/000.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="depth/000.png cannot be decoded"):
        open_split(root).depth(0)
    (folder / "depth/000.png").unlink()
    with pytest.raises(UserError, match="1 files are not there, such as .*depth/000.png"):
        open_split(root)
    wrong = note(0)
    del wrong["camera"]["q"]
    for text, complaint in [
        ("{", "annotations.json is not NAVI's: JSONDecodeError"),
        (json.dumps([wrong]), "annotations.json is not NAVI's: KeyError 'q'"),
        (json.dumps({"a": 1}), "annotations.json is not NAVI's: TypeError"),
    ]:
        (folder / "annotations.json").write_text(text)
        with pytest.raises(UserError, match=complaint):
            open_split(root)
