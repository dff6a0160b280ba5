"""docs/evaluation.md: its tables are the registries', its recipe is valid, its examples run, its commands exist."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from PIL import Image
from worlds import Noise, Truth, World

from eval.__main__ import COMMANDS, main
from eval.config import load_recipe
from eval.datasets import DATASETS
from eval.protocols import filled
from eval.tasks import TASKS
from teachers.errors import UserError

FILE = Path(__file__).parents[2] / "docs" / "evaluation.md"
PAGE = FILE.read_text(encoding="utf-8")


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def module(source: str, name: str) -> types.ModuleType:
    made = types.ModuleType(name, source.split('"""')[1])
    sys.modules[name] = made  # pydantic looks its annotations up there
    exec(compile(source, name, "exec"), made.__dict__)
    return made


def test_every_task_and_data_set_stands_in_the_page_as_it_is():
    for name in [*TASKS, *DATASETS]:
        assert f"| `{name}` |" in PAGE, f"{name} is missing: python -m eval protocols --write docs/evaluation.md"
    assert filled(PAGE) == PAGE, "the tables are old: python -m eval protocols --write docs/evaluation.md"


def test_a_page_without_a_place_for_the_tables_is_refused():
    with pytest.raises(UserError, match="no place for data"):
        filled(PAGE.replace("<!-- /data -->", ""))


def test_the_recipe_of_the_page_is_valid(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "page.yaml").write_text(text, encoding="utf-8")
    recipe, _ = load_recipe(tmp_path / "page.yaml")
    assert set(recipe.task_settings) == {"knn", "ade20k", "tabletop"} and recipe.datasets["ade20k"].classes == 150


def test_commands_of_the_page_exist(capsys):
    named = set(re.findall(r"python -m eval ([a-z]+)\b(?![/.])", PAGE))
    assert named - {"recipes"} == set(COMMANDS)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
    assert "usage: python -m eval" in capsys.readouterr().out


def test_the_command_prints_protocols_and_layouts(capsys):
    assert main(["protocols", "knn", "masks"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "task knn (Classification, version 1)" in text and "weight exp(s / 0.07)" in text
    assert "folder: images/{training,validation}/NAME.jpg" in text and "sceneparsing" in text
    assert main(["protocols", "knnn"]) == 2 and "no task or data set is named 'knnn'" in capsys.readouterr().err


def test_the_task_of_the_page_runs_and_knows_truth_from_noise(tmp_path, monkeypatch):
    source = examples()[0]
    assert len(source.splitlines()) < 65
    monkeypatch.setitem(TASKS, "centroid", module(source, "page_task"))
    world = World(tmp_path)
    truth, noise = (world.run(encoder, "centroid").metrics["nearest mean top-1"] for encoder in (Truth(), Noise()))
    assert truth.value == 100.0 and truth.chance == 25.0 and len(truth.resamples) == 200
    assert noise.value == pytest.approx(noise.chance, abs=20)  # 48 pictures


def test_the_data_set_of_the_page_reads(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "labels_csv", module(examples()[1], "page_data"))
    recipe = tmp_path / "trial.yaml"
    recipe.write_text("data: {mine: {kind: labels_csv, path: mine}}\ntasks: {knn: {task: knn, data: mine, k: 1}}\n")
    config = load_recipe(recipe)[0].datasets["mine"]

    def opened(part):
        return DATASETS["labels_csv"].open_split("mine", config, tmp_path, part)

    with pytest.raises(UserError, match="no data set at .*mine"):
        opened("train")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="train.csv cannot be read"):
        opened("train")
    for part, lines in {"train": "a.png,cat\nb.png,dog\n", "val": "b.png,dog\n"}.items():
        (tmp_path / "mine" / f"{part}.csv").write_text(lines)
    with pytest.raises(UserError, match="lists .*a.png, which is not there"):
        opened("train")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (6, 4)).save(tmp_path / "mine" / name)
    train, val = opened("train"), opened("val")
    assert train.labels().tolist() == [0, 1] and val.labels().tolist() == [1] and val.class_names == ("cat", "dog")
    assert tuple(val.image(0).shape) == (3, 4, 6)
