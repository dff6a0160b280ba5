"""Captions, prompts, questions: true, in the closed vocabulary, the main thing first."""

from __future__ import annotations

import re

import pytest

from eval.tabletop.captions import class_prompts, vocabulary
from eval.tabletop.kinds import KINDS
from eval.tabletop.render import Scene, render
from teachers.words import WordTokenizer


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render(2, "test", index, 32) for index in range(90)]


def test_every_word_stands_in_the_vocabulary(scenes):
    texts = [text for scene in scenes for text in scene.captions]
    texts += [text for scene in scenes for pair in scene.questions for text in pair]
    texts += [prompt for prompts in class_prompts().values() for prompt in prompts]
    used = {word for text in texts for word in WordTokenizer.split(text)}
    assert used <= set(vocabulary())


def test_captions_name_the_main_thing_first(scenes):
    for scene in scenes:
        for caption in scene.captions:
            named = [word for word in WordTokenizer.split(caption) if word in KINDS]
            assert named[0] == scene.kind
        assert any(len([w for w in WordTokenizer.split(c) if w in KINDS]) == 1 for c in scene.captions)


def test_the_first_caption_names_every_thing_with_its_colour(scenes):
    for scene in scenes:
        for thing in scene.things:
            assert f"{thing.colour} {thing.kind}" in scene.captions[0]
        main = scene.things[0]
        assert f"{main.size} {main.material} {main.colour} {main.kind}" in scene.captions[0]


def test_articles_fit(scenes):
    for scene in scenes:
        for caption in scene.captions:
            assert not re.search(r"\ba [aeiou]", caption) and not re.search(r"\ban [^aeiou]", caption)


def test_left_and_right_are_as_seen(scenes):
    seen = 0
    for scene in scenes:
        side = re.search(r"(left|right) of", scene.captions[0])
        if side and scene.boxes[:2, 0].min() > 0 and scene.boxes[:2, 2].max() < 32:  # not cut by the picture's edge
            first, second = (scene.boxes[i, [0, 2]].mean() for i in (0, 1))
            assert (first < second) == (side[1] == "left")
            seen += 1
    assert seen > 5


def test_answers_are_true(scenes):
    for scene in scenes:
        answers = dict(scene.questions)
        assert answers["what is the largest thing in the picture?"] == scene.kind
        assert answers["how many things are on the table?"] == ("one", "two", "three", "four")[len(scene.things) - 1]
        kinds = [thing.kind for thing in scene.things]
        for question, answer in scene.questions:
            if question.startswith("is there"):
                assert (answer == "yes") == any(kind in question for kind in kinds)
            if question.startswith("what colour"):
                (thing,) = [thing for thing in scene.things if thing.kind in question]
                assert answer == thing.colour


def test_prompts_cover_the_kinds_in_order():
    assert list(class_prompts()) == list(KINDS)
    assert all(kind in prompt for kind, prompts in class_prompts().items() for prompt in prompts)
