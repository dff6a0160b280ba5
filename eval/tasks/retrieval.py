"""Summaries and captions in one space → how often the right caption is among the nearest k of a picture, and back."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.split import Split
from eval.resampling import metric, percentage
from eval.tasks.task import Context, Need, Result, TaskSettings
from eval.tasks.zero_shot import partners, text_head
from teachers.errors import UserError

__all__ = ["partners"]  # as zero-shot's

VERSION = 2  # ties hold in spite of rounding
GROUP = "Retrieval"
COUNTS = True
SEEDED = False
FIT = "crop"
SPLITS = ("val",)
PROTOCOL = (
    "Cosine between picture summaries (of the head that shares the text tower's space) and caption embeddings. Picture "
    "to text: any of the picture's captions among the k nearest counts; text to picture: every caption is a query. "
    "Captions with the same words are one text that belongs to several pictures; ties between texts count against the "
    "model. Pictures: largest centred square, resized. Metrics: R@1, R@5, R@10 both ways. Chance: of a random order."
)
AT = (1, 5, 10)
BLOCK = 1024
TEXTS_AT_ONCE = 256
SAME = 1e-9  # cosines that are no further apart tie: equal vectors differ in the last bits of a matrix product


class Settings(TaskSettings):
    """Image-text retrieval."""

    task: Literal["retrieval"]
    head: str | None = Field(None, description="of a student; none = its first head that has a text tower")


def parts(ctx: Context) -> list[Need]:
    return [(ctx.model.encoder, "val", f"{text_head(ctx)[0]}.summary")]


def run(ctx: Context) -> Result:
    val = ctx.split("val")
    captions = captions_of(val)
    name, head = text_head(ctx)
    texts: dict[str, int] = {}
    owned = [sorted({texts.setdefault(text, len(texts)) for text in own}) for own in captions]
    words = list(texts)
    blocks = [words[start : start + TEXTS_AT_ONCE] for start in range(0, len(words), TEXTS_AT_ONCE)]
    embedded = torch.cat([head.encode_text(block).cpu() for block in blocks])
    belongs = torch.zeros(val.count, len(words), dtype=torch.bool)
    for index, own in enumerate(owned):
        belongs[index, own] = True
    pictures = ctx.features("val", f"{name}.summary").all()
    pictures, embedded, right = pictures.to(ctx.device), embedded.to(ctx.device), belongs.to(ctx.device)
    to_text, to_picture = ranks(pictures, embedded, right).cpu(), ranks(embedded, pictures, right.T).cpu()
    metrics = {}
    for k in AT:
        found = (to_text < k).numpy().astype(float)
        metrics[f"image→text R@{k}"] = metric(
            np.stack([found, np.ones_like(found)], axis=1), percentage, val.identity,
            direction="higher", unit="%", chance=chance(belongs, k),
        )  # fmt: skip
    pairs = belongs.double()
    for k in AT:
        found = (pairs @ (to_picture < k).double()).numpy()  # captions of each picture that found it
        metrics[f"text→image R@{k}"] = metric(
            np.stack([found, pairs.sum(dim=1).numpy()], axis=1), percentage, val.identity,
            direction="higher", unit="%", n=int(pairs.sum()), chance=chance(belongs.T, k, asked=belongs.sum(dim=0)),
        )  # fmt: skip
    return Result(metrics, {"head": name, "texts": len(words)})


def captions_of(split: Split) -> list[list[str]]:
    """Every picture's captions; raises `UserError` where one has none or a blank one: nothing could be found by it."""
    captions = [split.truth("captions")(index) for index in range(split.count)]
    for index, own in enumerate(captions):
        if not own or not all(caption.strip() for caption in own):
            what = "has a blank caption" if own else "has no caption"
            raise UserError(f"picture {index} of {split} {what}", expected="at least one caption a picture, with words")
    return captions


def ranks(queries: Tensor, candidates: Tensor, right: Tensor) -> Tensor:
    """Rank (from 0) of the best right candidate of each query; wrong candidates that tie with it stand before it.

    `queries` N×D, `candidates` M×D, `right` N×M bool with at least one True a row.
    """
    queries, candidates = F.normalize(queries.double()), F.normalize(candidates.double())
    answer = []
    for block, mask in zip(queries.split(BLOCK), right.split(BLOCK)):
        similarity = block @ candidates.T
        best = similarity.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
        answer.append(((similarity >= best - SAME) & ~mask).sum(dim=1))
    return torch.cat(answer)


def chance(right: Tensor, k: int, asked: Tensor | None = None) -> float:
    """R@k of a random order in percent: 1 − C(M−m, k) / C(M, k) for a query with m right ones among M candidates.

    The mean is over queries; `asked` N says how often each one is put, if not once.
    """
    total, own = right.shape[1], right.sum(dim=1).double()
    misses = torch.ones_like(own)
    for drawn in range(min(k, total)):
        misses *= ((total - own - drawn) / (total - drawn)).clamp(min=0)
    weights = torch.ones_like(own) if asked is None else asked.double()
    return float(100.0 * ((1 - misses) * weights).sum() / weights.sum())
