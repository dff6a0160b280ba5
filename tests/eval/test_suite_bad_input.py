"""Bad input through the suite's command: what is wrong is said and recorded, the rest is scored, nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eval import feature_cache
from eval import scores as S
from eval.__main__ import main
from eval.datasets import DATASETS
from eval.suite import Suite
from eval.tasks import TASKS
from teachers.errors import UserError
from teachers.random_encoder import RandomEncoder
from teachers.seeding import numpy_rng

RANDOM = "teacher:random?patch=8&image_size=32&width=8&depth=1"
TABLETOP = "tabletop: {kind: tabletop, size: 32, train: 24, val: 12}"
GOOD = "knn: {task: knn, data: tabletop, k: 3}"


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Its files and pictures are tested elsewhere; Δm% and what the console says are as ever."""
    stand_in = SimpleNamespace(write=lambda suite, *_, **__: suite.out / "report.md")
    monkeypatch.setitem(sys.modules, "eval.report", stand_in)


class Trial:
    """A recipe in a folder of its own, and what its command leaves."""

    def __init__(self, folder: Path, data: str = "", tasks: str = "", precision: str = "fp32"):
        self.folder, self.root, self.cache = folder, folder / "data", folder / "cache"
        self.recipe = folder / "trial.yaml"
        self.recipe.write_text(
            f"data: {{{', '.join(filter(None, [TABLETOP, data]))}}}\n"
            f"tasks: {{{', '.join(filter(None, [GOOD, tasks]))}}}\n"
            f"cache: {self.cache}\nprecision: {precision}\n"
        )

    def run(self, *arguments: str, models: tuple[str, ...] = (f"a={RANDOM}",), out: str = "out") -> int:
        places = ["--out", str(self.folder / out), "--data-root", str(self.root)]
        return main([str(self.recipe), *models, *places, *arguments])

    def scores(self, out: str = "out") -> dict[str, S.Score]:
        """Task → its score (of the only model, of seed 0)."""
        found = map(S.load, sorted((self.folder / out).glob("scores/*/*.seed0.json")))
        return {score.task: score for score in found}

    def file(self, task: str, out: str = "out") -> Path:
        return next((self.folder / out).glob(f"scores/*/{task}.seed0.json"))


def write_images(folder: Path, count: int, size: tuple[int, int] = (32, 32)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = numpy_rng("bad input", folder.name, count)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")


def write_classes(root: Path, train: dict[str, int], val: dict[str, int]) -> None:
    for part, classes in {"train": train, "val": val}.items():
        for name, count in classes.items():
            write_images(root / part / name, count)


def write_masks(root: Path, train: int | None = None, val: int | None = None) -> None:
    """Pictures with masks of classes 0 and 1, or all of one value."""
    for part, value in {"training": train, "validation": val}.items():
        write_images(root / "images" / part, 4)
        for image in (root / "images" / part).iterdir():
            mask = np.tile(np.repeat([0, 1], 16), (32, 1)) if value is None else np.full((32, 32), value)
            (root / "annotations" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8)).save(root / "annotations" / part / image.name)


FOLDERS = "bad: {kind: image_folder, path: bad}"
MASKS = "bad: {kind: masks, path: bad, classes: 2}"
CAPTIONS = "bad: {kind: coco_captions, path: bad}"
KNN = "bad: {task: knn, data: bad, k: 3}"
PROBE = "bad: {task: segmentation, data: bad, steps: 2, batch: 2, labels: 8, seeds: [0]}"


def nothing(root: Path) -> None:
    pass


def loose_pictures(root: Path) -> None:
    write_images(root / "train", 2)


def other_classes(root: Path) -> None:
    write_classes(root, {"cat": 3, "dog": 3}, {"cat": 2, "fox": 2})


def empty_in_train(root: Path) -> None:
    write_classes(root, {"cat": 3, "dog": 0}, {"cat": 2, "dog": 2})


def empty_in_val(root: Path) -> None:
    write_classes(root, {"cat": 3, "dog": 3}, {"cat": 2, "dog": 0})


def no_annotations(root: Path) -> None:
    write_masks(root)
    shutil.rmtree(root / "annotations" / "validation")


