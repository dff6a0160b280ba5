"""Every task in one run of the suite on the tabletop; on a GPU, where there is one, with nearly the same figures."""

from __future__ import annotations

import pytest
import torch

from eval.__main__ import main
from eval.scores import load_folder
from eval.tasks import TASKS

RECIPE = """
data:
  tabletop: {kind: tabletop, size: 64, train: 24, val: 16}
  views: {kind: tabletop, size: 64, train: 1, val: 6, views: 2}
tasks:
  knn: {task: knn, data: tabletop, k: 3}
  linear: {task: linear, data: tabletop, small: 1}
  zero_shot: {task: zero_shot, data: tabletop}
  retrieval: {task: retrieval, data: tabletop}
  segmentation: {task: segmentation, data: tabletop, seeds: [0], steps: 20, labels: 8}
  depth: {task: depth, data: tabletop, seeds: [0], steps: 10, near: 0.2, far: 3, hidden: 16, finest: 1, labels: 16}
  normals: {task: normals, data: tabletop, seeds: [0], steps: 10, hidden: 16, finest: 1, labels: 16}
  correspondence: {task: correspondence, data: views}
  keypoints: {task: keypoints, data: tabletop}
  pascal: {task: multitask, data: tabletop, group: Pascal Context, seeds: [0],
           predict: [semseg, parts, saliency, normals, boundary], hidden: 16, steps: 10, batch: 8, labels: 16}
  nyud: {task: multitask, data: tabletop, group: NYUDv2, predict: [semseg, depth, normals, boundary], seeds: [0],
         hidden: 16, steps: 10, batch: 8, labels: 16}
  vqa: {task: vqa, data: tabletop, seeds: [0], steps: 10}
  detection: {task: detection, data: tabletop, steps: 10}
  fidelity: {task: fidelity, data: tabletop, pictures: 6}
"""
MODELS = ("teacher:tabletop_clip", "sharpened:bilinear?teacher=tabletop_clip")
SEVEN = ("Classification", "Dense", "Probe3D", "Retrieval", "Pascal Context", "NYUDv2", "VQA")
EXACT = ("knn", "linear", "zero_shot", "retrieval", "correspondence", "keypoints")  # nothing is trained by small steps


def scored(folder, device: str) -> dict:
    """(model, task) → its score, from a run of the suite on that device."""
    recipe = folder / "all.yaml"
    recipe.write_text(RECIPE + f"cache: {folder}/cache\n")
    assert main([str(recipe), *MODELS, "--device", device, "--out", str(folder)]) == 0
    return {(score.model, score.task): score for score in load_folder(folder / "scores")}


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu")
    return folder, scored(folder, "cpu")


def test_the_tabletop_answers_every_task_and_all_seven_groups(on_cpu):
    folder, scores = on_cpu
    asked = {score.kind for score in scores.values()}
    assert asked == set(TASKS) - {"match", "sam"}  # which want a student, and SAM's weights
    silent = {(score.model, score.task) for score in scores.values() if not score.metrics}
    assert silent == {("tabletop_clip", "fidelity")}
    for (_, task), score in scores.items():
        for name, metric in score.metrics.items():
            assert metric.chance is not None and metric.n > 0, (task, name)
    page = (folder / "report.md").read_text()
    header = next(line for line in page.splitlines() if line.startswith("| model | overall |"))
    assert {cell.strip() for cell in header.split("|")[3:-3]} == set(SEVEN)
    shown = {path.name.split(".")[0] for path in (folder / "scores").rglob("*.png")}
    assert shown >= {"segmentation", "depth", "normals", "keypoints", "correspondence", "detection", "vqa", "pascal"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_task_runs_on_a_gpu_and_agrees_with_the_cpu(on_cpu, tmp_path):
    found = {"cpu": on_cpu[1], "cuda": scored(tmp_path, "cuda")}
    assert found["cpu"].keys() == found["cuda"].keys()
    for (model, task), score in found["cuda"].items():
        for name, metric in score.metrics.items():
            if task in EXACT:
                other = found["cpu"][model, task].metrics[name].value
                assert metric.value == pytest.approx(other, abs=15 if metric.unit == "%" else 0.1), (model, task, name)
