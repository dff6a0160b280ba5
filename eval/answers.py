"""Turns answers in words into figures: exact match, consensus of annotators, and what a language prior would say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from eval.datasets.split import Question

ARTICLES = ("a", "an", "the")
ANNOTATORS = 4  # from which on they can be asked for a consensus: three are left when one is left out
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


DIGITS = {word: str(number) for number, word in enumerate(NUMBERS[:11])} | {"none": "0"}


def normalised(answer: str) -> str:
    """Lower case, without punctuation and articles; what would be empty then stays as it is."""
    words = re.sub(r"[^\w\s]", " ", re.sub(r"['’]", "", answer.lower())).split()
    return " ".join([word for word in words if word not in ARTICLES] or words) or answer.strip().lower()


def spoken(answer: str) -> str:
    """`normalised` as VQA accuracy has it, where annotators type as they like: number words are digits, a comma between
    digits is nothing, a decimal point stays. (Its list of contractions is put the other way round: "don't" is "dont".)
    """
    text = re.sub(r"['’]|(?<=\d),(?=\d)|\.(?!\d)", "", answer.lower())
    words = re.sub(r"[^\w\s.]", " ", text).split()
    words = [DIGITS.get(word, word) for word in words if word not in ARTICLES] or words
    return " ".join(words) or answer.strip().lower()


def exact(answer: str, question: Question) -> float:
    """1 where the answer is one of those that are right."""
    return float(normalised(answer) in {normalised(right) for right in question.answers})


def consensus(answer: str, question: Question) -> float:
    """VQA accuracy (Antol et al., ICCV 2015): min(annotators who said so / 3, 1), the mean over leaving each one out.

    Of fewer than four annotators: whether any said so.
    """
    said = [spoken(answer) == spoken(given) for given in question.answers]
    if len(said) < ANNOTATORS:
        return float(any(said))
    return sum(min((sum(said) - own) / 3, 1.0) for own in said) / len(said)


def common(answers: Sequence[str]) -> str:
    """The answer that most annotators gave, the first of several."""
    return Counter(answers).most_common(1)[0][0]


class Prior:
    """Answers that need no picture: the one most often right for the same question in training, else overall."""

    def __init__(self, questions: Iterable[Question]):
        asked: dict[str, Counter[str]] = {}
        overall: Counter[str] = Counter()
        for question in questions:
            answer = normalised(common(question.answers))
            asked.setdefault(normalised(question.text), Counter())[answer] += 1
            overall[answer] += 1
        self._said = {text: _first(found) for text, found in asked.items()}
        self._usual = _first(overall)

    def __call__(self, question: Question) -> str:
        return self._said.get(normalised(question.text), self._usual)


def _first(found: Counter[str]) -> str:
    """The most frequent entry, the first in the alphabet of several: the order of pictures decides nothing."""
    return min(found, key=lambda answer: (-found[answer], answer))


def answer_kind(question: Question) -> str:
    """VQAv2's kinds of answers: yes/no, number, other."""
    right = normalised(common(question.answers))
    if right in ("yes", "no"):
        return "yes/no"
    return "number" if right in NUMBERS or right.isdigit() else "other"


def opening(question: Question) -> str:
    """The first two words of a question, in lower case."""
    return " ".join(re.sub(r"[^\w\s]", " ", question.text.lower()).split()[:2])
