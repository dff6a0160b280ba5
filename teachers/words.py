"""Texts → token ids, one token a word of a short closed list: the tokenizer of text towers that we train ourselves."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import LongTensor

from teachers.errors import UserError

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"


class WordTokenizer:
    """Lower-cases, drops punctuation, and looks every word up; one that is not listed becomes `<unk>`.

    The ids are `<pad>` = 0, `<unk>`, `<start>`, the words in their order, `<end>`. The end token has the highest id, so
    open_clip's text pooling `argmax` finds it. The signature is that of open_clip's tokenizers.
    """

    def __init__(self, words: Sequence[str], context_length: int):
        if len(set(words)) < len(words) or any(self.split(word) != [word] for word in words):
            raise UserError(
                "a word tokenizer's list holds a word twice, or something that is not one lower-case word",
                expected="distinct words of letters, digits and apostrophes",
            )
        if context_length < 3:
            raise UserError(f"a context of {context_length} tokens is too short", expected="3 or more")
        self.words = list(words)
        self.context_length = context_length
        self.ids = {token: i for i, token in enumerate((PAD, UNKNOWN, START, *self.words, END))}

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    @staticmethod
    def split(text: str) -> list[str]:
        """The words of a text, lower-cased, without punctuation."""
        return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> LongTensor:
        """Texts → ids `N×context_length`, padded at the end; words that do not fit before `<end>` are cut off."""
        texts = [texts] if isinstance(texts, str) else texts
        length = context_length or self.context_length
        tokens = torch.full((len(texts), length), self.ids[PAD], dtype=torch.long)
        for row, text in zip(tokens, texts):
            words = [self.ids.get(word, self.ids[UNKNOWN]) for word in self.split(text)][: length - 2]
            ids = [self.ids[START], *words, self.ids[END]]
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids → the words they stand for, without `<pad>`, `<start>` and `<end>`."""
        names = list(self.ids)
        return " ".join(names[int(i)] for i in tokens if names[int(i)] not in (PAD, START, END))
