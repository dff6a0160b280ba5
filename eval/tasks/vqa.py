"""Frozen feature maps and questions → how often a small language model that reads the features answers right.

Shapes: N pictures, B of a step, D width, h w grid, P visual tokens, E the language model's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from eval.answers import ANNOTATORS, Prior, answer_kind, common, consensus, exact, opening
from eval.datasets.split import Question, Split
from eval.feature_cache import Stored
from eval.language import HEAD, TINY, Folder, LanguageModel, folder_of, open_language_model
from eval.paint import picture
from eval.probes import TrainSettings, train
from eval.reader import Pair, Reader, decode, lay_out
from eval.resampling import metric, percentage
from eval.scores import MetricScore
from eval.tasks.task import Context, Example, Result, chosen, maps_of
from eval.text_tiles import BLACK, GREEN, RED, tile
from teachers.errors import UserError
from teachers.seeding import numpy_rng, seeded

VERSION = 2  # annotators' consensus counts where there are several
GROUP = "VQA"
COUNTS = True
SEEDED = True
FIT = "stretch"
SPLITS = ("train", "val")
PROTOCOL = (
    "Backbone feature maps, frozen, averaged down to a grid of at most tokens × tokens, batch norm, dropout, and a "
    "two-layer MLP (GELU, layer norm) to the width of a language model, which reads them before each question and then "
    "says the answer, as LLaVA does. `lm: tiny` is a causal transformer over the words of the training questions and "
    "answers, trained from scratch on those together with the MLP; a folder is a pre-trained causal language model, "
    "frozen unless train_lm. Training: AdamW, cosine learning rate, cross-entropy of the answer's tokens (of several "
    "annotators' answers the most frequent one); some questions of each picture a step, drawn anew. Test: every "
    "question, greedy decoding, as many tokens as the longest training answer has. Metric: exact match with an "
    "accepted answer, lower case, without punctuation and articles. Where four annotators or more answered, VQA "
    "accuracy counts instead, and exact match with any of them is shown: an answer counts min(annotators who gave it / "
    "3, 1), the mean over leaving each annotator out, with number words as digits. A seed decides initialisation and "
    "order. Chance: the most frequent training answer to the same question (else of all), a language prior that sees "
    "no picture."
)
OPENINGS = 8  # kinds of questions that facts list


class Settings(TrainSettings):
    """Visual question answering."""

    task: Literal["vqa"]
    steps: Annotated[int, Field(ge=1)] = Field(700, description="of training")
    batch: Annotated[int, Field(ge=1)] = Field(12, description="pictures a step")
    questions: Annotated[int, Field(ge=1)] = Field(8, description="of a picture in a step of training, at most")
    lr: Annotated[float, Field(gt=0)] = Field(2e-3, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.05, description="of all that is trained")
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(0.05, description="share of the steps; the rate rises in it")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.3, description="of the features that the projector reads")
    tokens: Annotated[int, Field(ge=1)] = Field(8, description="side of the grid of visual tokens, at most")
    lm: str = Field(TINY, description="tiny, or the folder of a causal language model (Hugging Face's transformers)")
    train_lm: bool = Field(False, description="whether a language model from a folder learns too")
    prompt: Annotated[str, Field(pattern=r"\{\}")] = Field(
        "Question: {} Short answer:", description="how one from a folder is asked; tiny reads the question alone"
    )
    width: Annotated[int, Field(ge=HEAD, multiple_of=HEAD)] = Field(64, description="of the tiny language model")
    layers: Annotated[int, Field(ge=1)] = Field(2, description="of the tiny language model")


def partners(ctx: Context) -> list[Folder]:
    folder = folder_of(ctx.settings.lm)
    return [] if folder is None else [folder]


parts = maps_of(*SPLITS)


def run(ctx: Context) -> Result:
    learnt, asked = questions_of(ctx.split("train")), questions_of(ctx.split("val"))
    features, maps = ctx.features("train", "backbone.spatial"), ctx.features("val", "backbone.spatial")
    with threads(1 if ctx.settings.lm == TINY else None):
        reader, room = fit(features, learnt, ctx.settings, ctx.seed, ctx.device)
        said = answer(reader, maps, prompts(asked, reader.lm, ctx.settings), room, ctx.settings.batch)
    prior = Prior(question for own in learnt for question in own)
    guessed = [[prior(question) for question in own] for own in asked]
    identity = ctx.split("val").identity
    several = any(len(question.answers) >= ANNOTATORS for own in asked for question in own)
    metrics = {"VQA exact match": figure(exact, asked, said, guessed, identity, counts=not several)}
    if several:
        metrics["VQA accuracy"] = figure(consensus, asked, said, guessed, identity, counts=True)
    facts = {
        "training questions": sum(map(len, learnt)),
        "trained parameters": sum(p.numel() for p in reader.parameters() if p.requires_grad),
        "by kind of answer": shares(asked, said, guessed, answer_kind),
        "by first words": shares(asked, said, guessed, opening),
    }
    shown, pictures = examples(ctx.split("val"), asked, said)
    return Result(metrics, facts | {"examples": shown}, pictures)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many CPU threads; None: as it is.

    The tiny model's matrices are too small to share out, and where other programs hold the cores, every operation
    waits for the thread that does not run: two threads then took seventy times as long as one (195 s, 2.7 s).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def questions_of(split: Split) -> list[list[Question]]:
    """The questions about each picture; raises `UserError` for a picture without one."""
    ask = split.truth("questions")
    found = [ask(index) for index in range(split.count)]
    silent = [index for index, own in enumerate(found) if not own or not all(question.answers for question in own)]
    if silent:
        raise UserError(
            f"{split}: picture {silent[0]} (and {len(silent) - 1} more) has no question, or one without an answer",
            expected="at least one question with an answer about every picture",
        )
    return found


def prompts(asked: Sequence[Sequence[Question]], lm: LanguageModel, settings: Settings) -> list[list[Pair]]:
    """Ids of every question as the language model is asked, and of its (most frequent) answer."""
    pattern = "{}" if settings.lm == TINY else settings.prompt
    return [
        [lm.pair(pattern.replace("{}", question.text), common(question)) for question in own] for own in asked
    ]


def fit(
    features: Stored,
    learnt: Sequence[Sequence[Question]],
    settings: Settings,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[Reader, int]:
    """Train a reader on maps N×D×h×w and the questions about each.

    Returns:
        (the reader, how many tokens the longest training answer has)
    """
    texts = [text for own in learnt for question in own for text in (question.text, common(question))]
    with seeded("vqa", seed):
        lm = open_language_model(
            settings.lm, texts, settings.tokens**2 + 1, width=settings.width, layers=settings.layers,
            learns=settings.train_lm, device=device,
        )  # fmt: skip
        reader = Reader(features.width, lm, settings.tokens, settings.dropout)
        pairs, drawn = prompts(learnt, lm, settings), numpy_rng("vqa questions", seed)

        def loss(tokens: Tensor, numbers: Tensor) -> Tensor:
            every = [pairs[index] for index in numbers.tolist()]
            some = [[own[i] for i in drawn.permutation(len(own))[: settings.questions]] for own in every]
            sheet = lay_out(some, tokens.shape[1], lm)
            logits = sheet.say(lm, tokens, sheet.at)
            return F.cross_entropy(logits.flatten(0, 1), sheet.targets.to(logits.device).flatten())

        train(reader, features, loss, settings, ("vqa order", seed), device, clip=1.0)
    return reader, max(len(answer) for own in pairs for _, answer in own)


@torch.no_grad()
def answer(reader: Reader, maps: Stored, asked: Sequence[Sequence[Pair]], room: int, batch: int) -> list[list[str]]:
    """What the reader says to every question, decoded greedily, at most `room` tokens."""
    said, device, first = [], next(reader.parameters()).device, 0
    for chunk in maps.chunks():
        for block in chunk.split(batch):
            own = [[head for head, _ in texts] for texts in asked[first : first + len(block)]]
            said += decode(reader.lm, reader(block.to(device)), own, room)
            first += len(block)
    return said


def figure(
    right: Callable[[str, Question], float],
    asked: Sequence[Sequence[Question]],
    said: Sequence[Sequence[str]],
    guessed: Sequence[Sequence[str]],
    identity: str,
    counts: bool,
) -> MetricScore:
    """Answers, and those of the prior (chance) → a metric in % of questions, resampled by pictures."""

    def sums(answers: Sequence[Sequence[str]]) -> np.ndarray:
        own = [[right(text, question) for text, question in zip(texts, qs)] for texts, qs in zip(answers, asked)]
        return np.array([(sum(hits), len(hits)) for hits in own])

    chance = float(percentage(sums(guessed).sum(axis=0)))
    questions = sum(map(len, asked))
    return metric(
        sums(said), percentage, identity, direction="higher", unit="%", n=questions, chance=chance,
        counts_in_delta=counts,
    )  # fmt: skip


def shares(
    asked: Sequence[Sequence[Question]],
    said: Sequence[Sequence[str]],
    guessed: Sequence[Sequence[str]],
    kind: Callable[[Question], str],
) -> dict[str, dict[str, float]]:
    """Exact match in % of each of the most frequent kinds of question: the model's, the prior's, and how many."""
    found: dict[str, list[tuple[float, float]]] = {}
    for own, texts, guesses in zip(asked, said, guessed):
        for question, text, guess in zip(own, texts, guesses):
            found.setdefault(kind(question), []).append((exact(text, question), exact(guess, question)))
    rows = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:OPENINGS]
    means = {name: 100 * np.mean(hits, axis=0) for name, hits in rows}
    return {
        name: {"model": round(float(means[name][0]), 1), "prior": round(float(means[name][1]), 1), "n": len(hits)}
        for name, hits in rows
    }


def examples(
    split: Split, asked: Sequence[Sequence[Question]], said: Sequence[Sequence[str]]
) -> tuple[list[dict[str, Any]], list[Example]]:
    """A question about each picture that is shown: in words, and drawn."""
    rows, drawn = [], []
    for number, index in enumerate(chosen(split.count)):
        place = number % len(asked[index])  # not always a picture's first question
        question, text = asked[index][place], said[index][place]
        truth = common(question)
        rows.append({"picture": index, "question": question.text, "truth": truth, "answer": text})
        told = tile([(text or "–", GREEN if exact(text, question) else RED)])
        drawn.append(Example(picture(split, index), tile([(question.text, BLACK), (truth, GREEN)]), told))
    return rows, drawn
