"""The quickstart's story in some seconds: shards → sharpener → student and baseline → Δm% report → torch.hub."""

from __future__ import annotations

import json

import pytest
import torch

from radio_distill import journal
from radio_distill.train import main as train
from tests.conftest import ROOT

SMALL = ["statistics.batches=4", "heldout.samples=8", "output.log=2", "output.save=2", "threads=1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which everything of the story is made, step by step."""
    from eval.tabletop.shards import write

    folder = tmp_path_factory.mktemp("story")
    for split, scenes in (("train", 48), ("heldout", 8)):
        write(folder / "data", scenes, 0, split=split, per_shard=24)
    return folder


def recipe(world, name: str, run: str, steps: int, **streams) -> list[str]:
    """The shipped recipe, at the story's size and in its folder."""
    shards = [f"streams.{stream}.shards={world}/data/train-*.tar" for stream in streams]
    batches = [f"streams.{stream}.batch={batch}" for stream, batch in streams.items()]
    return [
        str(ROOT / "recipes" / name), f"run={world / run}", f"stages.0.steps={steps}", "stages.0.warmup=1",
        *shards, *batches,
        f"heldout.shards={world}/data/heldout-*.tar", f"statistics.cache={world}/statistics", *SMALL,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sharpener(world):
    assert train(recipe(world, "featsharp/tabletop_clip.yaml", "sharpener", 2, train=4)) == 0
    return world / "sharpener"


@pytest.fixture(scope="module")
def student(world, sharpener):
    arguments = recipe(world, "quickstart.yaml", "student", 4, low=8, high=2)
    assert train([*arguments, f"teachers.clip.sharpen={sharpener}"]) == 0
    return world / "student"


def test_the_sharpener_is_an_adapter_of_its_teacher(sharpener):
    from featsharp.sharpener import build
    from teachers.catalogue import build as teacher

    clip = teacher("tabletop_clip")
    sharp = build(sharpener, clip)
    seen = sharp(torch.rand(1, 3, 128, 128))
    assert seen.spatial.shape == (1, clip.dims.spatial, 16, 16) and seen.summary.shape == (1, clip.dims.summary)


def test_the_run_folder_explains_itself(student):
    made = {path.name for path in student.iterdir()}
    assert made >= {
        "recipe.yaml",
        "environment.txt",
        "journal.jsonl",
        "curves.png",
        "pictures",
        "checkpoints",
        "export",
    }
    records = journal.read(student)
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4]
    last = [r for r in records if r["kind"] == "heldout"][-1]
    assert {key for key in last if key.endswith("feature_error")} == {
        f"{stream}/{teacher}/feature_error" for stream in ("low", "high") for teacher in ("clip", "siglip")
    }


def test_the_report_compares_student_and_baseline(world, student):
    from eval.__main__ import main as evaluate

    arguments = recipe(world, "quickstart.yaml", "baseline", 4, low=8, high=2)
    assert train([*arguments, "teachers.clip.sharpen=bilinear"]) == 0
    small = [f"cache={world}/features", "data.tabletop.train=24", "data.tabletop.val=16", "tasks.segmentation.steps=20"]
    overrides = [word for override in small for word in ("--set", override)]
    models = [str(student), str(world / "baseline"), f"untrained:{student}"]
    out = world / "report"
    code = evaluate(
        [str(ROOT / "recipes/eval/quickstart.yaml"), *models, "--baseline", "baseline", "--out", str(out), *overrides]
    )
    assert code == 0
    text = (out / "report.md").read_text()
    assert "Δm" in text and "baseline" in text.splitlines()[0] + text.splitlines()[2]
    html = (out / "report.html").read_text()
    assert "<img" in html and "http" not in html.split("<body")[0].replace("http-equiv", "")
    scores = [json.loads(path.read_text()) for path in (out / "scores").rglob("*.json")]
    assert {score["model"] for score in scores} >= {"student", "baseline"} and not any(s["error"] for s in scores)


def test_the_student_loads_through_torch_hub(student):
    loaded = torch.hub.load(str(ROOT), "student", str(student), source="local", adaptor_names=["clip"])
    out = loaded(torch.rand(1, 3, 64, 128))
    assert out["backbone"].features.shape == (1, 8 * 16, loaded.embed_dim)
    assert out["clip"].summary.shape == (1, 128)


def test_a_finished_run_is_left_alone(world, student, sharpener, capsys):
    arguments = recipe(world, "quickstart.yaml", "student", 4, low=8, high=2)
    before = (student / "journal.jsonl").read_text()
    assert train([*arguments, f"teachers.clip.sharpen={sharpener}"]) == 0
    assert "finished" in capsys.readouterr().out and (student / "journal.jsonl").read_text() == before
