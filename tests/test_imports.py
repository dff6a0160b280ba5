"""The house is one straight line: `teachers ← featsharp ← radio_distill ← eval`; each imports only what stands left."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINE = ["teachers", "featsharp", "radio_distill", "eval"]


def imported(file: Path) -> dict[str, int]:
    """Packages that a file imports, also inside functions and for type checking only → the line of the first import."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are written in full here, not relative"
            names = [node.module]
        for name in names:
            found.setdefault(name.split(".")[0], node.lineno)
    return found


@pytest.mark.parametrize("package", LINE)
def test_a_package_imports_only_those_left_of_it(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    right = LINE[LINE.index(package) + 1 :]
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for name, line in imported(file).items()
        if name in right or name in ("tests", "recipes")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", LINE)
def test_no_module_hides_one_of_the_standard_library(package):
    # `python radio_distill/train.py` puts its own folder first on the path.
    names = [file.stem for file in (ROOT / package).glob("*.py") if not file.stem.startswith("__")]
    assert not sorted(set(names) & sys.stdlib_module_names)


def test_light_commands_do_not_pay_for_heavy_libraries():
    heavy = {"open_clip", "timm", "deepspeed", "wandb", "webdataset", "matplotlib", "sklearn", "torchmetrics", "pandas"}
    for module in ("teachers/features.py", "teachers/catalogue.py", "radio_distill/recipe.py", "radio_distill/train.py",
                   "radio_distill/engine.py", "radio_distill/loop.py", "featsharp/config.py"):  # fmt: skip
        tree = ast.parse((ROOT / module).read_text())
        top = {name.split(".")[0] for node in tree.body for name in _names(node)}
        assert not top & heavy, f"{module} imports {top & heavy} at its top"


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []
