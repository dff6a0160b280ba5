"""A model's map in SAM's space, and true boxes → the masks that SAM's own decoder draws from them, and their IoU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from eval.datasets.split import Instances
from eval.paint import paint_things, picture
from eval.resampling import metric, percentage
from eval.sam_decoder import SamDecoder, config_of, identity, load
from eval.task_settings import TaskSettings
from eval.tasks.task import Context, Example, Need, NotApplicable, Result, chosen
from teachers import weight_files
from teachers.errors import UserError
from teachers.features import Encoder, Size

VERSION = 1
GROUP = "SAM"
COUNTS = False
SEEDED = False
FIT = "pad"
SPLITS = ("val",)
PROTOCOL = (
    "The head that learnt from SAM (of a SAM teacher: itself) stands in for SAM's image encoder: its map, resized "
    "bilinearly to SAM's grid where it has another, goes through SAM's own neck, prompt encoder and mask decoder, "
    "pretrained and untouched. Prompts: the true boxes; one mask a box. As with SAM itself, pictures keep their "
    "aspect, the longer side at the model's size, and are padded below or on the right with the mean colour. Masks "
    "are enlarged bilinearly to the picture's own pixels and cut at 0. Metric: the mean over things of the IoU "
    "between mask and truth; crowds, and things without a pixel, are left out. Chance: the box itself, filled."
)
PUBLISHED = "hf:facebook/sam-vit-huge"


class Settings(TaskSettings):
    """Masks from boxes, drawn by SAM's decoder."""

    task: Literal["sam"]
    weights: str = Field(PUBLISHED, description="of SAM: a folder as Hugging Face's SamModel has it, or hf:REPO")
    head: str | None = Field(
        None, description="head whose map is used, or backbone; none = the one that learnt from SAM"
    )


class _Identity(NamedTuple):
    """What of the decoder is part of a score's key."""

    identity: str


def partners(ctx: Context) -> list[_Identity]:
    """SAM's decoder: its weights decide the figure too."""
    return [_Identity(identity(folder_of(ctx.settings.weights)))]


def parts(ctx: Context) -> list[Need]:
    return [(ctx.model.encoder, "val", f"{head_of(ctx)}.spatial")]


def run(ctx: Context) -> Result:
    val, head = ctx.split("val"), head_of(ctx)
    val.truth("instances")
    left_out = {"crowds": 0, "things without a pixel": 0}
    sums, examples = compare(ctx, head, left_out)
    things = int(sums[:, 2].sum())
    if not things:
        raise UserError(f"there is no mask of a thing in any picture of {val}", expected="pictures with things in them")
    score = metric(
        sums[:, [0, 2]], percentage, val.identity, direction="higher", unit="%", n=things,
        chance=float(percentage(sums[:, 1:].sum(axis=0))),
    )  # fmt: skip
    return Result({"mask IoU": score}, {"head": head, "left out": left_out}, examples)


def compare(ctx: Context, head: str, left_out: dict[str, int]) -> tuple[np.ndarray, list[Example]]:
    """Of each picture: the sum of its things' IoU, the sum of its filled boxes' IoU, and their number, N×3."""
    val, frame, rows, examples = ctx.split("val"), frame_of(ctx), [], []
    decoder = load(folder_of(ctx.settings.weights)).to(ctx.device)
    maps = (one for chunk in ctx.features("val", f"{head}.spatial").chunks() for one in chunk)
    for index, one in enumerate(maps):
        boxes, truth = wanted(val.instances(index), left_out)
        size = tuple(truth.shape[1:])
        answer = draw(decoder, one.to(ctx.device), boxes, size, frame)
        rows.append([float(iou(answer, truth).sum()), float(iou(fill(boxes, size), truth).sum()), len(boxes)])
        if index in chosen(val.count):
            pixels = picture(val, index)
            examples.append(Example(pixels, paint_things(pixels, truth), paint_things(pixels, answer)))
    return np.array(rows), examples


