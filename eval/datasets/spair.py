"""SPair-71k layout: pictures, and pair files with keypoints → pictures in pairs.

`Layout/large/test.txt` names a pair a line, `NUMBER-FIRST-SECOND:CLASS`; its file is `PairAnnotation/test/<line>.json`
with src_kps and trg_kps (x, y in pixels, one for each other) and trg_bndbox (x0, y0, x1, y1); its pictures are
`JPEGImages/CLASS/FIRST.jpg` and `SECOND.jpg`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from eval.datasets.lazy import Lazy
from eval.datasets.split import KeypointPair, Split, dated_identity, files_identity, find_root, read_image
from teachers.errors import UserError
from teachers.section import Section

LAYOUT = "JPEGImages/CLASS/*.jpg, PairAnnotation/{trn,val,test}/*.json and Layout/{large,small}/{trn,val,test}.txt"
LINE = "NUMBER-FIRST-SECOND:CLASS, such as 000001-2008_000033-2009_001764:aeroplane"


class Config(Section):
    """Pictures of 18 classes, in pairs that share keypoints."""

    kind: Literal["spair"]
    path: str = Field(description="its folder, below data_root")
    layout: Literal["large", "small"] = Field("large", description="which of its lists of pairs")
    train: str = Field("trn", description="list that is the train part")
    val: str = Field("test", description="list that is the val part; published figures are of test")
    get: str = Field("SPair-71k is at https://cvlab.postech.ac.kr/research/SPair-71k/", description="where to get it")


class _Pair(NamedTuple):
    """A line of a list."""

    name: str
    first: str  # below JPEGImages
    second: str
    category: str


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part: the pictures of its pairs, sorted; a pair's file is read when the pairs are asked for."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    listed = config.train if part == "train" else config.val
    pairs = _read_list(root / "Layout" / config.layout / f"{listed}.txt")
    pictures = sorted({picture for pair in pairs for picture in (pair.first, pair.second)})
    files = [root / "JPEGImages" / picture for picture in pictures]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{len(absent)} pictures of pairs are not there, such as {absent[0]}", expected=LAYOUT)
    numbers = {picture: number for number, picture in enumerate(pictures)}
    folder = root / "PairAnnotation" / listed
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", expected=LAYOUT)
    return Split(
        data=name, part=part, count=len(files), source=f"{root} ({listed}, {len(pairs)} pairs)",
        identity=files_identity(files, root, [pair.name for pair in pairs]),
        truth_identity=dated_identity(sorted(folder.glob("*.json")), root),
        image=lambda index: read_image(files[index]),
        keypoint_pairs=Lazy(lambda: [_read_pair(folder / f"{pair.name}.json", pair, numbers) for pair in pairs]),
    )  # fmt: skip


def _read_list(path: Path) -> list[_Pair]:
    try:
        lines = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", expected=LAYOUT) from None
    if not lines:
        raise UserError(f"{path} names no pair", expected=f"lines like {LINE}")
    return [_parsed(line, path) for line in lines]


def _parsed(line: str, path: Path) -> _Pair:
    stems, _, category = line.partition(":")
    names = stems.split("-")
    if len(names) != 3 or not category:
        raise UserError(f"{path} holds the line {line!r}", expected=LINE)
    return _Pair(line, f"{category}/{names[1]}.jpg", f"{category}/{names[2]}.jpg", category)


def _read_pair(path: Path, pair: _Pair, numbers: dict[str, int]) -> KeypointPair:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        # Whole numbers name pixels; a pixel's centre is half a pixel further.
        source, target = (torch.tensor(data[key], dtype=torch.float32) + 0.5 for key in ("src_kps", "trg_kps"))
        x0, y0, x1, y1 = (float(side) for side in data["trg_bndbox"])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", expected=LAYOUT) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a pair file: {type(error).__name__} {error}",
            expected="src_kps: [[x, y], ...], trg_kps: [[x, y], ...], trg_bndbox: [x0, y0, x1, y1]",
        ) from None
    if source.shape != target.shape or source.shape[1:] != (2,) or max(x1 - x0, y1 - y0) <= 0:
        raise UserError(
            f"{path} holds {len(source)} and {len(target)} keypoints, and the box {[x0, y0, x1, y1]}",
            expected="as many keypoints (x, y) in both pictures, and a box that is not empty",
        )
    first, second = numbers[pair.first], numbers[pair.second]
    return KeypointPair(first, second, source, target[:, None], max(x1 - x0, y1 - y0), pair.category)
