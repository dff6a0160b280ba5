"""What README tells a cluster's user to run, in its order: sharpeners → student → export → evaluation.

Small here with numbers, and at true size without: what each step writes, the next one must take.
"""

from __future__ import annotations

import json

import pytest
import torch

from eval.config import load_recipe as load_eval_recipe
from eval.encoders import everything, nearest_size, open_model
from featsharp.sharpener import find
from radio_distill import export
from radio_distill.dry_run.checks import find_mistakes
from radio_distill.dry_run.fake import fake_tensors
from radio_distill.dry_run.rehearsal import write_hollow_export
from radio_distill.recipe import load_recipe
from radio_distill.train import main as train
from tests.conftest import ROOT

GIB = 2**30


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder in which the runs of the flagship stand, hollow: two sharpeners, and the student that they teach."""
    folder = tmp_path_factory.mktemp("large")
    for name in ("dfn_clip", "siglip"):
        recipe = load_recipe(f"featsharp/{name}.yaml", [f"run={folder}/runs/featsharp/{name}_2x"])
        write_hollow_export(recipe, find_mistakes(recipe)[1], recipe.folder / "export")
    recipe = load_recipe("radio_l", flagship(folder))
    write_hollow_export(recipe, find_mistakes(recipe)[1], recipe.folder / "export")
    return folder


def flagship(folder, **swapped: str) -> list[str]:
    places = {name: swapped.get(name, name) for name in ("dfn_clip", "siglip")}
    sharpeners = [f"teachers.{name}.sharpen={folder}/runs/featsharp/{place}_2x" for name, place in places.items()]
    return [f"run={folder}/runs/radio_l", *sharpeners]


def test_the_flagship_takes_the_sharpeners_of_its_teachers_and_no_others(large):
    made = load_recipe("radio_l", flagship(large))
    mistakes, teachers = find_mistakes(made)
    assert not mistakes
    assert {name: teacher.sharp.factor for name, teacher in teachers.items() if teacher.sharp} == {
        "dfn_clip": 2, "siglip": 2
    }  # fmt: skip
    [mistake] = find_mistakes(load_recipe("radio_l", flagship(large, dfn_clip="siglip")))[0]
    assert "was trained for another teacher" in str(mistake) and "1152" in str(mistake) and "1280" in str(mistake)
    weights = find(made.teachers["dfn_clip"].sharpen) / "adapter.safetensors"
    assert 0.25 * GIB < weights.stat().st_size < 0.5 * GIB and weights.stat().st_blocks * 512 < 2**20  # a hole


def test_the_exported_flagship_is_shown_every_size_of_the_full_benchmark(large):
    """Loaded as `python -m eval` does, strictly, at its true size; heads and grids are those that the tasks read."""
    tasks = load_eval_recipe(ROOT / "recipes/eval/full.yaml")[0].task_settings.values()
    wanted = {task.size for task in tasks if task.size != "native"}
    assert {(384, 384), (1024, 1024), (800, 800), (448, 576)} <= wanted
    assert (large / "runs/radio_l/export/model.safetensors").stat().st_size > 1.3 * GIB
    with fake_tensors() as meter:
        model = open_model(str(large / "runs/radio_l"))
        assert list(model.adaptors) == ["dfn_clip", "siglip", "dino_v2", "sam"]
        assert model.text_head(None)[0] == "dfn_clip" and model.text_head("siglip")[0] == "siglip"
        for size in sorted(wanted):
            height, width = nearest_size(model.encoder, size)
            out = everything(model.encoder, torch.rand(2, 3, height, width))
            grid = (height // 16, width // 16)
            assert out["backbone"].spatial.shape == (2, 1024, *grid) and out["backbone"].summary.shape == (2, 3 * 1024)
            widths = {"dfn_clip": (1280, 1024), "siglip": (1152, 1152), "dino_v2": (1536, 1536), "sam": (1280, None)}
            for name, (spatial, summary) in widths.items():
                assert out[name].spatial.shape == (2, spatial, *grid)
                assert (None if out[name].summary is None else out[name].summary.shape[1]) == summary
        assert meter.flops > 1e12


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The same order on the tabletop, with numbers."""
    from eval.tabletop.shards import write

    folder = tmp_path_factory.mktemp("chain")
    for split, scenes in (("train", 32), ("heldout", 4)):
        write(folder / "data", scenes, 0, split=split, per_shard=16)
    common = [f"statistics={{batches: 4, cache: {folder}/statistics}}", "heldout.samples=4", "output.log=2",
              "threads=1", f"heldout.shards={folder}/data/heldout-*.tar"]  # fmt: skip
    data = f"{folder}/data/train-*.tar"
    sharpener = ["featsharp/tabletop_clip.yaml", f"run={folder}/runs/featsharp/clip_2x", "stages.0.steps=2",
                 "stages.0.warmup=1", f"streams.train.shards={data}", "streams.train.batch=4"]  # fmt: skip
    assert train([*sharpener, *common]) == 0
    student = ["tabletop_radio_l", f"run={folder}/runs/radio_l", "optim.warmup=1", "student.stem=linear",
               f"teachers.dfn_clip.sharpen={folder}/runs/featsharp/clip_2x"]  # fmt: skip
    for number in range(3):
        student += [f"stages.{number}.steps=2", f"stages.{number}.freeze_trunk=1"]
    for stream in ("small", "low", "high"):
        student += [f"streams.{stream}.shards={data}", f"streams.{stream}.batch=4"]
    assert train([*student, *common, "statistics.mode=before"]) == 0
    return folder


def test_the_chain_in_small_ends_in_a_report(small):
    from eval.__main__ import main as evaluate

    run = small / "runs/radio_l"
    for form in ("hf", "hub"):
        assert export.main([str(run), "--format", form]) == 0
    overrides = [f"cache={small}/features", "data.tabletop.train=24", "data.tabletop.val=16",
                 "tasks.segmentation.steps=20"]  # fmt: skip
    models = [f"student={run}", f"hub={run}/student.pth.tar", "teacher:tabletop_clip"]
    options = [word for override in overrides for word in ("--set", override)]
    out = small / "report"
    code = evaluate([str(ROOT / "recipes/eval/quickstart.yaml"), *models, "--baseline", "tabletop_clip", "--out",
                     str(out), *options])  # fmt: skip
    assert code == 0 and (out / "report.html").is_file()
    scores = [json.loads(path.read_text()) for path in (out / "scores").rglob("*.json")]
    assert not [score["error"] for score in scores if score["error"]]
    figures: dict[str, dict] = {}
    for score in scores:
        figures.setdefault(score["model"], {})[score["task"]] = {k: m["value"] for k, m in score["metrics"].items()}
    assert figures["student"]["knn"] == pytest.approx(figures["hub"]["knn"])  # one student in two layouts
