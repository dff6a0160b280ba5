"""Detections and truths → COCO's average precision, for any weight of each picture: what bootstrap resamples need.

The matching is pycocotools' own. What follows it, precision over recall, is done here because COCOeval does it for one
set of pictures only, in seconds, and a bootstrap needs it for two hundred; weights of 1 give COCOeval's figure exactly.

Shapes: N pictures, R sets of weights, K classes, T thresholds of IoU (0.50, 0.55, ..., 0.95), d detections of a class.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from eval.datasets.split import Instances

if TYPE_CHECKING:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval


class Detections(NamedTuple):
    """What was found in one picture, in pixels of the picture itself."""

    boxes: Tensor  # n×4 float: x0, y0, x1, y1
    classes: Tensor  # n long
    scores: Tensor  # n float


@dataclass(frozen=True)
class Matches:
    """The detections of one class, best first, beside what there was to find in one range of sizes."""

    picture: np.ndarray  # d: which one each is in
    right: np.ndarray  # T×d bool: matches a thing that counts
    counted: np.ndarray  # T×d bool: is right or wrong; the others match what is neither found nor missed
    things: np.ndarray  # N: things that count, a picture


def match(truths: Sequence[Instances], found: Sequence[Detections], classes: int) -> COCOeval:
    """COCOeval after its matching (`evaluate`), with the first 100 detections a picture and class; prints nothing."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index((_truth_notes(one) for one in truths), len(truths), classes)
        evaluation = COCOeval(truth, _index((_found_notes(one) for one in found), len(found), classes), "bbox")
        evaluation.evaluate()
    return evaluation


def _truth_notes(things: Instances) -> list[dict]:
    crowd, areas = things.crowd.tolist(), things.areas.tolist()
    return [
        note | {"iscrowd": int(crowd[i]), "area": areas[i]}
        for i, note in enumerate(_notes(things.boxes, things.classes))
    ]


def _found_notes(found: Detections) -> list[dict]:
    return [
        note | {"iscrowd": 0, "area": note["bbox"][2] * note["bbox"][3], "score": score}
        for note, score in zip(_notes(found.boxes, found.classes), found.scores.tolist())
    ]


def _notes(boxes: Tensor, classes: Tensor) -> list[dict]:
    corners = boxes.double().tolist()
    return [
        {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": kind}
        for (x0, y0, x1, y1), kind in zip(corners, classes.tolist())
    ]


def _index(pictures: Iterable[list[dict]], count: int, classes: int) -> COCO:
    """COCO's index of annotations; ids start at 1, for COCOeval takes 0 for "no match"."""
    from pycocotools.coco import COCO

    notes = [note | {"image_id": picture} for picture, own in enumerate(pictures) for note in own]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": picture} for picture in range(count)],
        "categories": [{"id": kind} for kind in range(classes)],
        "annotations": [note | {"id": number} for number, note in enumerate(notes, start=1)],
    }
    coco.createIndex()
    return coco


def matches(evaluation: COCOeval, area: str) -> list[Matches]:
    """Of each class, for things of one range of sizes: all, small (below 32² pixels), medium, or large (above 96²)."""
    params = evaluation.params
    shape = (len(params.catIds), len(params.areaRng), len(params.imgIds))
    table = np.array(evaluation.evalImgs, dtype=object).reshape(shape)
    return [_of_class(row, len(params.iouThrs)) for row in table[:, params.areaRngLbl.index(area)]]


def _of_class(pictures: Sequence[dict | None], thresholds: int) -> Matches:
    """From COCOeval's entries of one class, None where a picture has neither things nor detections of it."""
    things, empty = np.zeros(len(pictures)), np.zeros((thresholds, 0), dtype=bool)
    numbers, scores, hit, ignored = [np.zeros(0, int)], [np.zeros(0)], [empty], [empty]
    for number, entry in enumerate(pictures):
        if entry is not None:
            things[number] = np.count_nonzero(entry["gtIgnore"] == 0)
            numbers.append(np.full(len(entry["dtScores"]), number))
            scores.append(np.asarray(entry["dtScores"], dtype=float))
            hit.append(entry["dtMatches"] > 0)
            ignored.append(entry["dtIgnore"].astype(bool))
    order = np.argsort(-np.concatenate(scores), kind="stable")  # ties in the order of pictures, as COCOeval has them
    counted = ~np.concatenate(ignored, axis=1)[:, order]
    return Matches(np.concatenate(numbers)[order], np.concatenate(hit, axis=1)[:, order] & counted, counted, things)


def average_precision(found: Sequence[Matches], weights: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """R×N weights of pictures → R×T×K; NaN where no picture of any weight has a thing of that class.

    Args:
        recalls: ascending, from 0 on; precision is averaged over them (COCO: 0, 0.01, ..., 1).
    """
    weights = np.asarray(weights, dtype=np.float64)
    return np.stack([_precision(one, weights, recalls) for one in found], axis=-1)


def _precision(one: Matches, weights: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """R×T of one class.

    Precision at a recall is the best one at that recall or beyond; recall grows, and precision peaks, at right
    detections only, so the others need not be looked at once they are counted.
    """
    there = weights @ one.things
    drawn = weights[:, one.picture]
    result = np.empty((len(weights), len(one.right)))
    for level, (right, counted) in enumerate(zip(one.right, one.counted)):
        hits = np.cumsum(drawn[:, right], axis=1)
        tries = np.cumsum(drawn * counted, axis=1)[:, right]
        precision = hits / (tries + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            reached = np.searchsorted(recalls, hits / there[:, None], side="right")  # how many of the recalls
        reached[there == 0] = 0
        result[:, level] = (best * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(recalls)
    result[there == 0] = np.nan
    return result
