"""VQAv2 and GQA: folders in their layouts are read as they are, and what is wrong with one is said with its path."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.config import load_recipe
from eval.datasets import DATASETS
from eval.datasets.split import Question, Split
from teachers.errors import UserError


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 12, 3), value, np.uint8)).save(path)


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def open_split(root: Path, part: str = "val", **config) -> Split:
    module = DATASETS[config["kind"]]
    return module.open_split("it", module.Config(path="set", **config), root, part)


def write_vqa(root: Path, folder: str = "val2014", version: str = "v2_") -> tuple[Path, Path]:
    """Two pictures, three questions, out of order, in the files' own layout."""
    for image in (42, 7):
        picture(root / "set" / folder / f"COCO_{folder}_{image:012d}.jpg", image)
    asked = [(421, 42, "How many  dogs?"), (72, 7, "Is it sunny?"), (71, 7, "What Colour is it?")]
    said = {421: ["2"] * 9 + ["Two"], 71: ["red"] * 4 + ["dark red"] * 6, 72: ["Yes"] * 10}
    questions = [{"question_id": key, "image_id": image, "question": text} for key, image, text in asked]
    annotations = [
        {
            "question_id": key, "image_id": key // 10, "question_type": "what", "answer_type": "other",
            "multiple_choice_answer": answers[0],
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)],
        }
        for key, answers in said.items()
    ]  # fmt: skip
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": folder}
    return (
        write(root / f"set/{version}OpenEnded_mscoco_{folder}_questions.json", head | {"questions": questions}),
        write(root / f"set/{version}mscoco_{folder}_annotations.json", head | {"annotations": annotations}),
    )


def write_gqa(root: Path, start: str = "testdev_balanced") -> Path:
    for name, value in (("n161313", 1), ("2370799", 2)):
        picture(root / f"set/images/{name}.jpg", value)
    notes = {
        "201307251": ("n161313", "Is the sky dark?", "yes"),
        "02930152": ("n161313", "What is on the table?", "Cup"),
        "201640614": ("2370799", "Who is wearing the shirt?", "girl"),
    }
    return write(
        root / f"set/{start}_questions.json",
        {
            key: {"imageId": image, "question": text, "answer": answer, "isBalanced": True, "types": {}}
            for key, (image, text, answer) in notes.items()
        },
    )


def test_vqa_has_every_annotators_answer_in_the_order_of_ids(tmp_path):
    write_vqa(tmp_path)
    split = open_split(tmp_path, kind="vqa")
    assert split.count == 2 and split.image(1).shape == (3, 8, 12) and abs(int(split.image(1)[0, 0, 0]) - 42) < 3
    assert [question.text for question in split.questions(0)] == ["What Colour is it?", "Is it sunny?"]
    assert split.questions(0)[0].answers == ("red",) * 4 + ("dark red",) * 6
    assert split.questions(1) == [Question("How many dogs?", ("2",) * 9 + ("two",))]


def test_ok_vqa_is_the_same_layout_without_a_version(tmp_path):
    write_vqa(tmp_path, "train2014", version="")
    assert open_split(tmp_path, "train", kind="vqa", version="").count == 2


def test_gqa_has_one_answer_a_question(tmp_path):
    write_gqa(tmp_path)
    split = open_split(tmp_path, kind="gqa")
    assert split.questions(0) == [Question("Who is wearing the shirt?", ("girl",))]
    assert split.questions(1) == [
        Question("What is on the table?", ("cup",)), Question("Is the sky dark?", ("yes",)),
    ]  # fmt: skip
    assert split.image(0).shape == (3, 8, 12)


def test_a_limit_draws_pictures_with_their_own_questions(tmp_path):
    write_gqa(tmp_path)
    whole, one = open_split(tmp_path, kind="gqa"), open_split(tmp_path, kind="gqa", val_limit=1)
    assert one.count == 1 and one.identity != whole.identity
    (match,) = [i for i in range(2) if whole.questions(i) == one.questions(0)]
    assert (whole.image(match) == one.image(0)).all()


