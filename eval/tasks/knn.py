"""Summaries of labelled pictures → the accuracy of a weighted vote among nearest neighbours."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from eval.resampling import hits, metric, percentage
from eval.tasks.task import Context, Result, TaskSettings, alone, summaries_of
from teachers.errors import UserError

VERSION = 1
GROUP = "Classification"
COUNTS = True
SEEDED = False
FIT = "crop"
SPLITS = ("train", "val")
PROTOCOL = (
    "Backbone summaries, unit length; the k = 20 most similar training pictures (cosine s) vote for their class with "
    "weight exp(s / 0.07). Pictures: largest centred square, resized. Metric: top-1 accuracy. "
    "Chance: always the most frequent training class. (RADIO's protocol.)"
)
BLOCK = 1 << 27  # similarities at once


class Settings(TaskSettings):
    """k-NN classification."""

    task: Literal["knn"]
    k: Annotated[int, Field(ge=1)] = Field(20, description="neighbours that vote")
    temperature: Annotated[float, Field(gt=0)] = Field(0.07, description="of the votes' weights")


partners = alone
parts = summaries_of(*SPLITS)


def run(ctx: Context) -> Result:
    train, val = ctx.split("train"), ctx.split("val")
    bank_labels, labels = train.labels(), val.labels()
    if ctx.settings.k > train.count:
        raise UserError(f"k = {ctx.settings.k}, but {train} has {train.count} pictures", expected="a smaller k")
    bank, queries = (ctx.features(part, "backbone.summary").all().to(ctx.device) for part in ("train", "val"))
    classes = len(train.class_names)
    scores = vote(bank, bank_labels.to(ctx.device), queries, classes, ctx.settings.k, ctx.settings.temperature)
    right = (scores.argmax(dim=1).cpu() == labels).numpy()
    commonest = bank_labels.bincount().argmax()
    chance = 100.0 * (labels == commonest).double().mean().item()
    top1 = metric(hits(right), percentage, val.identity, direction="higher", unit="%", chance=chance)
    unseen = sorted(set(labels.tolist()) - set(bank_labels.tolist()))  # a small bank: they can only be missed
    return Result({"k-NN top-1": top1}, {"bank": train.count, "unseen": [train.class_names[c] for c in unseen]})


def vote(bank: Tensor, bank_labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Class scores N×C of `queries` N×D from a labelled bank M×D."""
    bank, queries = F.normalize(bank), F.normalize(queries)
    scores = []
    for block in queries.split(max(BLOCK // len(bank), 1)):
        similarity, neighbours = (block @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(block), classes, dtype=torch.float64, device=bank.device)
        scores.append(votes.scatter_add_(1, bank_labels[neighbours], (similarity.double() / temperature).exp()))
    return torch.cat(scores)
