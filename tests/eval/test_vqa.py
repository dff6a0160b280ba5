"""Visual question answering: the truth answers, noise says what the prior says, figures agree with other arithmetic."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from test_language import write_folder
from worlds import CELL, Fake, Noise, Truth, World

from eval.answers import Prior, answer_kind, common, consensus, exact, normalised, opening, spoken
from eval.datasets.split import Question, Split
from eval.tasks import vqa
from eval.text_tiles import BLACK, tile
from teachers.errors import UserError
from teachers.seeding import numpy_rng

KINDS = ("nothing", "ball", "cube", "ring")  # as `worlds` paints mask classes
GRID = (3, 5)  # cells: a rectangular picture
QUICK = {"size": [12, 20], "tokens": 5, "steps": 250, "width": 32}


def make_split(part: str, count: int, several: bool = False) -> Split:
    """One thing in one of 3×5 cells of each picture, and questions about it, each with one answer, or that of three."""
    rng = numpy_rng("a world of questions", part)
    kinds, rows, columns = rng.integers(1, 4, count), rng.integers(0, GRID[0], count), rng.integers(0, GRID[1], count)
    columns[columns == 2] = rng.choice([0, 1, 3, 4], (columns == 2).sum())  # left or right without doubt
    images = torch.zeros(count, 3, GRID[0] * CELL, GRID[1] * CELL, dtype=torch.uint8)
    images[:, 2] = torch.arange(count)[:, None, None].to(torch.uint8) + (128 if part == "train" else 0)
    for image, kind, row, column in zip(images, kinds.tolist(), rows.tolist(), columns.tolist()):
        image[0, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = kind

    def questions(index: int) -> list[Question]:
        kind, there = KINDS[kinds[index]], KINDS[1 + index % 3]
        side = "on the left" if columns[index] < 2 else "on the right"
        pairs = [
            ("What is there?", kind), ("Where is it?", side),
            (f"Is it a {there}?", "yes" if kind == there else "no"),
        ]  # fmt: skip
        if several:
            return [Question(text, (said, f"{said} indeed", said, f"{said} indeed", said)) for text, said in pairs]
        return [Question(text, (said,)) for text, said in pairs]

    return Split(
        data="world", part=part, count=count, identity=f"questions-{part}-{count}-{several}", source="a test",
        image=lambda i: images[i], questions=questions, shape=tuple(images.shape[2:]),
    )  # fmt: skip


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, train=make_split("train", 120), val=make_split("val", 60))


# --- answers ---------------------------------------------------------------------------------------------------------


def test_exact_match_agrees_with_torchmetrics():
    from torchmetrics.functional.text import squad

    words = ["a cube", "the Cube.", "cube", "Two", "two!", "an", "red  ball", "Red ball", "don't", "dont", "?"]
    for said in words:
        for first in words:
            for second in words:
                right = [text for text in (first, second) if text not in ("an", "?")]  # squad makes nothing of these
                if not right or said in ("an", "?"):
                    continue
                answers = {"answers": {"answer_start": [0] * len(right), "text": right}, "id": "1"}
                wanted = squad([{"prediction_text": said, "id": "1"}], [answers])["exact_match"]
                assert 100 * exact(said, Question("", tuple(right))) == float(wanted), (said, right)


def test_what_is_empty_without_articles_and_punctuation_stays_itself():
    assert normalised("A") == "a" and normalised("?") == "?" and normalised(" the  THE ") == "the the"
    assert not exact("", Question("", ("?",))) and not exact("an", Question("", ("a",)))
    assert normalised("3.5 km/h") == "3 5 km h"


def test_consensus_is_the_mean_over_nine_of_ten_annotators():
    for hits in range(11):
        question = Question("", ("red",) * hits + tuple(f"other {i}" for i in range(10 - hits)))
        subsets = [min(sum(answer == "red" for answer in nine) / 3, 1) for nine in combinations(question.answers, 9)]
        assert consensus("The red.", question) == pytest.approx(np.mean(subsets))
    for few in (("red",), ("red", "red"), ("blue", "red", "red")):
        assert consensus("red", Question("", few)) == 1 and consensus("green", Question("", few)) == 0


@pytest.mark.parametrize("said, typed", [
    ("2", "two"), ("None", "0"), ("zero", "0"), ("1,000", "1000"), ("1.5", "1.5"), ("dont", "don't"),
    ("theyre", "They’re"), ("The U.S.", "us"), ("yes.", "Yes"), ("black, white", "black white"), ("t-shirt", "T shirt"),
    ("a two", "two"),
])  # fmt: skip
def test_what_annotators_type_is_one_answer(said, typed):
    everyone = Question("", (typed,) * 10)
    assert consensus(said, everyone) == 1 and consensus(typed, Question("", (said,) * 10)) == 1


@pytest.mark.parametrize("said, typed", [
    ("1.5", "1 5"), ("1.5", "15"), ("eleven", "12"), ("no", "none"), ("10", "1"), ("its", "it's"), ("mans", "man's"),
    ("were", "we're"), ("ill", "i'll"), ("$5", "5"), ("10:30", "10 30"),
])  # fmt: skip
def test_what_is_another_answer_stays_one(said, typed):
    assert consensus(said, Question("", (typed,) * 10)) == 0 and spoken("a") == "a" and spoken("?") == "?"


def test_spellings_of_one_answer_vote_together():
    many = Question("How many?", ("3", "two", "2", "3", "two", "2", "3", "2", "two", "3"))
    assert common(many) == "two" and exact("2", many) == exact("Two.", many) == 1 and answer_kind(many) == "number"
    assert Prior([many])(many) == "2" and consensus("2", many) == 1
    few = Question("How many?", ("two", "2"))
    assert common(few) == "two" and exact("Two", few) == 1


def test_the_prior_says_what_was_most_often_right():
    train = [Question("Is it red?", (word,)) for word in ("yes", "no", "no")]
    train += [Question("What?", ("ball", "cube", "cube")), Question("Why?", ("no",)), Question("Who?", ("b",))]
    prior = Prior([*train, Question("Who?", ("a b",)), Question("Who?", ("c",))])
    said = [prior(Question(text, ())) for text in ("is it RED", "what?", "which one?", "who?")]
    assert said == ["no", "cube", "no", "b"]
    assert opening(Question("Is the cat's tail long?", ())) == "is the"


# --- the task --------------------------------------------------------------------------------------------------------


def test_the_truth_answers(world):
    result = world.run(Truth(), "vqa", **QUICK)
    score = result.metrics["VQA exact match"]
    assert list(result.metrics) == ["VQA exact match"]
    assert score.value > 95 and score.n == 180 and score.unit == "%" and score.direction == "higher" and score.counts
    assert len(score.resamples) == 200
    assert result.facts["training questions"] == 360


def test_noise_says_what_the_prior_says(world):
    found = [world.run(Noise(f"noise {i}"), "vqa", **QUICK | {"steps": 60}).metrics["VQA exact match"] for i in (0, 1)]
    assert abs(np.mean([score.value for score in found]) - found[0].chance) < 4 * 50 / np.sqrt(2 * 180)


def test_chance_is_the_most_frequent_training_answer_to_the_same_words(world):
    asked = {}
    for index in range(120):
        for text, (answer,) in world.train.questions(index):
            asked.setdefault(text, Counter())[answer] += 1
    tests = [question for index in range(60) for question in world.val.questions(index)]
    best = {text: sorted(found.items(), key=lambda item: (-item[1], item[0]))[0][0] for text, found in asked.items()}
    wanted = 100 * np.mean([best[text] == answer for text, (answer,) in tests])
    result = world.run(Noise(), "vqa", **QUICK | {"steps": 1})
    assert result.metrics["VQA exact match"].chance == pytest.approx(wanted)


def test_the_figure_is_the_share_of_right_answers(world):
    ctx = world.context(Noise(), "vqa", **QUICK | {"steps": 40})
    learnt, asked = vqa.questions_of(world.train), vqa.questions_of(world.val)
    reader, room = vqa.fit(ctx.features("train", "backbone.spatial"), learnt, ctx.settings, ctx.seed)
    assert room == 3  # on the left
    pairs = vqa.prompts(asked, reader.lm, ctx.settings)
    said = vqa.answer(reader, ctx.features("val", "backbone.spatial"), pairs, room, 7)
    right = [text == question.answers[0] for own, texts in zip(asked, said) for question, text in zip(own, texts)]
    result = vqa.run(ctx)
    assert result.metrics["VQA exact match"].value == pytest.approx(100 * np.mean(right))
    kinds = result.facts["by kind of answer"]
    assert sum(row["n"] * row["model"] for row in kinds.values()) / 180 == pytest.approx(100 * np.mean(right), abs=0.1)
    assert set(kinds) == {"yes/no", "other"} and kinds["yes/no"]["n"] == 60


def test_annotators_who_disagree_are_heard(world):
    world.train, world.val = make_split("train", 120, several=True), make_split("val", 60, several=True)
    metrics = world.run(Truth(), "vqa", **QUICK).metrics
    match, accuracy = metrics["VQA exact match"], metrics["VQA accuracy"]
    assert match.value > 95 and accuracy.counts and not match.counts
    # three of five agree: (3 · 2/3 + 2 · 1) / 5 of a point for a right answer
    assert accuracy.value == pytest.approx(match.value * 4 / 5, abs=0.01)
    assert accuracy.chance == pytest.approx(match.chance * 4 / 5, abs=0.01)


def test_seeds_differ_and_repeat_and_leave_torchs_own_generator_alone(world):
    quick = QUICK | {"steps": 20}
    state = torch.get_rng_state()
    runs = [world.run(Truth(), "vqa", seed, **quick) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (run.metrics["VQA exact match"].resamples for run in runs)
    assert first == again != other


def test_the_tiny_model_uses_one_thread_and_gives_the_others_back(world, monkeypatch):
    before, seen, fit = torch.get_num_threads(), [], vqa.fit

    def spied(*arguments):
        seen.append(torch.get_num_threads())
        if len(seen) > 1:
            raise UserError("stopped")
        return fit(*arguments)

    monkeypatch.setattr(vqa, "fit", spied)
    torch.set_num_threads(2)
    try:
        world.run(Truth(), "vqa", **QUICK | {"steps": 2})
        with pytest.raises(UserError, match="stopped"):
            world.run(Truth(), "vqa", **QUICK | {"steps": 2})
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_examples_are_words_and_pictures(world):
    result = world.run(Truth(), "vqa", **QUICK | {"steps": 5})
    rows = result.facts["examples"]
    assert [row["picture"] for row in rows] == [0, 15, 30, 45] and len(result.examples) == 4
    for number, row in enumerate(rows):
        question = world.val.questions(row["picture"])[number % 3]
        assert (row["question"], row["truth"]) == (question.text, question.answers[0])
    assert result.examples[0].truth.shape == (160, 160, 3) and result.examples[0].picture.shape == (12, 20, 3)


def test_tiles_wrap_and_cut_off():
    words = tile([("a question that is too long for one row of a small tile", BLACK)])
    used = np.nonzero((words < 128).any(axis=(1, 2)))[0]
    assert used.max() - used.min() > 30 and (words[:, -4:] == 255).all()  # several rows, inside the margin
    assert (tile([("word " * 500, BLACK)])[-4:] == 255).all()  # cut off above the lower margin
    assert (tile([("", BLACK)]) == 255).all()


def test_a_language_model_from_a_folder_reads_the_features_too(world, tmp_path):
    folder = str(write_folder(tmp_path / "lm"))
    ctx = world.context(Truth(), "vqa", **QUICK | {"lm": folder, "steps": 30, "prompt": "question {} answer"})
    learnt = vqa.questions_of(world.train)
    features = ctx.features("train", "backbone.spatial")
    before = vqa.open_language_model(folder, [], 0).model.state_dict()
    frozen, _ = vqa.fit(features, learnt, ctx.settings, 0)
    assert all(torch.equal(before[name], value) for name, value in frozen.lm.model.state_dict().items())
    learning, _ = vqa.fit(features, learnt, ctx.settings.model_copy(update={"train_lm": True}), 0)
    assert not all(torch.equal(before[name], value) for name, value in learning.lm.model.state_dict().items())
    (partner,) = vqa.partners(ctx)
    assert partner.identity and vqa.partners(world.context(Truth(), "vqa")) == []
    result = vqa.run(ctx)
    assert np.isfinite(result.metrics["VQA exact match"].value)
    projector = sum(p.numel() for name, p in frozen.named_parameters() if not name.startswith("lm."))
    assert result.facts["trained parameters"] == projector


def test_a_trained_projector_makes_a_frozen_language_model_answer(world, tmp_path):
    def renamed(split: Split) -> Split:
        """What is there, in words of the language model."""
        names = dict(zip(KINDS[1:], ("red", "blue", "cube")))
        told = [(Question("what", (names[split.questions(i)[0].answers[0]],)),) for i in range(split.count)]
        return replace(split, questions=told.__getitem__)

    world.train, world.val = renamed(world.train), renamed(world.val)
    settings = QUICK | {"lm": str(write_folder(tmp_path / "lm", "llama")), "prompt": "{} answer", "steps": 120}
    score = world.run(Truth(), "vqa", **settings).metrics["VQA exact match"]
    assert score.value > 90 and score.chance < 60


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_pictures_without_questions_or_answers_are_refused(world):
    whole, own = world.val, world.val.questions
    world.val = replace(whole, questions=lambda i: [] if i in (3, 5) else own(i))
    with pytest.raises(UserError, match=r"world/val: picture 3 \(and 1 more\) has no question"):
        world.run(Truth(), "vqa", **QUICK | {"steps": 1})
    world.val = replace(whole, questions=lambda i: [Question("why?", ())])
    with pytest.raises(UserError, match="world/val: picture 0"):
        world.run(Truth(), "vqa", **QUICK | {"steps": 1})
    world.val = replace(whole, questions=None)
    with pytest.raises(UserError, match="has no questions"):
        world.run(Truth(), "vqa", **QUICK | {"steps": 1})


def test_features_that_make_the_loss_burst_are_refused(world):
    huge = Fake("huge")
    huge.see = lambda pixels: Truth().see(pixels)._replace(spatial=torch.full((len(pixels), 4, 3, 5), 3e38))
    with pytest.raises(UserError, match="loss is nan"):
        world.run(huge, "vqa", **QUICK | {"steps": 3})


@pytest.mark.parametrize("wrong", [{"width": 40}, {"prompt": "Answer:"}, {"dropout": 1.0}, {"tokens": 0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        vqa.Settings(task="vqa", data="world", **wrong)

