"""The terms of a loss, an image each → their weighted sum, by fixed, running, learned or random weights.

A term is one teacher's feature or summary loss, B numbers; names are `teacher/feature` and `teacher/summary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teachers.ranks import total

MOMENTUM = 0.99  # of AdaLoss's running losses


class AdaLoss:
    """Weights 1 / running mean of each term (AdaLoss as PHI-S studied it, arXiv 2410.01680): all pull alike.

    The mean is over all ranks, so every rank weighs alike. A term's first value is its first mean.
    """

    def __init__(self, terms: Sequence[str]):
        self.running = {term: torch.zeros(()) for term in terms}

    def weights(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Terms' B losses → their weights, after these losses have been counted in."""
        means = torch.stack([value.detach().mean() for value in values.values()])
        sums = total(torch.cat([means, means.new_ones(1)]))  # and how many ranks there are
        now = sums[:-1] / sums[-1]
        for term, value in zip(values, now):
            before = self.running[term].to(value)
            self.running[term] = torch.where(before > 0, MOMENTUM * before + (1 - MOMENTUM) * value, value)
        return {term: 1 / self.running[term].clamp(min=1e-8) for term in values}

    def state(self) -> dict[str, Tensor]:
        return dict(self.running)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.running = {term: state[term].clone() for term in self.running}


class Uncertainty(nn.Module):
    """Backbone summary B×D → b for every term: a term weighs e^−b, and b costs softplus(b) (Kendall et al. 2018,
    arXiv 1705.07115, as PHI-S studied it).

    The summary is detached: a student must not learn to look uncertain instead of learning.
    """

    def __init__(self, width: int, terms: Sequence[str]):
        super().__init__()
        self.terms = list(terms)
        self.linear = nn.Linear(width, len(self.terms))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, summary: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Terms' B losses → the same, weighed, with the penalty added."""
        with torch.autocast(summary.device.type, enabled=False):
            b = self.linear(summary.detach().float())
        columns = {term: b[:, self.terms.index(term)] for term in values}
        return {term: torch.exp(-columns[term]) * value + F.softplus(columns[term]) for term, value in values.items()}


def dropped(losses: Mapping[str, Tensor], chance: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Teachers' B losses → B weights each: the worst-matched teacher of an image stays, others go with `chance`.

    The weights of an image sum to the number of teachers (UNIC, arXiv 2408.05088, §3: teacher dropping).
    """
    values = torch.stack([loss.detach() for loss in losses.values()])  # T×B
    kept = torch.rand(values.shape, generator=generator).to(values.device) >= chance
    kept.scatter_(0, values.argmax(0, keepdim=True), True)
    weights = len(values) * kept / kept.sum(0)
    return dict(zip(losses, weights))
