"""Frozen feature maps and boxes → COCO's average precision of a small detector on them.

Shapes: N pictures, D width, h w grid, K classes, R resamples.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from eval import average_precision as ap
from eval.datasets.split import Instances, Split
from eval.detector import GROUPS, Detector
from eval.feature_cache import Stored
from eval.paint import paint_boxes, picture
from eval.probes import TrainSettings, train
from eval.resampling import counts
from eval.scores import MetricScore
from eval.tasks.task import Context, Example, Result, alone, chosen, maps_of
from teachers.errors import UserError
from teachers.features import Size
from teachers.seeding import seeded

VERSION = 1
GROUP = "Detection"
COUNTS = False
SEEDED = True
FIT = "stretch"
SPLITS = ("train", "val")
PROTOCOL = (
    "Backbone feature maps, frozen; on each a simple feature pyramid (as ViTDet's: every level is made from the one "
    "map; the finest has the map's grid, doubled until it has `cells` cells a side, each further level half the one "
    "before) and an FCOS head with its losses and matching as torchvision has them. Training: AdamW, cosine learning "
    "rate; pictures whole, not augmented; crowds are not learnt from. Test: scores above 0.1, non-maximum suppression "
    "at IoU 0.6, at most 100 boxes a picture, scaled to the picture's own pixels. Metric: COCO's average precision "
    "(pycocotools' matching; mean over IoU 0.50:0.05:0.95 and classes), at IoU 0.5 and 0.75 alone, and of things "
    "below 32², up to 96² and above 96² pixels; only the first can count in Δm%. A seed decides the detector's "
    "initialisation and the order of pictures. Chance: 0."
)
SHOWN = 0.3  # score from which boxes are drawn
SIZES = ("small", "medium", "large")


class Settings(TrainSettings):
    """Detection with a small trained head."""

    task: Literal["detection"]
    seeds: Annotated[list[int], Field(min_length=1)] = Field([0], description="of the detector; one score each")
    steps: Annotated[int, Field(ge=1)] = Field(400, description="of training")
    batch: Annotated[int, Field(ge=1)] = Field(8, description="pictures a step")
    lr: Annotated[float, Field(gt=0)] = Field(5e-3, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-3, description="of the detector")
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="share of the steps; the rate rises in it")
    hidden: Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)] = Field(64, description="width of the detector")
    convs: Annotated[int, Field(ge=1)] = Field(2, description="convolutions before boxes, and before classes")
    levels: Annotated[int, Field(ge=1)] = Field(3, description="of the pyramid; each finds things twice as large")
    cells: Annotated[int, Field(ge=1)] = Field(
        16, description="coarser maps are enlarged, fourfold at most, to so many cells on the longer side"
    )


partners = alone
parts = maps_of(*SPLITS)


def run(ctx: Context) -> Result:
    train_split, val = ctx.split("train"), ctx.split("val")
    learnt, truths = things_of(train_split), things_of(val)
    if train_split.thing_names != val.thing_names:
        raise UserError(f"{train_split} and {val} have different classes of things", expected="the same, in one order")
    targets = [target(things, size_of(train_split, index, things), ctx.size) for index, things in enumerate(learnt)]
    detector = fit(ctx, targets, len(val.thing_names))
    found = predict(detector, ctx.features("val", "backbone.spatial"), val, truths)
    metrics, facts = judge(truths, found, val)
    strides = [[round(side, 2) for side in stride] for stride in detector.strides]
    return Result(metrics, facts | {"strides": strides}, examples(val, truths, found))


def things_of(split: Split) -> list[Instances]:
    """The things in every picture; `UserError` where there is none at all."""
    instances = split.truth("instances")
    things = [instances(index) for index in range(split.count)]
    if all(one.crowd.all() for one in things):
        raise UserError(f"there is no thing in any picture of {split}", expected="pictures with boxes")
    return things


def size_of(split: Split, index: int, things: Instances) -> Size:
    """Height and width of a picture, which is decoded only where nothing else says them."""
    return things.size or split.shape or tuple(split.image(index).shape[1:])


def scale(boxes: Tensor, size: Size, to: Size) -> Tensor:
    """Boxes n×4 in pixels of a picture of `size` → in pixels of the same picture at another size."""
    y, x = to[0] / size[0], to[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def target(things: Instances, size: Size, seen: Size) -> dict[str, Tensor]:
    """What FCOS learns from: boxes in pixels of the model's input (`seen`), and their classes; no crowds."""
    keep = ~things.crowd
    return {"boxes": scale(things.boxes[keep], size, seen), "labels": things.classes[keep]}


