"""The README's commands exist, its recipes are valid, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = sorted({line.strip() for line in re.findall(r"`([^`\n]+)`", TEXT)} | set(TEXT.splitlines()))


def commands(start: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(start)]


def test_a_fresh_machine_needs_exactly_two_commands():
    block = re.search(r"```\n(.*?)```", TEXT, re.DOTALL)[1]
    assert block.split("\n")[:-1] == ["make quickstart", "make test"]


@pytest.mark.parametrize("command", commands("make "))
def test_make_knows_every_target(command):
    plan = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True)
    assert plan.returncode == 0 and plan.stdout, plan.stderr


@pytest.mark.parametrize("command", commands("deepspeed "))
def test_every_recipe_in_a_training_command_is_valid(command):
    from radio_distill.documents import find_document
    from radio_distill.recipe import load_recipe

    script, recipe, *overrides = command.split()[1:]
    assert (ROOT / script).is_file()
    load_recipe(find_document(ROOT / recipe), overrides)


@pytest.mark.parametrize("recipe", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "recipes").rglob("*.yaml")))
def test_every_shipped_recipe_is_valid_and_names_its_own_command(recipe):
    text = (ROOT / recipe).read_text()
    assert text.startswith("#") and recipe in text.split("\n\n")[0] + text[:2000]
    if recipe.startswith("recipes/eval"):
        from eval.config import load_recipe
    else:
        from radio_distill.recipe import load_recipe
    load_recipe(ROOT / recipe)


@pytest.mark.parametrize("command", commands("python -m "))
def test_every_module_command_can_be_run(command):
    found = importlib.util.find_spec(command.split()[2])
    main = Path(found.origin).with_name("__main__.py") if found.submodule_search_locations else Path(found.origin)
    assert '__name__ == "__main__"' in main.read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))))
def test_every_link_and_picture_in_the_readme_is_there(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:recipes|eval|teachers|radio_distill)/[\w/.]+)`", TEXT))))
def test_every_path_in_the_readme_is_there(path):
    assert (ROOT / path).exists()
