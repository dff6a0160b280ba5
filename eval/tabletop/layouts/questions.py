"""Scenes → pictures with questions: VQAv2 (ten annotators a question) and GQA (one answer)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eval.tabletop.layouts.common import Item, Plan, parts_of, save_jpeg, save_json, scene
from eval.tabletop.render import Scene

SIZE = (120, 160)
DIGITS = {"one": "1", "two": "2", "three": "3", "four": "4"}  # as VQAv2 has counts
ANNOTATORS = 10


def vqa_items(plan: Plan) -> list[Item]:
    return parts_of(("train2014", 2 * plan.scenes), ("val2014", plan.scenes))


def vqa_scene(plan: Plan, item: Item) -> Scene:
    return scene(plan, "vqav2", item.part, item.number, SIZE)


def vqa_id(item: Item) -> int:
    """A picture's id in COCO 2014."""
    return 42 + 97 * item.number + (9 if item.part == "train2014" else 0)


def vqa_render(root: Path, plan: Plan, item: Item) -> list[tuple[str, str]]:
    """Writes the picture; returns its questions."""
    found = vqa_scene(plan, item)
    save_jpeg(root / item.part / f"COCO_{item.part}_{vqa_id(item):012d}.jpg", found.image)
    return [(f"{text[0].upper()}{text[1:]}", DIGITS.get(answer, answer)) for text, answer in found.questions]


def vqa_finish(root: Path, plan: Plan, made: list[tuple[Item, list[tuple[str, str]]]]) -> None:
    for part in ("train2014", "val2014"):
        asked, answered = [], []
        for item, texts in made:
            for number, (text, answer) in enumerate(texts if item.part == part else ()):
                own = {"image_id": vqa_id(item), "question_id": 1000 * vqa_id(item) + number}
                asked.append(own | {"question": text})
                answered.append(own | _annotation(text, answer, number))
        head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": part, "license": {"name": "none"}}
        questions = head | {"task_type": "Open-Ended", "questions": asked}
        save_json(root / f"v2_OpenEnded_mscoco_{part}_questions.json", questions)
        save_json(root / f"v2_mscoco_{part}_annotations.json", head | {"annotations": answered[::-1]})


def _annotation(text: str, answer: str, number: int) -> dict[str, Any]:
    """Ten annotators' answers; of every fourth question two of them could not tell."""
    given = [answer] * ANNOTATORS
    if number % 4 == 3:
        given[-2:] = ["unsure", "unsure"]
    kind = "yes/no" if answer in ("yes", "no") else "number" if answer.isdecimal() else "other"
    answers = [
        {"answer": one, "answer_confidence": "yes", "answer_id": place} for place, one in enumerate(given, start=1)
    ]
    first = " ".join(text.lower().split()[:2])
    return {"question_type": first, "multiple_choice_answer": answer, "answer_type": kind, "answers": answers}


def gqa_items(plan: Plan) -> list[Item]:
    return parts_of(("train_balanced", 2 * plan.scenes), ("testdev_balanced", plan.scenes))


def gqa_scene(plan: Plan, item: Item) -> Scene:
    return scene(plan, "gqa", item.part, item.number, SIZE)


def gqa_id(item: Item) -> str:
    """A picture's id: Visual Genome's number, or n and a number of those made for testdev."""
    return f"{2354786 + item.number}" if item.part == "train_balanced" else f"n{161313 + item.number}"


def gqa_render(root: Path, plan: Plan, item: Item) -> list[tuple[str, str]]:
    """Writes the picture; returns its questions."""
    found = gqa_scene(plan, item)
    save_jpeg(root / "images" / f"{gqa_id(item)}.jpg", found.image)
    return [(f"{text[0].upper()}{text[1:]}", answer) for text, answer in found.questions]


def gqa_finish(root: Path, plan: Plan, made: list[tuple[Item, list[tuple[str, str]]]]) -> None:
    for part in ("train_balanced", "testdev_balanced"):
        texts = [(gqa_id(item), *pair) for item, own in made if item.part == part for pair in own]
        document = {f"{7 * number:08d}": _gqa_question(*text) for number, text in enumerate(texts)}
        save_json(root / f"{part}_questions.json", document)


def _gqa_question(image: str, text: str, answer: str) -> dict[str, Any]:
    return {
        "semantic": [], "entailed": [], "equivalent": [], "question": text, "imageId": image, "isBalanced": True,
        "groups": {"global": None, "local": None}, "answer": answer, "semanticStr": "",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}}, "fullAnswer": f"{answer.capitalize()}.",
        "types": {"detailed": "", "semantic": "", "structural": ""},
    }  # fmt: skip


vqav2 = SimpleNamespace(FOLDER="vqav2", items=vqa_items, render=vqa_render, finish=vqa_finish, scene_of=vqa_scene)
gqa = SimpleNamespace(FOLDER="gqa", items=gqa_items, render=gqa_render, finish=gqa_finish, scene_of=gqa_scene)
