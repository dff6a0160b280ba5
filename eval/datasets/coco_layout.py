"""COCO's layout (`val2017/*.jpg`, `annotations/KIND_val2017.json`) → files and documents, found and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from eval.datasets.split import contents_identity, find_root
from teachers.errors import UserError
from teachers.section import Section

T = TypeVar("T")


class CocoConfig(Section):
    """Where a data set in COCO's layout is, and how much of it is used."""

    path: str = Field(description="its folder, below data_root")
    train: str = Field("train2017", description="folder of the training pictures; names the annotation file too")
    val: str = Field("val2017", description="folder of the test pictures; names the annotation file too")
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field("COCO 2017 is at https://cocodataset.org/#download", description="where to get it")


@dataclass(frozen=True)
class CocoPart:
    """The train or val part of a folder in COCO's layout, and one kind of its annotations."""

    root: Path
    folder: str  # of the pictures
    kind: str  # of the annotations: captions, instances
    limit: int | None

    @property
    def annotations(self) -> Path:
        """The annotation file."""
        return self.root / "annotations" / f"{self.kind}_{self.folder}.json"

    @property
    def identity(self) -> str:
        """Changes with what the annotation file holds."""
        return contents_identity([self.annotations], self.root)

    def parse(self, parser: Callable[[Any], T], expected: str) -> T:
        """What `parser` makes of the annotation file; `UserError` where there is none, or not what it looks for.

        Args:
            expected: the file's content in words.
        """
        try:
            return parser(json.loads(self.annotations.read_text(encoding="utf-8")))
        except OSError as error:
            what = f"{self.annotations} cannot be read: {error.strerror}"
            raise UserError(what, expected=layout(self.kind)) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # damaged JSON is a ValueError
            kind = self.kind.removesuffix("s")
            raise UserError(
                f"{self.annotations} is not a COCO {kind} file: {type(error).__name__} {error}", expected=expected
            ) from None

    def pictures(self, names: Sequence[str]) -> list[Path]:
        """The picture files of those names, all of which must be there."""
        files = [self.root / self.folder / name for name in names]
        absent = [file for file in files if not file.is_file()]
        if absent:
            what = f"{len(absent)} pictures with {self.kind} are not there, such as {absent[0]}"
            raise UserError(what, expected=layout(self.kind))
        return files


def find_part(config: CocoConfig, data_root: Path, part: str, kind: str) -> CocoPart:
    """The train or val part of the data set that `config` names; `UserError` where its folder is absent."""
    root = find_root(data_root, config.path, layout(kind), config.get)
    if part == "train":
        return CocoPart(root, config.train, kind, config.train_limit)
    return CocoPart(root, config.val, kind, config.val_limit)


def layout(kind: str) -> str:
    """How the folder should look, in words."""
    return f"val2017/*.jpg and annotations/{kind}_val2017.json (the same with train2017)"
