"""ImageFolder layout (ImageNet): `train/<class>/*.jpg`, `val/<class>/*.jpg` → pictures with labels.

Classes are called as their folders are. Folders called by WordNet's codes (n01440764), as ImageNet's, get their names
in words (tench): the 1000 of CLIP's evaluation, else WordNet's own first word. `names` puts others in their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eval.datasets.split import Split, choose, files_identity, find_root, list_images, read_image
from eval.datasets.wordnet import in_words
from teachers.errors import UserError
from teachers.features import identity_of
from teachers.section import Section

LAYOUT = "train/<class>/*.jpg and val/<class>/*.jpg, a folder a class"
NAMES_LINES = "lines of: class folder, tab, name in words"


class Config(Section):
    """Pictures sorted into a folder a class."""

    kind: Literal["image_folder"]
    path: str = Field(description="its folder, below data_root")
    train: str = Field("train", description="sub-folder of the training pictures")
    val: str = Field("val", description="sub-folder of the test pictures")
    names: str | None = Field(
        None,
        description="text file in the folder: class folder, tab, name in words; none = the folders' names, and of "
        "WordNet codes (n01440764) the published names",
    )
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field("ImageNet-1k is at https://image-net.org (free for research)", description="where to get it")


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    classes = _classes(root / config.train)
    others = _classes(root / config.val)
    if classes != others:
        odd = sorted(set(classes) ^ set(others))
        raise UserError(
            f"{root}: {config.train} and {config.val} hold different classes, such as {odd[0]!r}", expected=LAYOUT
        )
    folder = root / (config.train if part == "train" else config.val)
    pairs = [(file, label) for label, name in enumerate(classes) for file in _pictures(folder / name)]
    limit = config.train_limit if part == "train" else config.val_limit
    pairs = [pairs[index] for index in choose(len(pairs), limit, name, part)]
    names = _names(root, config.names, classes)
    return Split(
        data=name, part=part, count=len(pairs), source=f"{root} ({folder.name})",
        identity=files_identity([file for file, _ in pairs], root, classes),
        truth_identity=identity_of({}, names) if names != _as_folders(classes) else "",
        image=lambda index: read_image(pairs[index][0]), label=lambda index: pairs[index][1], class_names=names,
    )  # fmt: skip


def _classes(folder: Path) -> list[str]:
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    if not classes:
        raise UserError(f"{folder} holds no class folders", expected=LAYOUT)
    return classes


def _pictures(folder: Path) -> list[Path]:
    files = list_images(folder)
    if not files:
        raise UserError(f"class folder {folder} holds no picture", expected="at least one picture a class")
    return files


def _as_folders(classes: list[str]) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in classes)


def _names(root: Path, file: str | None, classes: list[str]) -> tuple[str, ...]:
    if file is None:
        return in_words(classes)
    try:
        lines = (root / file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{root / file} cannot be read: {error}", expected=f"UTF-8 text, {NAMES_LINES}") from None
    named = dict(_named(line, f"{root / file}, line {n}") for n, line in enumerate(lines, start=1) if line.strip())
    absent = [name for name in classes if name not in named]
    if absent:
        raise UserError(f"{root / file} has no name for class {absent[0]!r}", expected=NAMES_LINES)
    return tuple(named[name] for name in classes)


def _named(line: str, where: str) -> tuple[str, str]:
    """Class folder and name; folders with blanks in them need the tab."""
    parts = line.split("\t", 1) if "\t" in line else line.split(None, 1)
    folder, name = parts[0].strip(), parts[-1].strip()
    if len(parts) < 2 or not folder or not name:
        raise UserError(f"{where} is {line.strip()!r}", expected=f"{NAMES_LINES}; a blank will do if there is no tab")
    return folder, name
