"""GQA layout: `testdev_balanced_questions.json` (and train), `images/*.jpg` → pictures with questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from eval.datasets.split import Question, Split, choose, contents_identity, files_identity, find_root, read_image
from eval.datasets.vqa import check_files, plain, read_json
from teachers.section import Section

LAYOUT = "train_balanced_questions.json, testdev_balanced_questions.json and images/NAME.jpg"
EXPECTED = "{QUESTION: {imageId, question, answer}, ...}"


class Config(Section):
    """Pictures with compositional questions, each with one answer."""

    kind: Literal["gqa"]
    path: str = Field(description="its folder, below data_root")
    questions: str = Field("", description="folder of the questions, in the folder")
    images: str = Field("images", description="folder of the pictures, in the folder")
    train: str = Field("train_balanced", description="how the file of training questions begins")
    val: str = Field("testdev_balanced", description="how the file of test questions begins; or val_balanced")
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field(
        "GQA is at https://cs.stanford.edu/people/dorarad/gqa/download.html", description="where to get it"
    )


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part: the pictures that are asked about, in the order of their names."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    start, limit = (config.train, config.train_limit) if part == "train" else (config.val, config.val_limit)
    file = root / config.questions / f"{start}_questions.json"
    asked = read_json(file, _questions, EXPECTED, LAYOUT)
    chosen = [sorted(asked)[index] for index in choose(len(asked), limit, name, part)]
    pictures = [root / config.images / f"{image}.jpg" for image in chosen]
    check_files(pictures, LAYOUT)
    return Split(
        data=name, part=part, count=len(pictures), source=f"{root} ({start})",
        identity=files_identity([*pictures, file], root), truth_identity=contents_identity([file], root),
        image=lambda index: read_image(pictures[index]), questions=lambda index: asked[chosen[index]],
    )  # fmt: skip


def _questions(document: Any) -> dict[str, list[Question]]:
    """Picture → its questions in the order of their ids."""
    found: dict[str, list[Question]] = {}
    for _, note in sorted(document.items()):
        question = Question(" ".join(note["question"].split()), (plain(note["answer"]),))
        found.setdefault(note["imageId"], []).append(question)
    return found