@pytest.mark.parametrize("kind", ["vqa", "gqa"])
def test_identity_changes_with_the_questions(tmp_path, kind):
    file = write_vqa(tmp_path)[0] if kind == "vqa" else write_gqa(tmp_path)
    before = open_split(tmp_path, kind=kind).identity
    assert before == open_split(tmp_path, kind=kind).identity
    file.write_text(file.read_text(encoding="utf-8").replace("sunny", "raining").replace("dark", "clear"))
    assert before != open_split(tmp_path, kind=kind).identity


@pytest.mark.parametrize("kind", ["vqa", "gqa"])
def test_answers_changed_in_place_are_another_truth(tmp_path, kind):
    file = write_vqa(tmp_path)[0] if kind == "vqa" else write_gqa(tmp_path)
    before, status = open_split(tmp_path, kind=kind), file.stat()
    text = file.read_text(encoding="utf-8")
    changed = text.replace("sunny", "rainy").replace("dark", "pale")
    assert changed != text
    file.write_text(changed)
    os.utime(file, ns=(0, status.st_mtime_ns))
    assert open_split(tmp_path, kind=kind).identity == before.identity
    assert open_split(tmp_path, kind=kind).truth_identity != before.truth_identity


def test_a_recipe_can_name_both(tmp_path):
    text = (
        "data:\n  a: {kind: vqa, path: vqa}\n  b: {kind: gqa, path: gqa, train_limit: 10}\n"
        "tasks:\n  x: {task: knn, data: a}\n"
    )
    recipe, _ = load_recipe(write(tmp_path / "r.yaml", text))
    assert recipe.datasets["a"].version == "v2_" and recipe.datasets["b"].val == "testdev_balanced"


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vqa", "gqa"])
def test_a_missing_data_set_says_where_it_belongs_and_where_to_get_it(tmp_path, kind):
    with pytest.raises(UserError) as error:
        open_split(tmp_path, kind=kind)
    assert str(tmp_path / "set") in str(error.value) and "http" in str(error.value) and ".jpg" in str(error.value)


@pytest.mark.parametrize("kind", ["vqa", "gqa"])
def test_missing_files_and_pictures_are_named(tmp_path, kind):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=r"\.json cannot be read"):
        open_split(tmp_path, kind=kind)
    write_vqa(tmp_path) if kind == "vqa" else write_gqa(tmp_path)
    for file in (tmp_path / "set").rglob("*7*.jpg"):
        file.unlink()
    with pytest.raises(UserError, match=r"1 pictures with questions are not there, such as .*7.*\.jpg"):
        open_split(tmp_path, kind=kind)


@pytest.mark.parametrize("text", ["{", "[1]", '{"questions": [{"question_id": 1}]}', '{"1": {"imageId": "2"}}'])
def test_files_of_another_content_are_refused(tmp_path, text):
    asked, _ = write_vqa(tmp_path)
    asked.write_text(text)
    with pytest.raises(UserError, match="not a file of questions and answers.*\n.*question_id, image_id"):
        open_split(tmp_path, kind="vqa")
    write_gqa(tmp_path).write_text(text)
    with pytest.raises(UserError, match="not a file of questions and answers.*\n.*imageId, question, answer"):
        open_split(tmp_path, kind="gqa")


def test_a_question_without_answers_and_a_file_without_questions_are_refused(tmp_path):
    asked, answered = write_vqa(tmp_path)
    notes = json.loads(answered.read_text())
    notes["annotations"] = [note for note in notes["annotations"] if note["question_id"] != 72]
    write(answered, notes)
    with pytest.raises(UserError, match="question 72 has no answer"):
        open_split(tmp_path, kind="vqa")
    write(asked, {"questions": []})
    with pytest.raises(UserError, match="questions.json holds no question"):
        open_split(tmp_path, kind="vqa")
    write_gqa(tmp_path).write_text("{}")
    with pytest.raises(UserError, match="questions.json holds no question"):
        open_split(tmp_path, kind="gqa")
