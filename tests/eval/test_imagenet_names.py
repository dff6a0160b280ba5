"""ImageNet's classes are asked by their names, found by WordNet code: by the right ones they are found, else not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.datasets import DATASETS
from eval.datasets.wordnet import imagenet_names, is_code, words_of
from eval.encoders import Model
from eval.feature_cache import FeatureCache
from eval.report.caveats import _names
from eval.tabletop.layouts import imagenet
from eval.tabletop.layouts.common import Plan
from eval.tasks import zero_shot
from eval.tasks.task import Context
from teachers.catalogue import build
from teachers.errors import UserError
from tests.conftest import ROOT

REAL = ROOT / ".." / "shared" / "data" / "tiny_imagenet_21"
PLAN = Plan(seed=3, scenes=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The tabletop in ImageNet's layout."""
    root = tmp_path_factory.mktemp("imagenet")
    for item in imagenet.items(PLAN):
        imagenet.render(root / imagenet.FOLDER, PLAN, item)
    return root


def open_split(root: Path, path: str = "imagenet", part: str = "val", **settings):
    module = DATASETS["image_folder"]
    return module.open_split("imagenet", module.Config(kind="image_folder", path=path, **settings), root, part)


def folders(root: Path, *names: str) -> Path:
    """A picture a class and part; each class has its own colour."""
    for number, name in enumerate(names):
        for part in ("train", "val"):
            (root / "set" / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "set" / part / name / "a.png")
    return root


def score(split, cache: Path, templates=("a photo of a {}",)):
    clip = build("tabletop_clip")
    settings = zero_shot.Settings(task="zero_shot", data="imagenet", templates=list(templates))
    cache = FeatureCache(cache, batch=64, say=lambda *_: None)
    return zero_shot.run(Context(Model("clip", "clip", clip), settings, 0, lambda part: split, cache, zero_shot.FIT))


@pytest.fixture(scope="module")
def accuracy(root, tmp_path_factory):
    """Names in an order → the accuracy of a shipped teacher among them, %; None: the names that the reader finds."""
    cache = tmp_path_factory.mktemp("features")

    def measure(names: list[str] | None = None) -> float:
        if names is None:
            return score(open_split(root), cache).metrics["zero-shot top-1"].value
        lines = [f"{code}\t{name}" for code, name in zip(imagenet_names(), names)]
        (root / "imagenet" / "names.txt").write_text("\n".join(lines))
        return score(open_split(root, names="names.txt"), cache).metrics["zero-shot top-1"].value

    return measure


def test_the_layout_has_the_thousand_codes_and_the_reader_their_names(root):
    split, train = open_split(root), open_split(root, part="train")
    codes = sorted(folder.name for folder in (root / "imagenet" / "val").iterdir())
    assert codes == list(imagenet_names()) and len(codes) == 1000 and all(map(is_code, codes))
    assert split.class_names[0] == "tench" and split.class_names[-1] == "toilet paper"
    told = torch.tensor([codes.index(code) for code in imagenet.LOOKS])
    counts = split.labels().bincount()
    each = imagenet.VAL * PLAN.scenes
    assert set(counts[told].tolist()) == {each} and split.count == 1000 - len(told) + each * len(told)
    assert len({file.name for file in (root / "imagenet" / "val").rglob("*.JPEG")}) == split.count
    first = [next((root / "imagenet" / "train" / code).iterdir()) for code in imagenet.others()[:3]]
    assert [(Image.open(file).format, Image.open(file).mode) for file in first] == [
        ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"),
    ]  # fmt: skip
    pictures = [train.image(index).float().mean() for index in range(3)]  # a CMYK file read inside out: 175 and more
    assert all(40 < float(mean) < 170 for mean in pictures)


def test_zero_shot_is_far_above_chance_with_the_published_names(accuracy):
    assert accuracy() > 3  # %, of at most 10: nine pictures of ten are of classes that no scene shows. Chance is 0.1


def test_zero_shot_is_at_chance_with_the_names_in_another_order(accuracy):
    names = list(imagenet_names().values())
    shuffled = [names[place] for place in np.random.default_rng(0).permutation(1000)]
    assert accuracy(shuffled) < 0.6 and accuracy([*names[1:], names[0]]) < 0.6
    assert accuracy(names) == accuracy()


def test_names_go_by_the_code_so_that_a_part_of_imagenet_is_named_rightly(tmp_path):
    root = folders(tmp_path, "n02012849", "n01440764", "n03126707", "n00005787")
    split = open_split(root, "set")
    assert split.class_names == ("benthos", "tench", "crane bird", "construction crane")  # the first is WordNet's
    assert split.truth_identity != "" and open_split(folders(tmp_path / "b", "tench"), "set").truth_identity == ""
    (tmp_path / "set" / "words.txt").write_text("n00005787 a\nn01440764 b\nn02012849 c\nn03126707 d\n")
    assert open_split(root, "set", names="words.txt").class_names == ("a", "b", "c", "d")


def test_real_folders_are_named_as_their_own_list_has_them():
    if not REAL.is_dir():
        pytest.skip("no small real data at ../shared/data/tiny_imagenet_21")
    split = open_split(REAL.parent, REAL.name)
    listed = dict(line.split(None, 1) for line in (REAL / "classes.txt").read_text().splitlines())
    same = [words_of(code).lower() == name.strip().lower() for code, name in sorted(listed.items())]
    assert len(split.class_names) == 21 and sum(same) >= 15  # the others are other words for the same thing
    assert not any(map(is_code, split.class_names))


def test_codes_without_a_name_are_refused(tmp_path):
    split = open_split(folders(tmp_path, "n01440764", "n99999999"), "set")
    with pytest.raises(UserError, match="1 of 2 classes.*'n99999999'(.|\n)*data.imagenet.names"):
        score(split, tmp_path / "cache")


def test_classes_of_one_name_and_numbers_are_said(tmp_path):
    (folders(tmp_path, "a", "b", "7") / "set" / "words.txt").write_text("a ball\nb ball\n7 7\n")
    result = score(open_split(tmp_path, "set", names="words.txt"), tmp_path / "cache")
    assert result.facts[zero_shot.ALIKE] == ["ball"] and result.facts[zero_shot.NUMBERS] == ["7"]
    assert zero_shot.first_alike([["x"], ["y"], ["x"], ["y"]]) == [0, 1, 0, 1]
    from made_up import score as made_up

    heads = [caveat.head for caveat in _names([made_up("a", "zero_shot", facts=result.facts)])]
    assert heads == ["Classes of one name.", "Classes called by numbers."] and _names([made_up("a")]) == []
