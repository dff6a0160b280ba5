"""The tabletop: a seed → rendered pictures with every truth, no file needed (never evidence about natural images)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from eval.datasets.cameras import Camera, world_points
from eval.datasets.lazy import Lazy
from eval.datasets.split import Instances, KeypointPair, Question, Split, ViewPair
from radio_distill.recipe import SizeKey
from teachers.features import Size, identity_of
from teachers.section import Section

if TYPE_CHECKING:
    from eval.tabletop.pairs import Sight
    from eval.tabletop.trace import Thing


class Config(Section):
    """Scenes drawn from a seed; training seeds of the trainer's shards are other scenes (their split differs)."""

    kind: Literal["tabletop"]
    seed: int = Field(0, description="of the scenes")
    size: SizeKey = Field(128, description="pixels of a picture, one number or [height, width]")
    train: Annotated[int, Field(ge=1)] = Field(600, description="scenes that probes learn from")
    val: Annotated[int, Field(ge=1)] = Field(300, description="scenes that they are judged on")
    views: Annotated[int, Field(ge=1)] = Field(1, description="pictures of each scene, from other sides")
    captions: Annotated[int, Field(ge=1)] = Field(1, description="captions used of each; the first one says most")


@dataclass(frozen=True, eq=False)
class _Sample:
    """What is kept of a scene: about 300 kB at 128 px."""

    image: Tensor  # uint8 3×H×W
    label: int
    captions: list[str]
    questions: list[Question]
    semantic: Tensor  # uint8 H×W, as the next three
    parts: Tensor
    instances: Tensor
    boundaries: Tensor
    depth: Tensor  # float32 H×W
    normals: Tensor  # float16 3×H×W
    boxes: Tensor  # n×4
    kinds: Tensor  # n
    main: Thing
    camera: Camera

    def points(self) -> Tensor:
        """World coordinates of what stands on the table, 3×H×W metres, NaN elsewhere."""
        return world_points(self.depth, self.camera).masked_fill(self.instances == 0, torch.nan)

    def things(self) -> Instances:
        """The things of which something is seen."""
        seen = torch.tensor([i for i in range(len(self.kinds)) if (self.instances == i + 1).any()], dtype=torch.long)
        areas = torch.tensor([float((self.instances == i + 1).sum()) for i in seen.tolist()])
        return Instances(
            boxes=self.boxes[seen].float(), classes=self.kinds[seen], areas=areas,
            masks=lambda: self.instances == (seen + 1)[:, None, None], crowd=torch.zeros(len(seen), dtype=torch.bool),
        )  # fmt: skip

    def sight(self) -> Sight:
        """The main thing, for pairs with keypoints."""
        from eval.tabletop.pairs import Sight

        return Sight(self.main, self.instances == 1, self.depth, self.camera)


@cache
def _sample(seed: int, part: str, index: int, size: Size, view: int = 0) -> _Sample:
    """Kept for the whole process: every model is shown the same pictures."""
    from eval.tabletop.kinds import KINDS
    from eval.tabletop.render import render

    scene = render(seed, f"eval-{part}", index, size, view)

    def tensor(values: np.ndarray, dtype: type) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values.astype(dtype)))

    return _Sample(
        image=torch.from_numpy(scene.image).permute(2, 0, 1), label=int(scene.label), captions=scene.captions,
        questions=[Question(text, (answer,)) for text, answer in scene.questions],
        semantic=tensor(scene.semantic, np.uint8), parts=tensor(scene.parts, np.uint8),
        instances=tensor(scene.instances, np.uint8), boundaries=tensor(scene.boundaries, np.uint8),
        depth=tensor(scene.depth, np.float32), normals=tensor(scene.normals.transpose(2, 0, 1), np.float16),
        boxes=tensor(scene.boxes, np.int64), kinds=torch.tensor([KINDS.index(thing.kind) for thing in scene.things]),
        main=scene.things[0], camera=Camera.of(scene.intrinsics, scene.rotation, scene.position),
    )  # fmt: skip


@cache
def _view_pairs(seed: int, part: str, scenes: int, size: Size, views: int) -> list[ViewPair]:
    from eval.tabletop.pairs import view_pairs

    return view_pairs(lambda i: _sample(seed, part, i // views, size, i % views).camera.rotation, scenes, views)


@cache
def _keypoint_pairs(seed: int, part: str, scenes: int, size: Size, views: int) -> list[KeypointPair]:
    from eval.tabletop.kinds import KINDS
    from eval.tabletop.pairs import keypoint_pairs

    samples = [_sample(seed, part, i // views, size, i % views) for i in range(scenes * views)]
    kinds = [KINDS[sample.label] for sample in samples]
    return keypoint_pairs(lambda i: samples[i].sight(), kinds, views, seed, part)


def _identity(config: Config, part: str, count: int) -> str:
    """Changes with the renderer too: the first picture itself is hashed."""
    notes = ("tabletop", config.seed, part, config.size, count, *((config.views,) if config.views > 1 else ()))
    return identity_of({"first": _sample(config.seed, part, 0, config.size).image}, *notes)


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part, rendered when asked for; picture i is view i % views of scene i // views."""
    from eval.tabletop.captions import class_prompts
    from eval.tabletop.kinds import KINDS, PART_NAMES, SEMANTIC_NAMES

    def sample(index: int) -> _Sample:
        return _sample(config.seed, part, index // config.views, config.size, index % config.views)

    scenes = config.train if part == "train" else config.val
    count, which = scenes * config.views, (config.seed, part, scenes, config.size, config.views)
    return Split(
        data=name, part=part, count=count,
        source=f"rendered, seed {config.seed}, {config.size[0]}×{config.size[1]} px", shape=config.size,
        identity=_identity(config, part, count),
        image=lambda index: sample(index).image, label=lambda index: sample(index).label,
        captions=lambda index: sample(index).captions[: config.captions],
        questions=lambda index: sample(index).questions,
        mask=lambda index: sample(index).semantic.long(), parts=lambda index: sample(index).parts.long(),
        saliency=lambda index: (sample(index).instances == 1).long(),
        boundary=lambda index: sample(index).boundaries.long(),
        depth=lambda index: sample(index).depth, normals=lambda index: sample(index).normals.float(),
        points=lambda index: sample(index).points(), instances=lambda index: sample(index).things(),
        view_pairs=Lazy(lambda: _view_pairs(*which)) if config.views > 1 else None,
        keypoint_pairs=Lazy(lambda: _keypoint_pairs(*which)),
        scenes=[index // config.views for index in range(count)] if config.views > 1 else None,
        class_names=KINDS, mask_names=SEMANTIC_NAMES, part_names=PART_NAMES, thing_names=KINDS,
        prompts=class_prompts(),
    )  # fmt: skip