def flat_images(root: Path) -> None:
    write_images(root / "images", 2)


def empty_training_masks(root: Path) -> None:
    write_masks(root, train=255)


def empty_test_masks(root: Path) -> None:
    write_masks(root, val=255)


def unknown_label(root: Path) -> None:
    write_masks(root, train=7)


def truncated_picture(root: Path) -> None:
    write_classes(root, {"cat": 3, "dog": 3}, {"cat": 2, "dog": 2})
    file = root / "val" / "dog" / "001.png"
    file.write_bytes(file.read_bytes()[:200])


def no_captions(root: Path) -> None:
    write_images(root / "train2017", 2)


def not_captions(root: Path) -> None:
    no_captions(root)
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_train2017.json").write_text('{"images": []}')


@pytest.mark.parametrize(
    "build, data, task, complaint",
    [
        (nothing, FOLDERS, KNN, ("no data set at", "train/<class>/*.jpg", "image-net.org", "--data-root")),
        (nothing, MASKS, PROBE, ("no data set at", "annotations/{training,validation}", "sceneparsing")),
        (nothing, CAPTIONS, KNN, ("no data set at", "captions_val2017.json", "cocodataset.org")),
        (loose_pictures, FOLDERS, KNN, ("train holds no class folders", "a folder a class")),
        (other_classes, FOLDERS, KNN, ("different classes, such as 'dog'",)),
        (empty_in_train, FOLDERS, KNN, ("train/dog holds no picture", "at least one picture a class")),
        (empty_in_val, FOLDERS, KNN, ("val/dog holds no picture", "at least one picture a class")),
        (flat_images, MASKS, PROBE, ("no folder", "images/training", "annotations/{training,validation}/NAME.png")),
        (no_annotations, MASKS, PROBE, ("4 pictures have no mask", "annotations/validation/000.png")),
        (empty_training_masks, MASKS, PROBE, ("every pixel of bad/train is ignored", "masks with classes in them")),
        (empty_test_masks, MASKS, PROBE, ("every pixel of bad/val is ignored", "masks with classes in them")),
        (unknown_label, MASKS, PROBE, ("000.png holds the label 7", "2 classes from 0")),
        (truncated_picture, FOLDERS, KNN, ("val/dog/001.png cannot be decoded", "replace the file")),
        (no_captions, CAPTIONS, KNN, ("captions_train2017.json cannot be read", "val2017/*.jpg")),
        (not_captions, CAPTIONS, KNN, ("is not a COCO caption file", "annotations: [{id, image_id, caption}]")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_bad_data_is_recorded_and_the_rest_is_scored(tmp_path, capsys, build, data, task, complaint):
    trial = Trial(tmp_path, data, task)
    build(trial.root / "bad")
    assert trial.run() == 1
    scores = trial.scores()
    assert scores["knn"].done and scores["knn"].metrics
    assert not scores["bad"].done and not scores["bad"].metrics
    printed = capsys.readouterr().out
    for part in complaint:
        assert part in scores["bad"].error and part in printed, scores["bad"].error


def test_what_failed_is_tried_again_and_only_that(tmp_path, capsys):
    trial = Trial(tmp_path, FOLDERS, KNN)
    assert trial.run() == 1
    first = trial.file("knn").read_bytes()
    write_classes(trial.root / "bad", {"cat": 3, "dog": 3}, {"cat": 2, "dog": 2})
    capsys.readouterr()
    assert trial.run() == 0
    assert "1 there, 1 to do" in capsys.readouterr().out
    assert trial.scores()["bad"].done and trial.file("knn").read_bytes() == first
    assert not list(trial.folder.glob("out/scores/*/*.before-*"))  # a failure is no score that could be lost


@pytest.mark.parametrize("raised", [PermissionError(13, "Permission denied"), IndexError("list index out of range")])
def test_whatever_a_data_set_raises_stops_its_own_tasks_only(tmp_path, monkeypatch, raised):
    def broken(*_):
        raise raised

    monkeypatch.setattr(DATASETS["image_folder"], "open_split", broken)
    trial = Trial(tmp_path, FOLDERS, KNN)
    assert trial.run() == 1
    scores = trial.scores()
    assert scores["knn"].done and type(raised).__name__ in scores["bad"].error and "line" in scores["bad"].error


# --- models ----------------------------------------------------------------------------------------------------------


def test_features_that_are_no_numbers_name_model_part_and_picture(tmp_path, monkeypatch):
    trial = Trial(tmp_path, tasks="probe: {task: segmentation, data: tabletop, steps: 2, batch: 2, seeds: [0]}")
    assert trial.run() == 0
    data = DATASETS["tabletop"]
    config = data.Config(kind="tabletop", size=32, train=24, val=12)
    fifth, honest = data.open_split("tabletop", config, tmp_path, "val").image(5), RandomEncoder.forward

    def forward(self, images):
        features = honest(self, images)
        features.spatial[[torch.equal((image * 255).round().byte(), fifth) for image in images], 0] = torch.nan
        return features

    monkeypatch.setattr(RandomEncoder, "forward", forward)
    shutil.rmtree(trial.cache)
    assert trial.run(out="nan") == 1
    scores = trial.scores("nan")
    assert scores["knn"].metrics == trial.scores()["knn"].metrics  # its summaries are sound
    assert "random: backbone.spatial of picture 5 of tabletop/val holds NaN" in scores["probe"].error
    assert "finite features" in scores["probe"].error and not scores["probe"].metrics
    monkeypatch.setattr(RandomEncoder, "forward", honest)
    assert trial.run(out="nan") == 0  # nothing of it was kept
    assert trial.scores("nan")["probe"].metrics == trial.scores()["probe"].metrics


def test_a_model_that_cannot_take_the_size_fails_in_that_task_only(tmp_path, monkeypatch):
    def check_size(self, size):
        if max(size) > 32:
            raise UserError(f"{self.name} cannot take images of {size[0]}×{size[1]}", expected="at most 32×32")

    monkeypatch.setattr(RandomEncoder, "check_size", check_size)
    trial = Trial(tmp_path, tasks="large: {task: knn, data: tabletop, k: 3, size: 64}")
    assert trial.run() == 1
    scores = trial.scores()
    assert scores["knn"].done and "random cannot take images of 64×64" in scores["large"].error
    assert "at most 32×32" in scores["large"].error


@pytest.mark.parametrize(
    "model, complaint",
    [
        ("student:runs/x", ("cannot read the model 'student:runs/x'", "teacher:NAME")),
        ("teacher:rondom", ("rondom", "random")),
        ("teacher:", ("cannot read the model",)),
        ("runs/nowhere", ("runs/nowhere",)),
        ("sharpened:runs/nowhere", ("runs/nowhere", "teacher=NAME")),
    ],
)
def test_an_unknown_model_is_refused_before_anything_starts(tmp_path, capsys, model, complaint):
    trial = Trial(tmp_path)
    assert trial.run(models=(f"a={RANDOM}", model)) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in complaint), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, complaint",
    [
        ("tasks.knn.neighbours=3", "tasks.knn.neighbours   unknown key"),
        ("tasks.knn.k=0", "tasks.knn.k"),
        ("tasks.knn.size=-64", "tasks.knn.size.0 input should be greater than or equal to 1, got -64"),
        ("tasks.knn.size=[0,3]", "tasks.knn.size.0 input should be greater than or equal to 1, got 0"),
        ("tasks.knn.data=tabeltop", "did you mean 'tabletop'"),
        ("tasks.more={task: k_nn, data: tabletop}", "unknown task 'k_nn'; did you mean 'knn'"),
        ("tasks.more={data: tabletop}", "is missing its task"),
        ("data.more={kind: imagefolder, path: x}", "unknown kind 'imagefolder'; did you mean 'image_folder'"),
        ("data.tabletop.sise=64", "unknown key; did you mean 'size'"),
        ("precision=fp16", "precision"),
        ("nonsense", "expected: key=value"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_starts(tmp_path, capsys, change, complaint):
    trial = Trial(tmp_path)
    assert trial.run("--set", change) == 2
    message = capsys.readouterr().err
    assert complaint in message or complaint in " ".join(message.split()), message
    assert not (tmp_path / "out").exists()


# --- the cache -------------------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def other_bytes(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 255
    file.write_bytes(content)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def not_a_file(file: Path) -> None:
    file.write_text("these are no features")


@pytest.mark.parametrize("damage", [cut, other_bytes, emptied, not_a_file])
def test_a_damaged_cache_entry_is_made_again_and_figures_are_the_same(tmp_path, capsys, damage):
    trial = Trial(tmp_path)
    assert trial.run() == 0
    wanted = trial.scores()["knn"].metrics
    for file in trial.cache.rglob("*.safetensors"):
        damage(file)
    assert trial.run(out="again") == 0
    assert "is damaged; it is made again" in capsys.readouterr().out
    assert trial.scores("again")["knn"].metrics == wanted


KILLED = """
import os, signal, sys
from eval import feature_cache
from eval.__main__ import main
feature_cache.CHUNK = 8
replace, done = os.replace, []
def dying(source, target):
    if str(target).endswith('.safetensors'):
        done.append(target)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
feature_cache.os.replace = dying
main(sys.argv[1:])
"""


def test_a_killed_command_goes_on_where_it_was(tmp_path, monkeypatch):
    """SIGKILL between the second file's last byte and its name; 24 + 12 pictures in files of 8."""
    trial = Trial(tmp_path)
    assert trial.run(out="whole") == 0
    shutil.rmtree(trial.cache)
    arguments = [str(trial.recipe), f"a={RANDOM}", "--out", str(tmp_path / "out"), "--set", "batch=4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    first = sorted(trial.cache.rglob("*.safetensors"))
    left = [path for path in trial.cache.rglob("*") if path.name.endswith(".tmp")]
    assert len(first) == 1 and len(left) == 1 and not list(tmp_path.glob("out/scores/*/*"))

    os.utime(left[0], (0, 0))  # as a later day finds it
    made = first[0].stat().st_mtime_ns
    calls, honest = [], RandomEncoder.forward
    monkeypatch.setattr(
        RandomEncoder, "forward", lambda self, images: calls.append(len(images)) or honest(self, images)
    )
    monkeypatch.setattr(feature_cache, "CHUNK", 8)
    assert main(arguments) == 0
    assert sum(calls) == 24 - 8 + 12  # the finished file is not made again
    assert first[0].stat().st_mtime_ns == made and not left[0].exists()
    assert trial.scores()["knn"].metrics == trial.scores("whole")["knn"].metrics


# --- score files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", '{"format": 1, "model": "a"', "[]", '{"format": 1, "model": "a"}'])
def test_a_damaged_score_is_an_error_and_nothing_is_deleted(tmp_path, capsys, content):
    trial = Trial(tmp_path, tasks="more: {task: knn, data: tabletop, k: 2}")
    assert trial.run() == 0
    other, file = trial.file("more").read_bytes(), trial.file("knn")
    file.write_text(content)
    capsys.readouterr()
    assert trial.run() == 2
    message = capsys.readouterr().err
    assert f"{file} is not a score file" in message and "remove it, and the same command scores it again" in message
    assert file.read_text() == content and trial.file("more").read_bytes() == other
    file.unlink()
    assert trial.run() == 0  # what the message says


def test_figures_of_two_protocols_are_never_averaged(tmp_path, capsys, monkeypatch):
    trial = Trial(tmp_path)
    both = (f"a={RANDOM}", f"b={RANDOM}&seed=1")
    assert trial.run(models=both) == 0
    monkeypatch.setattr(TASKS["knn"], "VERSION", 2)
    assert trial.run(models=both[:1]) == 0  # b's file is still of version 1
    with pytest.raises(UserError, match="'knn' was scored by knn protocol 2 for a and by knn protocol 1 for b"):
        S.load_folder(tmp_path / "out")
    capsys.readouterr()
    assert trial.run(models=both) == 0
    assert "1 there, 1 to do" in capsys.readouterr().out  # scored again, not mixed
    assert {score.protocol for score in S.load_folder(tmp_path / "out")} == {2}
    kept = sorted((tmp_path / "out").glob("scores/*/*.before-*"))
    assert [S.load(file).protocol for file in kept] == [1, 1]  # and nothing is lost

    honest = Suite.found
    monkeypatch.setattr(
        Suite, "found", lambda self, cell: S.load(kept[0]) if cell.model.name == "a" else honest(self, cell)
    )
    assert trial.run(models=both) == 2  # were they ever to meet
    assert "protocol 1" in (message := capsys.readouterr().err) and "one protocol under one name" in message


def test_every_score_that_another_takes_the_place_of_is_kept(tmp_path):
    trial = Trial(tmp_path)
    for k in (3, 5, 7, 9):  # within a second or two
        assert trial.run("--set", f"tasks.knn.k={k}") == 0
    kept = [S.load(file).settings["k"] for file in (tmp_path / "out").glob("scores/*/knn.seed0.json.before-*")]
    assert sorted(kept) == [3, 5, 7] and trial.scores()["knn"].settings["k"] == 9


def test_an_absent_disk_costs_no_score(tmp_path, capsys):
    """A wrong --data-root fails, says so, and the right one finds everything as it was."""
    trial = Trial(tmp_path, MASKS, PROBE)
    write_masks(trial.root / "bad")
    assert trial.run() == 0
    file, examples = trial.file("bad"), trial.file("bad").with_suffix(".png")
    before = file.read_bytes(), examples.read_bytes()
    for _ in range(2):
        assert trial.run("--data-root", str(tmp_path / "unmounted")) == 1
        printed = capsys.readouterr().out
        assert "1 there, 1 to do" in printed and "FAILED a, bad: no data set at" in printed
        assert (file.read_bytes(), examples.read_bytes()) == before
        assert {path.name for path in file.parent.iterdir() if path.name.startswith("bad")} == {
            "bad.seed0.json", "bad.seed0.json.unscored", "bad.seed0.png",
        }  # fmt: skip
    assert trial.run() == 0 and "2 there, 0 to do" in capsys.readouterr().out
    assert not list(file.parent.glob("*.unscored")) and (file.read_bytes(), examples.read_bytes()) == before


def test_going_back_to_former_settings_scores_nothing_again(tmp_path, capsys):
    trial = Trial(tmp_path)
    figures = {}
    for k in (3, 5):
        assert trial.run("--set", f"tasks.knn.k={k}") == 0
        figures[k] = trial.scores()["knn"]
    capsys.readouterr()
    for k in (3, 5, 3):
        assert trial.run("--set", f"tasks.knn.k={k}") == 0
        assert "1 there, 0 to do" in capsys.readouterr().out and trial.scores()["knn"] == figures[k]


def test_a_truth_corrected_in_place_is_scored_again(tmp_path, capsys):
    trial = Trial(tmp_path, MASKS, PROBE)
    write_masks(trial.root / "bad")
    assert trial.run() == 0
    file = next((trial.root / "bad/annotations/validation").iterdir())
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # as an editor leaves it that writes as many bytes
    capsys.readouterr()
    assert trial.run() == 0
    printed = capsys.readouterr().out
    assert "1 there, 1 to do" in printed and "features" not in printed  # those of the pictures are still good


def test_another_precision_is_another_score(tmp_path, capsys):
    trial = Trial(tmp_path)
    assert trial.run() == 0
    capsys.readouterr()
    assert trial.run("--set", "precision=bf16") == 0
    assert "0 there, 1 to do" in capsys.readouterr().out
    (kept,) = (tmp_path / "out").glob("scores/*/*.before-*")
    assert "precision" not in S.load(kept).settings and trial.scores()["knn"].settings["precision"] == "bf16"


def test_a_score_says_all_that_it_depends_on(tmp_path):
    trial = Trial(tmp_path, tasks="probe: {task: segmentation, data: tabletop, steps: 2, batch: 2, seeds: [0, 1]}")
    assert trial.run() == 0
    files = sorted((tmp_path / "out").glob("scores/*/*.json"))
    assert [file.name for file in files] == ["knn.seed0.json", "probe.seed0.json", "probe.seed1.json"]
    for file in files:
        score = json.loads(file.read_text())
        assert score["commit"] and score["date"] and score["seconds"] >= 0 and score["settings"]["task"]
        assert {"python", "platform", "device", "torch", "numpy", "scikit-learn"} <= set(score["libraries"])
        assert all(figure["n"] == 12 and figure["direction"] == "higher" for figure in score["metrics"].values())
