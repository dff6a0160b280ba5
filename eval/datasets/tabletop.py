"""The tabletop: a seed → rendered pictures with every truth, no file needed (never evidence about natural images)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eval.datasets.split import Split
from radio_distill.documents import Section
from radio_distill.recipe import SizeKey
from teachers.features import Size, identity_of


class Config(Section):
    """Scenes drawn from a seed; training seeds of the trainer's shards are other scenes (their split differs)."""

    kind: Literal["tabletop"]
    seed: int = Field(0, description="of the scenes")
    size: SizeKey = Field(128, description="pixels of a picture, one number or [height, width]")
    train: Annotated[int, Field(ge=1)] = Field(600, description="scenes that probes learn from")
    val: Annotated[int, Field(ge=1)] = Field(300, description="scenes that they are judged on")
    captions: Annotated[int, Field(ge=1)] = Field(1, description="captions used of each; the first one says most")


@dataclass(frozen=True)
class _Sample:
    image: Tensor
    label: int
    captions: list[str]
    mask: Tensor


@cache
def _sample(seed: int, part: str, index: int, size: Size) -> _Sample:
    """Kept for the whole process (about 70 kB each): every model is shown the same pictures."""
    from eval.tabletop.render import render

    scene = render(seed, f"eval-{part}", index, size)
    image, mask = torch.from_numpy(scene.image).permute(2, 0, 1), torch.from_numpy(scene.semantic)
    return _Sample(image, int(scene.label), scene.captions, mask)


def _identity(seed: int, part: str, size: Size, count: int) -> str:
    """Changes with the renderer too: the first picture itself is hashed."""
    return identity_of({"first": _sample(seed, part, 0, size).image}, "tabletop", seed, part, size, count)


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part; pictures are rendered when they are asked for."""
    from eval.tabletop.captions import class_prompts
    from eval.tabletop.kinds import KINDS, SEMANTIC_NAMES

    def sample(index: int) -> _Sample:
        return _sample(config.seed, part, index, config.size)

    count = config.train if part == "train" else config.val
    return Split(
        data=name, part=part, count=count,
        source=f"rendered, seed {config.seed}, {config.size[0]}×{config.size[1]} px", shape=config.size,
        identity=_identity(config.seed, part, config.size, count),
        image=lambda index: sample(index).image, label=lambda index: sample(index).label,
        captions=lambda index: sample(index).captions[: config.captions],
        mask=lambda index: sample(index).mask.long(),
        class_names=KINDS, mask_names=SEMANTIC_NAMES, prompts=class_prompts(),
    )  # fmt: skip
