"""The word tokenizer: ids, punctuation, truncation, and where open_clip's pooling looks."""

from __future__ import annotations

import pytest
import torch

from teachers.errors import UserError
from teachers.words import WordTokenizer

WORDS = ["a", "ball", "red", "table"]


def test_ids_are_pad_unknown_start_words_end():
    tokens = WordTokenizer(WORDS, 8)("A red, red BALL!")
    assert tokens.tolist() == [[2, 3, 5, 5, 4, 7, 0, 0]]
    assert WordTokenizer(WORDS, 8).vocab_size == 8


def test_unlisted_words_become_unknown():
    tokenize = WordTokenizer(WORDS, 6)
    assert tokenize("a <unk> sofa").tolist() == [[2, 3, 1, 1, 7, 0]]
    assert tokenize.decode(tokenize("a sofa")[0]) == "a <unk>"


def test_a_text_that_is_too_long_keeps_its_end_token():
    tokens = WordTokenizer(WORDS, 5)(["a red ball table a red ball", ""])
    assert tokens.tolist() == [[2, 3, 5, 4, 7], [2, 7, 0, 0, 0]]


def test_argmax_finds_the_end_token():
    tokens = WordTokenizer(WORDS, 9)(["a table", "a red ball a red ball a red ball", "table"])
    assert (tokens.gather(1, tokens.argmax(1, keepdim=True)) == 7).all()
    assert tokens.dtype == torch.long


def test_decoding_gives_the_words_back():
    tokenize = WordTokenizer(WORDS, 8)
    assert tokenize.decode(tokenize("A red ball.")[0]) == "a red ball"


@pytest.mark.parametrize("words", [["a", "a"], ["Ball"], ["two words"], ["dot."], [""]])
def test_a_word_that_no_text_can_match_is_refused(words):
    with pytest.raises(UserError, match="word"):
        WordTokenizer(words, 8)


def test_a_context_without_room_for_a_word_is_refused():
    with pytest.raises(UserError, match="context"):
        WordTokenizer(WORDS, 2)
