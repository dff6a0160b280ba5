"""Detection: COCO's own figures for any weights, a detector that finds what its features say, and clear refusals."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from worlds import Fake, World

from eval import average_precision as ap
from eval.datasets.split import Instances, Split
from eval.detector import Detector, cell_boxes, grid_at
from eval.tasks import TASKS, detection
from teachers.errors import UserError
from teachers.features import Dims, Features
from teachers.seeding import numpy_rng, torch_rng

KINDS, GRID, CELL = 3, (6, 8), 8
SIZE, SEEN = (96, 128), (GRID[0] * CELL, GRID[1] * CELL)  # pictures are twice as large as what the model sees


def things(rng: np.random.Generator, count: int, size=SIZE, sides=(12, 60), crowd: float = 0.0) -> Instances:
    """Boxes anywhere in a picture; areas as masks that fill 0.8 of their boxes would have."""
    extent = rng.uniform(*sides, (count, 2)).clip(max=(size[1], size[0]))
    corner = rng.uniform(0, 1, (count, 2)) * ((size[1], size[0]) - extent)
    return Instances(
        boxes=torch.from_numpy(np.concatenate([corner, corner + extent], axis=1)).float().reshape(-1, 4),
        classes=torch.from_numpy(rng.integers(0, KINDS, count)),
        masks=lambda: torch.zeros(count, *size, dtype=torch.bool),
        areas=torch.from_numpy(0.8 * extent.prod(axis=1)).float(),
        crowd=torch.from_numpy(rng.random(count) < crowd),
    )


# --- average precision ----------------------------------------------------------------------------------------------


def guesses(rng: np.random.Generator, truth: Instances, steps: int | None = None) -> ap.Detections:
    """Some things found, some moved, some missed, some invented; scores of so many steps, so that there are ties."""
    found = rng.random(len(truth.boxes)) < 0.8
    boxes = truth.boxes[found] + torch.from_numpy(rng.normal(0, 3, (found.sum(), 4))).float()
    boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1)
    invented = things(rng, rng.integers(0, 5), (200, 220), (10, 150))
    scores = rng.random(len(boxes) + len(invented.boxes))
    scores = scores if steps is None else np.round(scores * steps) / steps
    kinds = torch.cat([truth.classes[found], invented.classes])
    return ap.Detections(torch.cat([boxes, invented.boxes]), kinds, torch.from_numpy(scores))


def scene(seed: int, pictures: int = 20, steps: int | None = None) -> tuple[list[Instances], list[ap.Detections]]:
    """Pictures of 200×220 with things of every size, crowds, and some without anything."""
    rng = numpy_rng("scene", seed)
    truths = [things(rng, rng.integers(0, 6), (200, 220), (10, 150), crowd=0.1) for _ in range(pictures)]
    return truths, [guesses(rng, truth, steps) for truth in truths]


def oracle(truths, found, classes: int = KINDS) -> list[float]:
    """AP, AP50, AP75, and of small, medium and large things, from COCOeval alone."""
    evaluation: COCOeval = ap.match(truths, found, classes)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6].tolist()


def ours(truths, found, weights=None, classes: int = KINDS) -> list[float]:
    weights = np.ones(len(truths)) if weights is None else weights
    evaluation = ap.match(truths, found, classes)
    recalls = evaluation.params.recThrs
    values = {
        area: ap.average_precision(ap.matches(evaluation, area), np.atleast_2d(weights), recalls)[0]
        for area in ("all", "small", "medium", "large")
    }
    every = values["all"]
    return [np.nanmean(x) for x in (every, every[0], every[5], values["small"], values["medium"], values["large"])]


@pytest.mark.parametrize("steps", [None, 5])
def test_weights_of_one_give_cocos_figures(steps):
    for seed in range(4):
        truths, found = scene(seed, steps=steps)
        wanted = oracle(truths, found)
        assert min(wanted) > 0  # every size occurs, and something of it is found
        np.testing.assert_allclose(ours(truths, found), wanted, rtol=0, atol=1e-12)


def test_a_class_without_things_does_not_count():
    truths, found = scene(7)
    np.testing.assert_allclose(ours(truths, found, classes=9), oracle(truths, found, classes=9), rtol=0, atol=1e-12)


def test_a_weight_is_a_number_of_copies():
    truths, found = scene(5)
    for copies in ([2, *[1] * 19], [1, 1, 0, *[1] * 17], numpy_rng("copies").integers(0, 4, 20)):
        repeated = [[one for one, times in zip(many, copies) for _ in range(times)] for many in (truths, found)]
        np.testing.assert_allclose(ours(truths, found, np.array(copies)), oracle(*repeated), rtol=0, atol=1e-12)


def test_sets_of_weights_do_not_touch_each_other():
    truths, found = scene(6)
    evaluation = ap.match(truths, found, KINDS)
    weights = numpy_rng("sets").multinomial(20, np.full(20, 0.05), size=7)
    matches, recalls = ap.matches(evaluation, "all"), evaluation.params.recThrs
    together = ap.average_precision(matches, weights, recalls)
    assert together.shape == (7, 10, KINDS)
    for row, one in zip(weights, together):
        np.testing.assert_array_equal(ap.average_precision(matches, row[None], recalls)[0], one)


def test_everything_found_nothing_found_and_nothing_there(capsys):
    truths = scene(1)[0]
    truths = [replace(truth, crowd=torch.zeros_like(truth.crowd)) for truth in truths]
    perfect = [ap.Detections(one.boxes, one.classes, torch.ones(len(one.boxes))) for one in truths]
    nothing = [ap.Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))] * len(truths)
    assert ours(truths, perfect)[:3] == pytest.approx([1, 1, 1])
    assert ours(truths, nothing) == [0] * 6
    evaluation = ap.match(truths, perfect, KINDS)
    without = np.array([[float(not len(truth.boxes)) for truth in truths]])
    assert np.isnan(ap.average_precision(ap.matches(evaluation, "all"), without, evaluation.params.recThrs)).all()
    assert capsys.readouterr().out == ""


# --- the detector ---------------------------------------------------------------------------------------------------


def test_anchors_are_torchvisions_moved_to_the_centres_of_cells():
    images = ImageList(torch.zeros(1, 3, *SEEN), [SEEN])
    (corners,) = AnchorGenerator(((CELL,),), ((1.0,),))(images, [torch.zeros(1, 1, *GRID)])
    torch.testing.assert_close(cell_boxes(GRID, (CELL, CELL)), corners + CELL / 2)


def detector(grid, size, **changes) -> Detector:
    return Detector(5, grid, size, KINDS, **{"hidden": 32, "convs": 1, "levels": 3, "cells": 16} | changes)


@pytest.mark.parametrize(
    ("grid", "size", "grids", "finest"),
    [
        ((8, 8), (64, 64), [(16, 16), (8, 8), (4, 4)], 4),
        ((16, 16), (64, 64), [(16, 16), (8, 8), (4, 4)], 4),  # the same picture, sharpened: the same strides
        ((4, 3), (64, 48), [(16, 12), (8, 6), (4, 3)], 4),
        ((27, 18), (378, 252), [(27, 18), (14, 9), (7, 5)], 14),
        ((2, 2), (32, 32), [(8, 8), (4, 4), (2, 2)], 4),  # enlarged fourfold at most
    ],
)
def test_levels_follow_the_grid_up_to_the_cells_that_are_wanted(grid, size, grids, finest):
    model = detector(grid, size)
    assert [tuple(level.shape[2:]) for level in model.backbone(torch.randn(2, 5, *grid))] == grids
    assert model.strides == [(finest * 2.0**level,) * 2 for level in range(3)]
    assert model.cells == [h * w for h, w in grids] and len(model.anchors) == sum(model.cells)
    outputs = model(torch.randn(2, 5, *grid))
    assert outputs["cls_logits"].shape == (2, sum(model.cells), KINDS)
    assert [grid_at(grids[0], level) for level in range(3)] == grids
    assert model.eval().detect(torch.randn(2, 5, *grid))[1]["boxes"].shape[1] == 4


# --- the task -------------------------------------------------------------------------------------------------------


def make_split(part: str, count: int = 48, **changes) -> Split:
    """Pictures whose blue is their number; those of the training part are numbered from 128. Every sixth is empty."""
    first = 128 if part == "train" else 0
    truths = [truth_of(first + index) for index in range(count)]

    def image(index: int) -> torch.Tensor:
        return torch.full((3, *SIZE), first + index, dtype=torch.uint8)

    split = Split(
        data="world", part=part, count=count, identity=f"things-{part}-{count}", source="a test", image=image,
        instances=lambda index: truths[index], thing_names=("ball", "cube", "cone"), shape=SIZE,
    )  # fmt: skip
    return replace(split, **changes)


def truth_of(number: int) -> Instances:
    """Nothing, one thing on the left, or one on either side: no two overlap."""
    count = 0 if number % 6 == 5 else 1 + number % 2
    both = things(numpy_rng("detection", number), count, (SIZE[0], SIZE[1] // 2), (14, 56))
    return replace(
        both, boxes=both.boxes + torch.arange(count)[:, None] * torch.tensor([SIZE[1] // 2, 0, SIZE[1] // 2, 0])
    )


class Knows(Fake):
    """Each cell's features: the kind of the thing that it lies in, and where that thing's sides are."""

    def __init__(self, name: str = "knows", width: int = KINDS + 4):
        super().__init__(name, Dims(None, width))
        self.native_size = SEEN
        self.patch_size, self.resolution_flexible = CELL, False

    def see(self, pixels):
        return Features(None, torch.stack([self.map_of(int(n)) for n in pixels[:, 2, 0, 0].tolist()]))

    def map_of(self, number):
        truth, cells = truth_of(number), cell_boxes(GRID, (CELL, CELL))
        x, y = ((cells[:, :2] + cells[:, 2:]) / 2).unbind(1)
        result = torch.zeros(len(cells), KINDS + 4)
        for box, kind in zip(truth.boxes / 2, truth.classes):
            sides = torch.stack([x - box[0], y - box[1], box[2] - x, box[3] - y], dim=1)
            inside = sides.amin(dim=1) > 0
            result[inside] = torch.cat([2 * torch.eye(KINDS)[kind].expand(len(x), -1), sides / CELL], dim=1)[inside]
        return result.T.unflatten(1, GRID)


class Guesses(Knows):
    """Features that know nothing of the picture."""

    def map_of(self, number):
        return torch.randn(KINDS + 4, *GRID, generator=torch_rng("guesses", number))


QUICK = {"steps": 150, "batch": 12, "hidden": 32, "convs": 1, "levels": 1, "cells": 8, "lr": 1e-2}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, make_split("train", 96), make_split("val"))


def test_detection_of_the_truth_is_right_and_says_what_it_is(world, capsys):
    result = world.run(Knows(), "detection", **QUICK)
    assert capsys.readouterr().out == ""
    metrics = result.metrics
    assert metrics["AP50"].value > 80 and metrics["AP"].value > 35
    assert list(metrics) == ["AP", "AP50", "AP75", "AP small", "AP medium"]
    assert "no thing of that size" in result.facts["AP large"]
    assert [name for name, metric in metrics.items() if metric.counts] == ["AP"]
    for metric in metrics.values():
        assert (metric.direction, metric.unit, metric.chance, metric.n) == ("higher", "%", 0, 48)
        assert len(metric.resamples) == 200 and min(metric.resamples) < metric.value < max(metric.resamples)
    assert set(result.facts["AP of each class"]) == {"ball", "cube", "cone"} and result.facts["strides"][0] == [8, 8]
    assert len(result.examples) == 4
    for example in result.examples:  # pictures 0, 12, 24 and 36: each has a thing on the left
        assert example.picture.shape == example.truth.shape == example.answer.shape == (*SIZE, 3)
        assert (example.truth != example.picture).any()
    assert any((example.answer != example.picture).any() for example in result.examples)


def test_detection_of_noise_scores_about_nothing(world):
    metrics = world.run(Guesses("guesses"), "detection", **QUICK).metrics
    assert metrics["AP"].value < 2 and metrics["AP50"].value < 5


def test_the_figure_is_cocos_own_on_the_pictures_own_pixels(world, monkeypatch):
    seen = {}
    judge = detection.judge

    def spy(truths, found, split):
        seen["wanted"] = [100 * value for value in oracle(truths, found)]
        return judge(truths, found, split)

    monkeypatch.setattr(detection, "judge", spy)
    quick = QUICK | {"steps": 30}
    first = world.run(Knows(), "detection", **quick).metrics
    values = [metric.value for metric in first.values()]
    np.testing.assert_allclose(values, seen["wanted"][:5], atol=1e-9)
    assert seen["wanted"][5] == -100  # COCOeval's word for: no such thing
    again = world.run(Knows(), "detection", **quick).metrics
    other = world.run(Knows(), "detection", seed=1, **quick).metrics
    assert again["AP"] == first["AP"] != other["AP"]


def test_boxes_are_scaled_to_what_the_model_sees_and_crowds_are_not_learnt():
    truth = replace(things(numpy_rng("crowd"), 3), crowd=torch.tensor([False, True, False]))
    target = detection.target(truth, SIZE, SEEN)
    torch.testing.assert_close(target["boxes"], truth.boxes[[0, 2]] / 2)
    assert target["labels"].tolist() == truth.classes[[0, 2]].tolist()
    torch.testing.assert_close(
        detection.scale(truth.boxes, (96, 128), (48, 256)), truth.boxes * torch.tensor([2, 0.5]).repeat(2)
    )


def test_the_size_of_a_picture_is_read_where_nobody_says_it():
    truth = truth_of(0)
    split = make_split("val", 2)
    unknown = replace(split, shape=None, image=lambda index: torch.zeros(3, 10 + index, 20, dtype=torch.uint8))
    assert detection.size_of(split, 1, truth) == SIZE
    assert detection.size_of(unknown, 1, truth) == (11, 20)
    assert detection.size_of(unknown, 1, replace(truth, size=(5, 6))) == (5, 6)


def test_detection_refuses_what_it_cannot_score(world):
    nothing = things(numpy_rng("none"), 0)
    world.train = make_split("train", 96, instances=lambda index: nothing)
    with pytest.raises(UserError, match="no thing in any picture of world/train"):
        world.run(Knows(), "detection", **QUICK)
    world.train = make_split("train", 96, thing_names=("cube", "ball", "cone"))
    with pytest.raises(UserError, match="world/train and world/val have different classes"):
        world.run(Knows(), "detection", **QUICK)
    world.train = make_split("train", 96, instances=None)
    with pytest.raises(UserError, match="has no instances"):
        world.run(Knows(), "detection", **QUICK)
    with pytest.raises(ValueError, match="multiple of 32"):
        detection.Settings(task="detection", data="world", hidden=48)


def test_a_loss_that_is_no_number_is_told(world):
    world.train = make_split("train", 96)
    with pytest.raises(UserError, match="loss is (nan|inf)"):
        world.run(Knows(), "detection", **QUICK | {"lr": 1e15})


def test_detection_is_registered_and_stands_beside_the_groups():
    assert (
        TASKS["detection"] is detection
        and not detection.COUNTS
        and detection.Settings.model_fields["seeds"].default == [0]
    )
