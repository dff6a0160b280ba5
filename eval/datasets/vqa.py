"""VQAv2 layout: a questions file, an annotations file and `val2014/COCO_val2014_*.jpg` → pictures with questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from eval.datasets.split import Question, Split, choose, contents_identity, files_identity, find_root, read_image
from teachers.errors import UserError
from teachers.section import Section

T = TypeVar("T")
LAYOUT = (
    "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and "
    "val2014/COCO_val2014_000000000042.jpg (the same with train2014)"
)
QUESTIONS = "questions: [{question_id, image_id, question}, ...]"
ANNOTATIONS = "annotations: [{question_id, answers: [{answer}, ...]}, ...], one for every question"


class Config(Section):
    """Pictures with questions, each with the answers of ten annotators: VQAv2, and OK-VQA (version: "")."""

    kind: Literal["vqa"]
    path: str = Field(description="its folder, below data_root")
    train: str = Field("train2014", description="folder of the training pictures; names the files of questions too")
    val: str = Field("val2014", description="folder of the test pictures; names the files of questions too")
    version: str = Field("v2_", description='how names of the two files begin; OK-VQA and VQA v1: ""')
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field("VQAv2 is at https://visualqa.org/download.html", description="where to get it")


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part: the pictures that are asked about, in the order of their ids.

    A question has every annotator's answer, so those that several gave stand there as often.
    """
    root = find_root(data_root, config.path, LAYOUT, config.get)
    folder, limit = (config.train, config.train_limit) if part == "train" else (config.val, config.val_limit)
    asked_file = root / f"{config.version}OpenEnded_mscoco_{folder}_questions.json"
    answered_file = root / f"{config.version}mscoco_{folder}_annotations.json"
    answers = read_json(answered_file, _answers, ANNOTATIONS, LAYOUT)
    asked = read_json(asked_file, lambda document: _questions(document, answers), QUESTIONS, LAYOUT)
    chosen = [sorted(asked)[index] for index in choose(len(asked), limit, name, part)]
    files = [root / folder / f"COCO_{folder}_{image:012d}.jpg" for image in chosen]
    check_files(files, LAYOUT)
    return Split(
        data=name, part=part, count=len(files), source=f"{root} ({folder})",
        identity=files_identity([*files, asked_file, answered_file], root),
        truth_identity=contents_identity([asked_file, answered_file], root),
        image=lambda index: read_image(files[index]), questions=lambda index: asked[chosen[index]],
    )  # fmt: skip


def read_json(path: Path, parser: Callable[[Any], T], expected: str, layout: str) -> T:
    """What `parser` makes of a file; `UserError` where there is none (`layout`), or not what it looks for (`expected`).

    A parser that finds nothing is a mistake, too.
    """
    try:
        found = parser(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", expected=layout) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # damaged JSON is a ValueError
        what = f"{path} is not a file of questions and answers: {type(error).__name__} {error}"
        raise UserError(what, expected=expected) from None
    if not found:
        raise UserError(f"{path} holds no question", expected=expected)
    return found


def check_files(files: list[Path], layout: str) -> None:
    """Raise `UserError` unless every picture is there."""
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{len(absent)} pictures with questions are not there, such as {absent[0]}", expected=layout)


def plain(text: str) -> str:
    """A text in lower case, on one line."""
    return " ".join(str(text).lower().split())


def _answers(document: Any) -> dict[int, tuple[str, ...]]:
    """Question → every annotator's answer."""
    return {
        note["question_id"]: tuple(plain(given["answer"]) for given in note["answers"])
        for note in document["annotations"]
    }


def _questions(document: Any, answers: dict[int, tuple[str, ...]]) -> dict[int, list[Question]]:
    """Picture → its questions in the order of their ids."""
    found: dict[int, list[Question]] = {}
    for note in sorted(document["questions"], key=lambda note: note["question_id"]):
        if not answers.get(note["question_id"]):
            raise ValueError(f"question {note['question_id']} has no answer among the annotations")
        question = Question(" ".join(note["question"].split()), answers[note["question_id"]])
        found.setdefault(note["image_id"], []).append(question)
    return found
