"""What a recipe and the catalogue alone can tell: said by start, plan and rehearsal alike, and all at once."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from featsharp import adapter as adapters
from featsharp.config import SharpenerConfig
from radio_distill import documents, train
from radio_distill.dry_run.checks import find_mistakes
from radio_distill.recipe import load_recipe
from teachers import catalogue
from teachers.errors import UserError
from tests.conftest import ROOT

SHIPPED = sorted(str(p.relative_to(ROOT / "recipes")) for p in documents.shipped_recipes().rglob("*.yaml"))
SHIPPED = [name for name in SHIPPED if not name.startswith("eval/")]


def mistakes(recipe) -> list[str]:
    return [str(mistake) for mistake in find_mistakes(recipe)[0]]


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_recipe_has_a_mistake(name):
    assert not mistakes(load_recipe(name))


def test_a_small_image_goes_into_a_canvas_but_not_into_a_fixed_size():
    """SAM takes 1024 pixels and nothing else; an image of 256 lies in its canvas, or is enlarged to fill it."""
    made = load_recipe("radio_l")
    assert made.teachers["sam"].fit == "mosaic" and made.streams["small"].size == [(256, 256)]
    sam = find_mistakes(made)[1]["sam"]
    sam.check_size((256, 256), False), sam.check_size((1024, 1024), False)
    for size in ((250, 256), (1040, 1024)):
        with pytest.raises(UserError, match="1024×1024 exactly"):
            sam.check_size(size, False)
    assert not mistakes(load_recipe("radio_l", ["teachers.sam.fit=resize"]))
    [mistake] = mistakes(load_recipe("radio_l", ["teachers.sam.encoder=siglip", "teachers.sam.summary_weight=1"]))
    assert mistake.startswith("teachers.sam.fit: mosaic gives no summary of a picture")


@pytest.fixture
def refused(trial, capsys):
    """The answer of start, plan and rehearsal, which must be one."""

    def run(*overrides: str) -> str:
        answers = []
        for way in ([], ["dry_run=true"], ["rehearse=true"]):
            assert trial.train(*overrides, *way) == 2
            answers.append(capsys.readouterr().err.strip())
        assert answers[0] == answers[1] == answers[2] and not trial.run.exists()
        return answers[0]

    return run


def test_start_plan_and_rehearsal_give_one_answer(refused):
    said = refused("student.patch=15", "student.cpe_max=60")
    assert "streams.low.size" in said and "multiples of student.patch 15" in said and "1 mistake" not in said
    assert refused("deepspeed.fp16={enabled: true}").startswith("deepspeed.fp16: teachers' features overflow it")
    said = refused("optim.name=lamb", "deepspeed.zero_optimization.stage=1")
    assert said.startswith("optim.name=lamb with deepspeed.zero_optimization.stage=1")


def test_all_kinds_of_mistakes_come_in_one_answer(refused):
    said = refused(
        "optim.name=lamb", "deepspeed.zero_optimization.stage=1", "teachers.a.encoder=dfn_clp", "teachers.a.options={}"
    )
    assert "2 mistakes" in said and "LAMB" in said and "teachers.a: unknown encoder 'dfn_clp'" in said
    said = refused(
        "optim.lrr=1", "student.init=timm:resnet18", "deepspeed.bf16={enabled: true}", "statistics.batches=1",
        "teachers.b.sharpen=tile", "streams.low.batch=1",
    )  # fmt: skip
    wanted = ["optim.lrr", "did you mean 'lr'", "student.init", "deepspeed.bf16", "teachers.b.sharpen: no stream"]
    wanted += ["statistics.batches: PHI-S needs more feature vectors than channels: 16 were seen for 24"]
    for text in wanted:
        assert text in said, text


def test_statistics_that_see_too_few_cells_are_refused_and_those_that_see_enough_are_not(trial):
    def found(*overrides: str) -> list[str]:
        return mistakes(load_recipe(trial.file, list(overrides)))

    assert not found("statistics.batches=1", "streams.low.batch=2")  # 2 images of 4×4 cells for 24 channels
    few = found("statistics.batches=1", "streams.low.batch=1")
    assert ["24 channels of a" in few[0], "16 channels of b" in few[1]] == [True, True] and len(few) == 2
    assert "raise statistics.batches" in few[0]
    assert not found("statistics.batches=1", "streams.low.batch=1", "loss.normalise=none")


@pytest.mark.parametrize(
    ("init", "text"),
    [
        ("timm:resnet18", "timm:resnet18 is no trunk of a student's form"),
        ("timm:vit_small_patch16_224", "has width 384, depth 12"),
        ("timm:vit_smal_patch16_224", "timm knows no model"),
    ],
)
def test_a_beginning_of_the_wrong_kind_is_refused_before_its_weights_are_asked_for(trial, init, text):
    [mistake] = mistakes(load_recipe(trial.file, [f"student.init={init}"]))
    assert text in mistake and "hf download" not in mistake


def test_a_beginning_from_another_student_must_have_the_same_trunk(trial, trained):
    assert not mistakes(load_recipe(trial.file, [f"student.init={trained.run}"]))
    [mistake] = mistakes(load_recipe(trial.file, [f"student.init={trained.run}", "student.depth=3"]))
    assert "depth 2" in mistake and "depth 3" in mistake


def adapter_of(name: str, folder, **options):
    """The files of a sharpener that was trained for a teacher of the catalogue."""
    encoder = catalogue.build(name, **options)
    config = SharpenerConfig(upsampler="carafe")
    built_from = {"encoder": name, "weights": None, "options": options}
    adapters.save(adapters.Adapter(config, encoder), config, encoder, folder, built_from=built_from)
    return folder


def test_a_sharpener_of_another_teacher_is_refused(trial, refused, tmp_path):
    small = {"patch": 8, "width": 24, "depth": 1}
    right = adapter_of("random", tmp_path / "right", **small, image_size=32)
    use = "streams.high.sharpen=true"
    assert not mistakes(load_recipe(trial.file, [f"teachers.a.sharpen={right}", use]))
    other = adapter_of("random", tmp_path / "width", patch=8, width=16, image_size=32)
    assert "was trained for another teacher" in refused(f"teachers.a.sharpen={other}", use)
    size = adapter_of("random", tmp_path / "size", **small, image_size=64)
    said = refused(f"teachers.a.sharpen={size}", use)
    assert "64×64 px" in said and "32×32 px" in said  # a table of the noise of 8×8 cells
    deep = adapter_of("random", tmp_path / "deep", **{**small, "depth": 2}, image_size=32)
    assert "is for another teacher" in refused(f"teachers.a.sharpen={deep}", use)  # as wide, and another all the same


def test_a_sharpener_that_a_shipped_recipe_will_make_must_be_of_this_teacher_at_this_size():
    recipe = ["teachers.lite0.sharpen=runs/featsharp/lite0_2x", "streams.high.sharpen=true"]
    [mistake] = mistakes(load_recipe("photos_cpu", recipe))
    assert "recipes/featsharp/lite0.yaml" in mistake
    wrong = ["teachers.dfn_clip.sharpen=runs/featsharp/siglip_2x"]
    [mistake] = mistakes(load_recipe("radio_l", wrong))
    assert mistake.startswith("teachers.dfn_clip.sharpen: ") and "another teacher: siglip, not dfn_clip" in mistake


def test_a_sharpener_that_no_stream_uses_is_no_sharpener(trial):
    [mistake] = mistakes(load_recipe(trial.file, ["teachers.a.sharpen=tile"]))
    assert "add streams.low.sharpen=true" in mistake
    assert not mistakes(load_recipe(trial.file, ["teachers.a.sharpen=tile", "streams.high.sharpen=true"]))
    elsewhere = ["teachers.a.sharpen=tile", "streams.high.sharpen=true", "streams.high.teachers=[b]"]
    assert "no stream uses it" in mistakes(load_recipe(trial.file, elsewhere))[0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["sharpener.fusion.heads=3"], "fusion.heads is 3, which does not suit"),
        (["statistics.batches=1", "streams.train.batch=1"], "729 were seen for 1280 channels of dfn_clip"),
        (["teachers.dfn_clip.options.image_size=377"], "no multiple of its patch size 14"),
    ],
)
def test_a_sharpeners_recipe_is_checked_too(changes, text):
    [mistake] = mistakes(load_recipe("featsharp/dfn_clip.yaml", changes))
    assert text in mistake


def test_the_checks_of_a_large_recipe_read_and_keep_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train.main(["radio_l", "teachers.sam.fit=resize", "streams.small.size=250"]) == 2
    said = capsys.readouterr().err
    assert "streams.small.size" in said and "[250, 250] does not suit" in said and not list(tmp_path.iterdir())


def test_a_teacher_with_damaged_settings_of_its_sharpener_is_told(trial, refused, tmp_path):
    folder = adapter_of("random", tmp_path / "x", patch=8, width=24, depth=1, image_size=32)
    about = json.loads((folder / adapters.CONFIG).read_text())
    about["sharpener"]["factor"] = 99
    (folder / adapters.CONFIG).write_text(json.dumps(about))
    assert "sharpener.factor" in refused(f"teachers.a.sharpen={folder}", "streams.high.sharpen=true")


def test_an_adapter_with_a_tensor_of_another_shape_is_found_by_the_rehearsal(trial, tmp_path, capsys):
    folder = adapter_of("random", tmp_path / "x", patch=8, width=24, depth=1, image_size=32)
    file = folder / adapters.WEIGHTS
    tensors = {name: torch.zeros(tensor) for name, tensor in shapes_of(file).items()}
    name = next(name for name, shape in shapes_of(file).items() if len(shape) > 1)
    save_file(tensors | {name: torch.zeros(3, 3)}, file)
    assert trial.train(f"teachers.a.sharpen={folder}", "streams.high.sharpen=true", "rehearse=true") == 2
    assert name in capsys.readouterr().err


def shapes_of(file) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118


def test_a_recipe_from_elsewhere_runs_no_command_unless_it_is_allowed(trial, tmp_path, capsys):
    trap = tmp_path / "trap"
    command = f"pipe:touch {trap}"
    for key in ("shards", [command], {"part": {"shards": [command], "weight": 1}}):
        recipe = yaml.safe_load(trial.file.read_text())
        recipe["streams"]["low"]["shards"] = command if key == "shards" else key
        trial.file.write_text(yaml.safe_dump(recipe))
        for more in ([], ["dry_run=true"], ["rehearse=true"]):
            assert trial.train(*more) == 2
            said = capsys.readouterr().err
            assert f"streams.low.shards: {command!r} would run a shell command" in said and "allow_pipe=true" in said
    assert not trap.exists()
    allowed = load_recipe(trial.file, ["allow_pipe=true"])
    assert not find_mistakes(allowed)[0]
    typed = load_recipe(trial.file, [f"streams.low.shards={command}"])
    assert typed.allow_pipe and not find_mistakes(typed)[0]
    assert not load_recipe(trial.file, [f"heldout.shards={command}2"]).allow_pipe  # the file's own is still there