def fit(ctx: Context, targets: list[dict[str, Tensor]], classes: int) -> Detector:
    """Train the detector on the training pictures' maps."""
    features, settings = ctx.features("train", "backbone.spatial"), ctx.settings
    grid = tuple(features[torch.tensor([0])].shape[2:])
    with seeded("detector", ctx.seed):
        detector = Detector(
            features.width, grid, ctx.size, classes,
            hidden=settings.hidden, convs=settings.convs, levels=settings.levels, cells=settings.cells,
        )  # fmt: skip

    def loss(outputs: dict[str, Tensor], numbers: Tensor) -> Tensor:
        wanted = [{key: value.to(ctx.device) for key, value in targets[i].items()} for i in numbers.tolist()]
        return detector.loss(outputs, wanted)

    return train(detector, features, loss, settings, ("detection order", ctx.seed), ctx.device)


def predict(detector: Detector, features: Stored, split: Split, truths: list[Instances]) -> list[ap.Detections]:
    """What the detector finds in every picture, in the picture's own pixels, on the CPU."""
    found: list[ap.Detections] = []
    for maps in features.chunks():
        for block in maps.split(64):
            for answer in detector.detect(block.to(detector.anchors.device)):
                size = size_of(split, len(found), truths[len(found)])
                boxes = scale(answer["boxes"].cpu(), detector.size, size)
                found.append(ap.Detections(boxes, answer["labels"].cpu(), answer["scores"].cpu()))
    return found


def judge(
    truths: list[Instances], found: list[ap.Detections], split: Split
) -> tuple[dict[str, MetricScore], dict[str, object]]:
    """COCO's figures with their resamples, and what stands beside them; sizes that do not occur are left out."""
    evaluation = ap.match(truths, found, len(split.thing_names))
    weights = np.concatenate([np.ones((1, split.count)), counts(split.identity, split.count)])
    values = {
        area: 100 * ap.average_precision(ap.matches(evaluation, area), weights, evaluation.params.recThrs)
        for area in ("all", *SIZES)
    }
    thresholds = [round(float(threshold), 2) for threshold in evaluation.params.iouThrs]
    of_class = dict(zip(split.thing_names, values["all"][0].mean(axis=0)))
    facts: dict[str, object] = {
        "AP of each class": {name: round(float(value), 1) for name, value in of_class.items() if value == value}
    }
    metrics = {"AP": score(values["all"], split.count, counts_in_delta=True)}
    for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
        metrics[name] = score(values["all"][:, [thresholds.index(threshold)]], split.count)
    for size in SIZES:
        if np.isnan(values[size][0]).all():
            facts[f"AP {size}"] = "left out: no thing of that size in the test pictures"
        else:
            metrics[f"AP {size}"] = score(values[size], split.count)
    return metrics, facts


def score(values: np.ndarray, pictures: int, counts_in_delta: bool = False) -> MetricScore:
    """(1 + R)×T×K, NaN for classes that do not occur → the mean over thresholds and classes, and over resamples'."""
    classes = (~np.isnan(values[:, 0])).sum(axis=1)
    means = np.nansum(values, axis=(1, 2)) / (values.shape[1] * np.where(classes, classes, np.nan))
    resamples = [round(float(x), 5) for x in means[1:]] if np.isfinite(means[1:]).all() else []
    return MetricScore(
        value=float(means[0]), direction="higher", unit="%", n=pictures, chance=0.0, counts=counts_in_delta,
        resamples=resamples,
    )  # fmt: skip


def examples(split: Split, truths: list[Instances], found: list[ap.Detections]) -> list[Example]:
    """Pictures with the true boxes, and with those found; a colour a class."""
    rows = []
    for index in chosen(split.count):
        pixels, sure = picture(split, index), found[index].scores > SHOWN
        truth = paint_boxes(pixels, truths[index].boxes, truths[index].classes)
        rows.append(Example(pixels, truth, paint_boxes(pixels, found[index].boxes[sure], found[index].classes[sure])))
    return rows
