"""Turns feature maps and the ids of questions into a language model's answers: what LLaVA does, in little.

Shapes: B pictures, D width, h w grid, P tokens of a picture (the start token included), E the language model's width,
T text tokens, K tokens that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.language import LanguageModel

NOT_ASKED = -100  # target of what is no answer
Pair = tuple[list[int], list[int]]  # ids of a prompt, and of its answer


class Reader(nn.Module):
    """Maps B×D×h×w → visual tokens B×P×E for the language model that it holds."""

    def __init__(self, width: int, lm: LanguageModel, side: int, dropout: float):
        super().__init__()
        self.lm, self.side = lm, side
        self.norm, self.drop = nn.BatchNorm2d(width), nn.Dropout(dropout)
        self.project = nn.Sequential(
            nn.Linear(width, lm.width), nn.GELU(), nn.Linear(lm.width, lm.width), nn.LayerNorm(lm.width)
        )

    def forward(self, maps: Tensor) -> Tensor:
        grid = min(maps.shape[2], self.side), min(maps.shape[3], self.side)
        cells = self.drop(self.norm(F.adaptive_avg_pool2d(maps, grid))).flatten(2).transpose(1, 2)
        start = self.lm.embed(torch.tensor(self.lm.start, dtype=torch.long, device=maps.device))
        return torch.cat([start.expand(len(maps), -1, -1), self.lm.scale * self.project(cells)], dim=1)


@dataclass
class Sheet:
    """The texts of some pictures, as they lie behind the pictures' tokens in one sequence each."""

    text: Tensor  # B×T ids
    sees: Tensor  # B×(P+T)×(P+T) bool
    positions: Tensor  # B×(P+T)
    at: Tensor  # B×K: the tokens behind which an answer's tokens, and its end, stand; of fewer, the last index
    targets: Tensor  # B×K ids, or NOT_ASKED

    def say(self, lm: LanguageModel, tokens: Tensor, at: Tensor) -> Tensor:
        """Logits B×k×V of what follows the tokens `at`."""
        device = tokens.device
        embeddings = torch.cat([tokens, lm.embed(self.text.to(device))], dim=1)
        return lm(embeddings, self.sees.to(device), self.positions.to(device), at.to(device))


def lay_out(pairs: Sequence[Sequence[Pair]], tokens: int, lm: LanguageModel) -> Sheet:
    """The texts about each picture one behind the other, behind its `tokens`; each sees the picture and itself."""
    count, most = len(pairs), max(sum(len(head) + len(tail) for head, tail in own) for own in pairs)
    length, asked = tokens + most, max(sum(len(tail) + 1 for _, tail in own) for own in pairs)
    ids, owner = np.full((count, length), lm.end), np.full((count, length), -1)  # whose a token is: 0 = the picture's
    positions, at = np.zeros((count, length), np.int64), np.full((count, asked), length - 1)
    targets = np.full((count, asked), NOT_ASKED)
    owner[:, :tokens], positions[:, :tokens] = 0, np.arange(tokens)
    for row, own in enumerate(pairs):
        begin, k = tokens, 0
        for number, (head, tail) in enumerate(own, start=1):
            end, answers = begin + len(head) + len(tail), len(tail) + 1
            ids[row, begin:end], owner[row, begin:end] = head + tail, number
            positions[row, begin:end] = np.arange(tokens, tokens + end - begin)
            at[row, k : k + answers] = np.arange(begin + len(head) - 1, end)
            targets[row, k : k + answers] = [*tail, lm.end]
            begin, k = end, k + answers
    owner = torch.from_numpy(owner)
    sees = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
    sees &= torch.ones(length, length, dtype=torch.bool).tril()
    if lm.both_ways:
        sees[:, :tokens, :tokens] = True
    text, positions, at, targets = (torch.from_numpy(x) for x in (ids[:, tokens:], positions, at, targets))
    return Sheet(text.contiguous(), sees, positions, at, targets)


@torch.no_grad()
def decode(lm: LanguageModel, tokens: Tensor, heads: Sequence[Sequence[list[int]]], room: int) -> list[list[str]]:
    """The likeliest next token, again and again, of all questions (ids) about B pictures (tokens B×P×E) at once."""
    sheet = lay_out([[(head, [lm.end] * room) for head in own] for own in heads], tokens.shape[1], lm)
    sheet.at = sheet.at.unflatten(1, (-1, room + 1))  # B×questions×(room + 1)
    row, column = torch.nonzero(sheet.targets.unflatten(1, (-1, room + 1))[..., 0] != NOT_ASKED, as_tuple=True)
    given = torch.full((len(row), room), lm.end)
    for step in range(room):
        at = sheet.at[:, :, step]
        given[:, step] = sheet.say(lm, tokens, at).argmax(dim=2).cpu()[row, column]
        ended = (given[:, : step + 1] == lm.end).any(dim=1)
        if ended.all():
            break
        sheet.text[row, at[row, column] + 1 - tokens.shape[1]] = given[:, step]
    texts = [lm.text(ids[: ids.index(lm.end)] if lm.end in ids else ids) for ids in given.tolist()]
    ends = np.cumsum([len(own) for own in heads]).tolist()
    return [texts[end - len(own) : end] for own, end in zip(heads, ends)]