def folder_of(weights: str) -> Path:
    """Where SAM's files are; `NotApplicable` where they are not."""
    try:
        found = weight_files.find(weights, of="SAM", names=["config.json"])
    except UserError:
        how = f"hf download {PUBLISHED.removeprefix('hf:')}, or set weights: to a folder of a SamModel"
        raise NotApplicable(f"no SAM weights at {weights}; {how}") from None
    return found if found.is_dir() else found.parent


def head_of(ctx: Context) -> str:
    """The output whose map is what SAM's neck takes."""
    width = config_of(folder_of(ctx.settings.weights)).vision_config.hidden_size
    outputs, asked = {"backbone": ctx.model.encoder, **ctx.model.adaptors}, ctx.settings.head
    if asked is None:
        able = ctx.model.adaptors or outputs
        found = [name for name, one in able.items() if one.dims.spatial == width and speaks_sam(name, one)]
        if not found and ctx.model.adaptors:
            raise NotApplicable(f"no head learnt from a SAM of width {width} (head: would name one)")
        if not found:
            raise NotApplicable(f"the model is no SAM of width {width}")
        return found[0]
    if asked not in outputs:
        raise UserError(f"{ctx.model.name} has no head {asked!r}", expected="one of " + ", ".join(outputs))
    if outputs[asked].dims.spatial != width:
        raise UserError(
            f"{ctx.model.name}: the map of {asked} has width {outputs[asked].dims.spatial}",
            expected=f"{width}, which the neck of the SAM at {ctx.settings.weights} takes",
        )
    return asked


def speaks_sam(name: str, encoder: Encoder) -> bool:
    """Whether a head's teacher, or a teacher, is a SAM by its name: DFN CLIP's maps have the width of SAM-H's too."""
    own = encoder.name if name == "backbone" else name
    words = f"{own} {getattr(encoder, 'kind', '')} {getattr(encoder, 'source', '')}".lower()
    return re.search(r"(?<![a-z])sam(vit|\d)?(?![a-z])", words) is not None


def frame_of(ctx: Context) -> int:
    """The side of the square that the model is shown."""
    height, width = ctx.size
    if height != width:
        raise UserError(
            f"{ctx.model.name} would be shown {height}×{width} pixels", expected="a square, as SAM has it",
            todo=f"set size: to one number, such as {max(height, width)}",
        )  # fmt: skip
    return height


def wanted(things: Instances, left_out: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Boxes n×4 and masks n×H×W of the things that count; the others are counted in `left_out`."""
    masks = things.masks()
    seen = masks.flatten(1).any(dim=1)
    left_out["crowds"] += int(things.crowd.sum())
    left_out["things without a pixel"] += int((~seen & ~things.crowd).sum())
    keep = seen & ~things.crowd
    return things.boxes[keep], masks[keep]


def draw(decoder: SamDecoder, maps: Tensor, boxes: Tensor, size: Size, frame: int) -> Tensor:
    """The decoder's masks n×H×W bool, on the CPU."""
    if not len(boxes):
        return torch.zeros(0, *size, dtype=torch.bool)
    return decoder.masks(maps, boxes.to(maps.device), size, frame).cpu()


def fill(boxes: Tensor, size: Size) -> Tensor:
    """Boxes n×4 → n×H×W bool: the pixels whose centres lie inside."""
    y, x = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
    x0, y0, x1, y1 = boxes.unsqueeze(2).unbind(1)
    return ((y >= y0) & (y < y1))[:, :, None] & ((x >= x0) & (x < x1))[:, None]


def iou(answer: Tensor, truth: Tensor) -> Tensor:
    """Masks n×H×W bool, of which one of each pair has a pixel → intersection over union, n."""
    shared = (answer & truth).flatten(1).sum(dim=1)
    return shared.double() / (answer | truth).flatten(1).sum(dim=1)
