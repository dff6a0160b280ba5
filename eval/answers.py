"""Turns answers in words into figures: exact match, consensus of annotators, and what a language prior would say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from eval.datasets.split import Question

ARTICLES = ("a", "an", "the")
ANNOTATORS = 4  # from which on they can be asked for a consensus: three are left when one is left out
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS[:11])} | {"none": "0"}
SIGNS = r"[;/\[\]\"{}()=+\\_\-><@`,?!]"  # that VQA accuracy drops; an amount, a share or a time of day keeps its own
CONTRACTIONS = re.compile(  # whose letters alone are no other word, as "its" and "were" are
    r"\b(\w+n['’]t|i['’](m|ve)|(you|they|that|what|there|where|who|could|would|should|might|must)['’](re|ve|s|ll|d))\b"
)


def normalised(answer: str) -> str:
    """Lower case, without punctuation and articles; what would be empty then stays as it is."""
    words = re.sub(r"[^\w\s]", " ", re.sub(r"['’]", "", answer.lower())).split()
    return " ".join([word for word in words if word not in ARTICLES] or words) or answer.strip().lower()


def spoken(answer: str) -> str:
    """An answer as VQA accuracy compares it, where annotators type as they like: number words are digits, a comma
    between digits is nothing, a decimal point stays, and contractions are one with and without their apostrophe.
    """
    text = CONTRACTIONS.sub(lambda found: re.sub("['’]", "", found[0]), answer.lower())
    text = re.sub(r"(?<=\d),(?=\d)|\.(?!\d)", "", text)
    words = re.sub(SIGNS, " ", text).split()
    words = [DIGITS.get(word, word) for word in words if word not in ARTICLES] or words
    return " ".join(words) or answer.strip().lower()


def alike(question: Question) -> Callable[[str], str]:
    """Makes equal what counts as one answer to this question: to many annotators' as to their consensus."""
    return spoken if len(question.answers) >= ANNOTATORS else normalised


def exact(answer: str, question: Question) -> float:
    """1 where the answer is one of those that are right."""
    same = alike(question)
    return float(same(answer) in {same(right) for right in question.answers})


def consensus(answer: str, question: Question) -> float:
    """VQA accuracy (Antol et al., ICCV 2015): min(annotators who said so / 3, 1), the mean over leaving each one out.

    Of fewer than four annotators: whether any said so.
    """
    said = [spoken(answer) == spoken(given) for given in question.answers]
    if len(said) < ANNOTATORS:
        return float(any(said))
    return sum(min((sum(said) - own) / 3, 1.0) for own in said) / len(said)


def common(question: Question) -> str:
    """The answer that most annotators gave, the first of several; of its spellings the first."""
    if len(question.answers) < ANNOTATORS:
        return Counter(question.answers).most_common(1)[0][0]
    forms = [spoken(answer) for answer in question.answers]
    return question.answers[forms.index(Counter(forms).most_common(1)[0][0])]


class Prior:
    """Answers that need no picture: the one most often right for the same question in training, else overall."""

    def __init__(self, questions: Iterable[Question]):
        asked: dict[str, Counter[str]] = {}
        overall: Counter[str] = Counter()
        for question in questions:
            answer = alike(question)(common(question))
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
    right = alike(question)(common(question))
    if right in ("yes", "no"):
        return "yes/no"
    return "number" if right in NUMBERS or right.isdigit() else "other"


def opening(question: Question) -> str:
    """The first two words of a question, in lower case."""
    return " ".join(re.sub(r"[^\w\s]", " ", question.text.lower()).split()[:2])
