"""Summaries in a text tower's space, and class names in words → the accuracy of the most similar class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.split import Split
from eval.datasets.wordnet import is_code
from eval.resampling import hits, metric, percentage
from eval.tasks.task import Context, Need, NotApplicable, Result, TaskSettings
from teachers.errors import UserError
from teachers.features import Encoder

VERSION = 2  # classes called by WordNet codes are asked for by their names
GROUP = "Classification"
COUNTS = True
SEEDED = False
FIT = "crop"
SPLITS = ("val",)
PROTOCOL = (
    "Each class's texts (its name in every template, or the data set's own prompts) are embedded, made unit length, "
    "averaged and made unit length again; a picture gets the class of the largest cosine with its summary, taken from "
    "the head that shares the text tower's space (a teacher: from itself). ImageNet's classes go by the 1000 names of "
    "CLIP's evaluation, found by their WordNet codes. Classes with the same texts cannot be told apart: the first of "
    "them is the answer, and the report names them. Pictures: largest centred square, resized. Metric: top-1 accuracy. "
    "Chance: 1 / number of classes."
)

CLASSES_AT_ONCE = 32  # whose texts are embedded together
# Facts of a score that the report warns of.
ALIKE, NUMBERS = "classes with the same texts", "classes called by numbers"


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
    check_words(val)
    prompts = class_prompts(val, ctx.settings.templates)
    first = first_alike(prompts)
    different = sorted(set(first))
    tower = partners(ctx)[0] if partners(ctx) else head
    vectors = class_vectors(tower, [prompts[place] for place in different])
    pictures = F.normalize(ctx.features("val", f"{name}.summary").all())
    answers = torch.tensor(different)[(pictures @ vectors.T).argmax(dim=1)]
    chance = 100.0 / len(prompts)
    right = hits((answers == labels).numpy())
    top1 = metric(right, percentage, val.identity, direction="higher", unit="%", chance=chance)
    facts = {"head": name, "classes": len(prompts), "prompts a class": len(prompts[0])}
    facts |= {"first class": val.class_names[0]} | doubts(val, first)
    return Result({"zero-shot top-1": top1}, facts)


def check_words(split: Split) -> None:
    """Raise `UserError` where classes are called by codes that nobody has words for: every model would be at chance."""
    codes = [name for name in split.class_names if is_code(name)]
    if codes and split.prompts is None:
        what = f"{len(codes)} of {len(split.class_names)} classes of {split} are called by codes, such as {codes[0]!r}"
        todo = f"write a file of lines `folder, tab, name` and set data.{split.data}.names to it"
        raise UserError(what, expected="names in words: a text tower knows no codes", todo=todo)


def doubts(split: Split, first: Sequence[int]) -> dict[str, list[str]]:
    """Names of classes that no text can be right for: of one text, or called by numbers."""
    alike = sorted({split.class_names[place] for place, other in enumerate(first) if place != other})
    numbers = [] if split.prompts is not None else [name for name in split.class_names if name.isdecimal()]
    return {fact: names for fact, names in ((ALIKE, alike), (NUMBERS, numbers)) if names}


def first_alike(prompts: Sequence[Sequence[str]]) -> list[int]:
    """Of each class the first one with the same texts; mostly itself."""
    seen: dict[tuple[str, ...], int] = {}
    return [seen.setdefault(tuple(texts), place) for place, texts in enumerate(prompts)]


def class_prompts(split: Split, templates: str | Sequence[str]) -> list[list[str]]:
    """The texts of every class, in the order of the labels."""
    if split.prompts is not None:
        return [list(split.prompts[name]) for name in split.class_names]
    if templates == "openai":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return [[template(name) for template in OPENAI_IMAGENET_TEMPLATES] for name in split.class_names]
    return [[template.replace("{}", name) for template in templates] for name in split.class_names]


def class_vectors(tower: Encoder, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Directions K×D of the classes' texts, in a text tower's space; kept, as several models may share the tower.

    ImageNet's 80 000 texts take a small tower a minute on a CPU.
    """
    return _class_vectors(_ByIdentity(tower), tuple(map(tuple, prompts)))


class _ByIdentity(NamedTuple):
    """An encoder that equals another one of the same weights."""

    tower: Encoder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.tower.identity == other.tower.identity

    def __hash__(self) -> int:
        return hash(self.tower.identity)


@lru_cache(maxsize=4)
def _class_vectors(tower: _ByIdentity, prompts: tuple[tuple[str, ...], ...]) -> Tensor:
    found = []
    for start in range(0, len(prompts), CLASSES_AT_ONCE):
        block = prompts[start : start + CLASSES_AT_ONCE]
        embedded = tower.tower.encode_text([text for texts in block for text in texts]).cpu()
        found += [class_vector(own) for own in embedded.split([len(texts) for texts in block])]
    return torch.stack(found)


def class_vector(texts: Tensor) -> Tensor:
    """Embeddings of a class's texts, P×D → their direction, D."""
    return F.normalize(F.normalize(texts.float()).mean(dim=0), dim=0)
