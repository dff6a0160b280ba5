"""Summaries in a text tower's space, and class names in words → the accuracy of the most similar class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.split import Split
from eval.resampling import hits, metric, percentage
from eval.tasks.task import Context, Need, NotApplicable, Result, TaskSettings
from teachers.features import Encoder

VERSION = 1
GROUP = "Classification"
COUNTS = True
SEEDED = False
FIT = "crop"
SPLITS = ("val",)
PROTOCOL = (
    "Each class's texts (its name in every template, or the data set's own prompts) are embedded, made unit length, "
    "averaged and made unit length again; a picture gets the class of the largest cosine with its summary, taken from "
    "the head that shares the text tower's space (a teacher: from itself). Pictures: largest centred square, resized. "
    "Metric: top-1 accuracy. Chance: 1 / number of classes."
)


class Settings(TaskSettings):
    """Zero-shot classification."""

    task: Literal["zero_shot"]
    head: str | None = Field(None, description="of a student; none = its first head that has a text tower")
    templates: Literal["openai"] | list[str] = Field(
        "openai", description="texts with {} for the class name; openai = the 80 of open_clip's ImageNet evaluation"
    )

    @field_validator("templates")
    @classmethod
    def _with_a_place(cls, value: str | list[str]) -> str | list[str]:
        bad = [text for text in value if value != "openai" and text.count("{}") != 1]
        if bad or not value:
            raise ValueError(f"each template needs one {{}} for the class name: {bad}")
        return value


def text_head(ctx: Context) -> tuple[str, Encoder]:
    """The head that shares a space with texts."""
    head = ctx.model.text_head(ctx.settings.head)
    if head is None:
        raise NotApplicable("the model has no text tower")
    return head


def partners(ctx: Context) -> list[Encoder]:
    """The teacher whose text tower is used: its weights decide the figure too."""
    head = text_head(ctx)[1]
    return [head.teacher()] if head is not ctx.model.encoder else []


def parts(ctx: Context) -> list[Need]:
    return [(ctx.model.encoder, "val", f"{text_head(ctx)[0]}.summary")]


def run(ctx: Context) -> Result:
    val = ctx.split("val")
    labels = val.labels()
    name, head = text_head(ctx)
    prompts = class_prompts(val, ctx.settings.templates)
    classes = torch.stack([class_vector(head.encode_text(texts)) for texts in prompts]).cpu()
    pictures = F.normalize(ctx.features("val", f"{name}.summary").all())
    right = ((pictures @ classes.T).argmax(dim=1) == labels).numpy()
    top1 = metric(hits(right), percentage, val.identity, direction="higher", unit="%", chance=100.0 / len(classes))
    return Result({"zero-shot top-1": top1}, {"head": name, "prompts a class": len(prompts[0])})


def class_prompts(split: Split, templates: str | Sequence[str]) -> list[list[str]]:
    """The texts of every class, in the order of the labels."""
    if split.prompts is not None:
        return [list(split.prompts[name]) for name in split.class_names]
    if templates == "openai":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return [[template(name) for template in OPENAI_IMAGENET_TEMPLATES] for name in split.class_names]
    return [[template.replace("{}", name) for template in templates] for name in split.class_names]


def class_vector(texts: Tensor) -> Tensor:
    """Embeddings of a class's texts, P×D → their direction, D."""
    return F.normalize(F.normalize(texts.float()).mean(dim=0), dim=0)
