"""The tabletop in the published layouts: names and values are as published, what readers find is the scenes' truth."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.__main__ import main as evaluate
from eval.config import load_recipe
from eval.datasets.split import IGNORE
from eval.scores import load_folder
from eval.suite import Suite
from eval.tabletop.kinds import KINDS
from eval.tabletop.layouts import (
    LAYOUTS,
    _render,
    ade20k,
    captions,
    cityscapes,
    coco,
    marker,
    navi,
    nyud,
    pascal_context,
    questions,
    sam,
    spair,
    voc,
    write,
)
from eval.tabletop.layouts.common import Item, Plan
from teachers.errors import UserError
from tests.conftest import ROOT

PLAN = Plan(seed=3, scenes=4)
SEEDED = (
    "ade20k", "ade20k_1024", "voc", "cityscapes", "depth", "normals", "pascal_context", "nyudv2", "vqav2", "gqa",
    "detection",
)  # fmt: skip
YEAR = r"20\d\d_\d{6}"
PUBLISHED = {  # data set → the names of its files, as its authors publish them
    "imagenet": [r"train/n\d{8}/(n\d{8})_\d+\.JPEG", r"val/n\d{8}/ILSVRC2012_val_000\d{5}\.JPEG"],
    "ADEChallengeData2016": [
        r"images/training/ADE_train_\d{8}\.jpg", r"images/validation/ADE_val_\d{8}\.jpg",
        r"annotations/training/ADE_train_\d{8}\.png", r"annotations/validation/ADE_val_\d{8}\.png",
    ],
    "VOCdevkit/VOC2012": [
        rf"JPEGImages/{YEAR}\.jpg", rf"Annotations/{YEAR}\.xml",
        rf"Segmentation(Class|Object|ClassAug)/{YEAR}\.png",
        r"ImageSets/Segmentation/(train|val|trainval|trainaug)\.txt",
    ],
    "cityscapes": [
        r"leftImg8bit/(train|val)/([a-z]+)/\2_\d{6}_\d{6}_leftImg8bit\.png",
        r"gtFine/(train|val)/([a-z]+)/\2_\d{6}_\d{6}_gtFine_((labelIds|instanceIds|color)\.png|polygons\.json)",
    ],
    "coco2014": [r"dataset_coco\.json", r"(?P<part>train|val)2014/COCO_(?P=part)2014_\d{12}\.jpg"],
    "flickr30k": [r"dataset_flickr30k\.json", r"flickr30k-images/\d{10}\.jpg"],
    "navi_v1": [
        r"\w+/(wild_set|multiview-\d\d-\w+)/(images/\d{3}\.jpg|(depth|masks)/\d{3}\.png|annotations\.json)"
    ],
    "SPair-71k": [
        rf"JPEGImages/[a-z]+/{YEAR}\.jpg", rf"Segmentation/[a-z]+/{YEAR}\.png",
        rf"PairAnnotation/(trn|val|test)/\d{{6}}-{YEAR}-{YEAR}:[a-z]+\.json",
        r"Layout/(large|small)/(trn|val|test)\.txt",
    ],
    "NYUDv2": [
        r"gt_sets/(train|val)\.txt", r"images/\d+\.jpg", r"segmentation/\d+\.png", r"(depth|normals|edge)/\d+\.npy"
    ],
    "PASCALContext": [
        rf"JPEGImages/{YEAR}\.jpg", r"ImageSets/Context/(train|val)\.txt",
        rf"semseg/(VOC12|pascal-context)/{YEAR}\.png", rf"human_parts/{YEAR}\.mat",
        rf"(sal|normals)_distill/{YEAR}\.png", rf"pascal-context/trainval/{YEAR}\.mat",
    ],
    "vqav2": [
        r"v2_OpenEnded_mscoco_(train|val)2014_questions\.json", r"v2_mscoco_(train|val)2014_annotations\.json",
        r"(?P<part>train|val)2014/COCO_(?P=part)2014_\d{12}\.jpg",
    ],
    "gqa": [r"(train|testdev)_balanced_questions\.json", r"images/n?\d+\.jpg"],
    "coco": [r"annotations/(instances|captions)_(train|val)2017\.json", r"(train|val)2017/\d{12}\.jpg"],
    "sam_random": [r"(config\.json|model\.safetensors)"],
}  # fmt: skip


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """All layouts, small."""
    out = tmp_path_factory.mktemp("layouts") / "root"
    assert write(out, PLAN.scenes, PLAN.seed)
    return out


@pytest.fixture(scope="session")
def suite(root) -> Suite:
    """The shipped recipe, unchanged, on them."""
    recipe, _ = load_recipe(ROOT / "recipes" / "eval" / "full.yaml")
    return Suite(recipe, root.parent / "out", root, say=lambda *_: None)


def items(layout, part: str) -> list[Item]:
    return [item for item in layout.items(PLAN) if item.part == part]


# --- what is written -------------------------------------------------------------------------------------------------


def test_every_file_is_called_as_published(root):
    files = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
    named = [(folder, name) for folder, names in PUBLISHED.items() for name in names]
    patterns = {pair: re.compile("/".join((re.escape(pair[0]), pair[1]))) for pair in named}
    odd = [file for file in files if not any(pattern.fullmatch(file) for pattern in patterns.values())]
    assert odd == ["rehearsal.json"]
    assert {name for name, pattern in patterns.items() if any(map(pattern.fullmatch, files))} == set(patterns)
    assert {layout.FOLDER for layout in LAYOUTS.values()} == set(PUBLISHED)


def test_every_data_set_of_the_full_recipe_is_there_in_both_parts(root, suite, capsys):
    assert evaluate(["data", str(ROOT / "recipes/eval/full.yaml"), "--data-root", str(root)]) == 0
    told = capsys.readouterr().out
    assert "REHEARSAL" in told and "all there" in told and "the recipe expects 1281167" in told
    for name in suite.recipe.datasets:
        for part in ("train", "val"):
            split = suite.split(name, part)
            assert split.count >= PLAN.scenes and split.image(split.count - 1).shape[0] == 3, split


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "sam"])
def test_the_same_plan_gives_the_same_bytes(root, tmp_path, name):
    layout = LAYOUTS[name]
    for item in layout.items(PLAN)[:1] + layout.items(PLAN)[-1:]:
        _render((name, item), tmp_path, PLAN)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    for file in files:
        assert file.read_bytes() == (root / file.relative_to(tmp_path)).read_bytes(), file


def test_annotation_files_are_the_same_bytes_too(root, tmp_path):
    layout = LAYOUTS["gqa"]
    made = [(item, layout.render(tmp_path, PLAN, item)) for item in layout.items(PLAN)]
    layout.finish(tmp_path, PLAN, made)
    name = "testdev_balanced_questions.json"
    assert (tmp_path / name).read_bytes() == (root / "gqa" / name).read_bytes()


# --- truths ----------------------------------------------------------------------------------------------------------


def test_ade20k(root, suite):
    split = suite.split("ade20k", "val")
    for index, item in enumerate(items(ade20k, "validation")):
        found = ade20k.scene_of(PLAN, item)
        expected = ade20k.VALUES[found.semantic].astype(int) - 1
        expected = np.where(expected < 0, IGNORE, expected) if item.number != 3 else np.full_like(expected, IGNORE)
        assert np.array_equal(split.mask(index).numpy(), expected)
        assert np.abs(split.image(index).permute(1, 2, 0).numpy().astype(int) - found.image).mean() < 3  # of JPEG
    with Image.open(next((root / "ADEChallengeData2016/annotations/training").glob("*.png"))) as file:
        assert file.mode == "L"
    assert (split.mask(0) == 15).any() and (split.mask(0) == 0).any()  # table, wall: 16 and 1 in the files


def test_voc(root, suite):
    split, train = suite.split("voc", "val"), suite.split("voc", "train")
    assert (split.count, train.count) == (PLAN.scenes, 2 * PLAN.scenes)  # trainaug: train, and what was added
    for index, item in enumerate(items(voc, "val")):
        found, mask = voc.scene_of(PLAN, item), split.mask(index).numpy()
        void = mask == IGNORE
        assert np.array_equal(mask[~void], voc.VALUES[found.semantic][~void]) and (void == voc.outlines(found)).all()
        assert 0.01 < void.mean() < 0.4 and void[found.boundaries].all()
    aug = train.mask(train.count - 1)
    assert not (aug == IGNORE).any() and (aug == 11).any()
    modes = {}
    for folder in ("SegmentationClass", "SegmentationClassAug"):
        with Image.open(next((root / "VOCdevkit/VOC2012" / folder).glob("2007*.png"))) as file:
            modes[folder] = file.mode
            if file.mode == "P":
                assert file.getpalette()[3:6] == [128, 0, 0] and file.getpalette()[765:768] == [224, 224, 192]
    assert modes == {"SegmentationClass": "P", "SegmentationClassAug": "L"}


def test_cityscapes(root, suite):
    split = suite.split("cityscapes", "val")
    files = sorted((root / "cityscapes/leftImg8bit/val").glob("*/*.png"))
    by_name = {f"{cityscapes.name_of(item)}_leftImg8bit.png": item for item in items(cityscapes, "val")}
    for index, file in enumerate(files):
        found = cityscapes.scene_of(PLAN, by_name[f"{file.parent.name}/{file.name}"])
        mask = split.mask(index).numpy()
        inside = np.s_[1:-17, 2:-2]
        kinds = np.isin(found.semantic[inside], [2 + KINDS.index("rocket")])
        assert (mask[inside] == IGNORE)[kinds].all() and not (mask[inside] == IGNORE)[~kinds].any()
        road = mask[inside] == split.mask_names.index("road")
        assert np.array_equal(road, found.semantic[inside] == 0)
        assert (mask[-1] == IGNORE).all() and (mask[:, 0] == IGNORE).all()
    ids = np.unique(np.array(Image.open(next((root / "cityscapes").rglob("*labelIds.png")))))
    assert ids.max() < 34 and {1, 3} <= set(ids.tolist())


def test_coco_instances(root, suite):
    split = suite.split("coco", "val")
    assert len(split.thing_names) == 80 and split.thing_names[-1] == "toothbrush"
    document = json.loads((root / "coco/annotations/instances_val2017.json").read_text())
    ids = [category["id"] for category in document["categories"]]
    assert len(ids) == 80 and max(ids) == 90 and 12 not in ids
    crowds = 0
    for index, item in enumerate(items(coco, "val2017")):
        found, things = coco.scene_of(PLAN, item), split.instances(index)
        if item.number == coco.EMPTY:
            assert len(things.boxes) == 0
            continue
        masks, crowds = things.masks().numpy(), crowds + int(things.crowd.sum())
        if things.crowd.any():
            assert np.array_equal(masks[things.crowd.numpy()].any(axis=0), found.instances > 1)
        for place, thing in enumerate(found.things[: int((~things.crowd).sum())]):
            truth = found.instances == place + 1
            assert (masks[place] & truth).sum() / (masks[place] | truth).sum() > 0.97
            assert things.boxes[place].tolist() == found.boxes[place].tolist()
            name = split.thing_names[int(things.classes[place])]
            assert (name == "sports ball") == (thing.kind == "ball")
            assert (name == "airplane") == (thing.kind == "rocket")
    assert crowds == 1
    assert "1 boxes without area left out" in suite.split("coco", "train").source


def test_captions_and_questions(root, suite):
    for data, layout in (("coco5k", captions.coco2014), ("flickr1k", captions.flickr30k)):
        split = suite.split(data, "val")
        for index, item in enumerate(items(layout, "test")):
            expected = [f"{text.capitalize()}." for text in layout.scene_of(PLAN, item).captions[:5]]
            assert split.captions(index) == expected and len(expected) == 5
    vqa, gqa = suite.split("vqav2", "val"), suite.split("gqa", "val")
    for index, item in enumerate(items(questions.vqav2, "val2014")):
        expected = questions.vqav2.scene_of(PLAN, item).questions
        assert [question.text.lower() for question in vqa.questions(index)] == [text for text, _ in expected]
        given = [question.answers for question in vqa.questions(index)]
        assert all(len(answers) == 10 for answers in given) and {answers.count("unsure") for answers in given} == {0, 2}
        assert [answers[0] for answers in given] == [questions.DIGITS.get(answer, answer) for _, answer in expected]
    for index, item in enumerate(items(questions.gqa, "testdev_balanced")):
        expected = questions.gqa.scene_of(PLAN, item).questions
        found = [(question.text.lower(), *question.answers) for question in gqa.questions(index)]
        assert sorted(found) == sorted(expected)


def test_navi(suite):
    split = suite.split("navi", "val")
    own = sorted(items(navi, "wild"), key=lambda item: (item.key, item.number))
    assert split.count == len(own) and len(split.view_pairs) == split.count // 4
    assert all(0 < pair.angle < 120 for pair in split.view_pairs)
    for index in (0, split.count - 1):
        found = navi.scene_of(PLAN, own[index])
        mask, thing = found.instances == 1, found.things[0]
        depth = split.depth(index)
        known = depth[depth.isfinite()]
        assert float(known.min()) == pytest.approx(found.depth[mask].min(), abs=0.003)
        assert float(known.max()) == pytest.approx(found.depth[mask].max(), abs=0.003)
        points = split.points(index)[:, depth.isfinite()].T[::97]
        truth = torch.from_numpy(found.coordinates[mask] * thing.scale)  # metres in the object's own frame
        assert float(torch.cdist(points, truth).min(dim=1).values.max()) < 0.004
    first, second = own[0], own[1]
    one, other = (navi.scene_of(PLAN, item).things[0] for item in (first, second))
    assert (one.kind, one.colour, one.scale) == (other.kind, other.colour, other.scale)  # the same object, elsewhere


def test_spair(root, suite):
    split = suite.split("spair", "val")
    pairs = list(split.keypoint_pairs)
    lines = (root / "SPair-71k/Layout/large/test.txt").read_text().split()
    assert len(pairs) == len(lines) and {pair.category for pair in pairs} >= {"person", "aeroplane"}
    people = [(line, pair) for line, pair in zip(lines, pairs) if pair.category == "person"]
    for line, pair in people:  # a snowman looks like itself from one side only
        names = re.search(rf"-({YEAR})-({YEAR}):", line).groups()
        number = {spair.stem("test", n): n for n in range(spair.pictures(PLAN, "test"))}
        first, second = (spair.scene_of(PLAN, "test", "snowman", number[name]) for name in names)
        own = [
            scene.coordinates[places[:, 1].long(), places[:, 0].long()]
            for scene, places in ((first, pair.source), (second, pair.targets[:, 0]))
        ]
        assert np.nanmax(np.linalg.norm(own[0] - own[1], axis=1)) < 0.15  # of its size: a pixel or two
        assert pair.scale == max(np.diff(second.boxes[0].reshape(2, 2), axis=0)[0])


def test_nyud(suite):
    split = suite.split("nyud", "val")
    for index, item in enumerate(items(nyud, "val")):
        found, blind = nyud.scene_of(PLAN, item), np.s_[:, : nyud.BLIND]
        depth, normals = split.depth(index).numpy().copy(), split.normals(index).permute(1, 2, 0).numpy().copy()
        assert np.isnan(depth[blind]).all() and np.isnan(normals[blind]).all()
        depth[blind], normals[blind] = found.depth[blind], found.normals[blind]
        assert np.array_equal(depth, found.depth) and np.allclose(normals, found.normals, atol=1e-5)
        expected = nyud.VALUES[found.semantic].astype(int) - 1
        assert np.array_equal(split.mask(index).numpy(), np.where(expected < 0, IGNORE, expected))
        assert np.array_equal(split.boundary(index).numpy(), found.boundaries)


def test_pascal_context(suite):
    split = suite.split("pascal_context", "val")
    heads = 0
    for index, item in enumerate(items(pascal_context, "val")):
        found, void = pascal_context.scene_of(PLAN, item), split.mask(index).numpy() == IGNORE
        assert np.array_equal(split.mask(index).numpy()[~void], voc.VALUES[found.semantic][~void])
        assert np.array_equal(split.saliency(index).numpy(), found.saliency)
        parts = split.parts(index).numpy()
        people = found.semantic == 2 + KINDS.index("snowman")
        if people.any():
            assert np.array_equal(parts > 0, people)
            heads += (parts == split.part_names.index("head")).any()
        else:
            assert (parts == IGNORE).all()
        normals = split.normals(index).permute(1, 2, 0).numpy()
        known = np.isfinite(normals).all(axis=-1)
        assert known[found.semantic < 2].all() and not known[found.semantic == 2 + KINDS.index("ball")].any()
        assert np.abs(normals[known] - found.normals[known]).max() < 0.02  # of eight bits
        assert split.boundary(index).any()
    assert heads >= PLAN.scenes // 2


# --- the recipe ------------------------------------------------------------------------------------------------------

SMALL = [
    "data.imagenet.train_limit=40", "data.imagenet.val_limit=40", "data.navi.size=64",
    "tasks.zero_shot.templates=['a photo of a {}']",
    *(f"tasks.{task}.size=64" for task in ("ade20k", "ade20k_1024", "voc", "cityscapes", "keypoints", "detection")),
    *(f"tasks.{task}.seeds=[0]" for task in SEEDED), *(f"tasks.{task}.steps=3" for task in SEEDED),
    *(f"tasks.{task}.hidden=32" for task in ("depth", "normals", "nyudv2", "pascal_context", "detection")),
    *(f"tasks.{task}.labels=16" for task in ("ade20k", "ade20k_1024", "voc", "cityscapes", "depth", "normals")),
    *(f"tasks.{task}.labels=16" for task in ("nyudv2", "pascal_context")), "tasks.detection.cells=16",
    *(f"tasks.{task}.thresholds=3" for task in ("nyudv2", "pascal_context")), "pictures.count=0", "threads=1",
]  # fmt: skip


def test_every_task_of_the_full_recipe_gives_a_figure(root, tmp_path):
    """At small sizes, and of a teacher; `python -m eval recipes/eval/full.yaml` itself takes minutes."""
    settings = [word for setting in [*SMALL, f"cache={tmp_path}/cache"] for word in ("--set", setting)]
    models = ["teacher:tabletop_clip", "--baseline", "tabletop_clip", "--data-root", str(root)]
    recipe = str(ROOT / "recipes/eval/full.yaml")
    assert evaluate([recipe, *models, "--out", str(tmp_path / "out"), *settings]) == 0
    scores = load_folder(tmp_path / "out" / "scores")
    assert not any(score.error for score in scores) and len(scores) == 21
    assert {score.task for score in scores if not score.metrics} == {"match", "fidelity", "sam"}  # want other models
    page = (tmp_path / "out" / "report.md").read_text()
    header = next(line for line in page.splitlines() if line.startswith("| model | overall |"))
    groups = {"Classification", "Dense", "Probe3D", "Retrieval", "Pascal Context", "NYUDv2", "VQA"}
    assert groups <= {cell.strip() for cell in header.split("|")}
    figures = {score.task: score.metrics for score in scores}
    assert figures["coco_retrieval"]["image→text R@1"].value > 50  # chance 12.5


# --- the folder ------------------------------------------------------------------------------------------------------


def test_sams_decoder_has_the_shapes_of_sam_h_and_loads(root):
    pytest.importorskip("transformers")
    from eval.sam_decoder import load

    decoder = load(root / sam.FOLDER)
    assert (decoder.width, decoder.frame, decoder.grid) == (1280, 1024, 64)
    with torch.no_grad():
        assert decoder(torch.randn(1280, 8, 8), torch.tensor([[100.0, 100, 400, 500]])).shape == (1, 256, 256)


def test_an_earlier_output_is_left_as_it_is_and_nothing_else_is_touched(root, tmp_path):
    before = (root / "rehearsal.json").stat().st_mtime_ns
    assert write(root, PLAN.scenes, PLAN.seed) is False and (root / "rehearsal.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="an earlier output, of another seed"):
        write(root, PLAN.scenes, PLAN.seed + 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(UserError, match="holds something else(.|\n)*nothing is overwritten"):
            write(out, PLAN.scenes, PLAN.seed)
    with pytest.raises(UserError, match="3 scenes are too few"):
        write(tmp_path / "few", 3, 0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "thesis.txt"]


def test_a_run_that_fails_or_was_killed_leaves_nothing(tmp_path, monkeypatch):
    dead = tmp_path / ".out.999999999.part"
    dead.mkdir()
    (tmp_path / ".out.notes.part").mkdir()  # not of this command

    def fail(root, plan, workers):
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.tabletop.layouts._fill", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", 4, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".out.notes.part"]


def test_the_marker_says_how_it_was_made(root):
    told = json.loads((root / "rehearsal.json").read_text())
    assert told == marker(PLAN.seed, PLAN.scenes).model_dump()
    assert "--scenes 4 --seed 3" in told["command"] and "Nothing measured" in told["what"]
