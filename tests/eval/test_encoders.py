"""Models as a user types them: names, repetitions, sizes, and what is wrong with one."""

from __future__ import annotations

import pytest
import torch
import yaml
from worlds import Student, Truth, write_student

from eval.encoders import Model, everything, nearest_size, open_model, open_models, split_name
from teachers.errors import UserError

RANDOM = "teacher:random?patch=8&image_size=32&width=12"


@pytest.mark.parametrize("spec, parts", [
    ("runs/a", (None, "runs/a")),
    ("ours=runs/a", ("ours", "runs/a")),
    ("my run=runs/a=b", ("my run", "runs/a=b")),
    ("runs/a=b", (None, "runs/a=b")),
    (RANDOM, (None, RANDOM)),
    (f"r={RANDOM}", ("r", RANDOM)),
    ("untrained:runs/a", (None, "untrained:runs/a")),
])  # fmt: skip
def test_a_name_stands_before_the_first_equals_sign(spec, parts):
    assert split_name(spec) == parts


def test_a_teacher_takes_its_options_from_the_query():
    model = open_model(f"{RANDOM}&seed=3&image_size=[32, 48]")
    assert model.name == "random" and model.encoder.native_size == (32, 48) and model.encoder.dims.spatial == 12
    assert open_model(f"r={RANDOM}").name == "r"
    assert model.adaptors == {} and model.text_head(None) is None


@pytest.mark.parametrize(
    "spec, complaint",
    [
        ("techer:random", "cannot read the model 'techer:random'"),
        ("teacher:", "cannot read the model"),
        ("teacher:rndom", "unknown encoder 'rndom'"),
        ("teacher:random?pacth=8", "no option 'pacth'"),
        ("teacher:random?patch=[", r"teacher:random\?patch=\[: an option is no YAML"),
        ("runs/none", "no such folder: runs/none"),
        ("untrained:runs/none", "no such folder"),
        ("sharpened:runs/none", "does not say which teacher it sharpens"),
    ],
)
def test_what_cannot_be_opened_is_said(spec, complaint):
    with pytest.raises(UserError, match=complaint):
        open_model(spec)


@pytest.mark.parametrize("factor", ["two", "2.5", "-2", "²"])
def test_a_factor_must_be_a_whole_number(factor):
    with pytest.raises(UserError, match=f"factor is '{factor}'(.|\n)*a whole number"):
        open_model(f"sharpened:bilinear?teacher=random&factor={factor}")


@pytest.mark.parametrize(
    "recipe, complaint",
    [
        ("task: distill\nteachers: {a: {encoder: random}, b: {encoder: random}}", "no run of a sharpener.* 2 t"),
        ("task: sharpen", "names 0 teachers"),
        ("teachers: {a: {weights: x}}", "one teacher, with its encoder"),
        ("teachers: [random]", "names 0 teachers"),
        ("teachers: {", "recipe.yaml is not valid YAML"),
    ],
)
def test_a_run_that_is_no_sharpeners_is_said(tmp_path, recipe, complaint):
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(UserError, match=f"(?s){complaint}"):
        open_model(f"sharpened:{tmp_path}")


def test_repetitions_share_a_name_that_was_given():
    models = open_models([f"a={RANDOM}", f"a={RANDOM}&seed=1", f"b={RANDOM}&seed=2"])
    assert [(model.name, model.replicate) for model in models] == [("a", 0), ("a", 1), ("b", 0)]
    with pytest.raises(UserError, match="are the same model"):
        open_models([f"a={RANDOM}", f"a={RANDOM}"])


def test_a_run_says_the_seed_of_its_training(tmp_path):
    run = tmp_path / "run"
    write_student(run)
    assert open_model(str(run)).trained is None  # an export that came without its run folder
    (run / "recipe.yaml").write_text("seed: 3\n")
    assert [open_model(f"a={path}").trained for path in (run, run / "export")] == [3, 3]
    assert open_model(f"untrained:{run}").trained is None and open_model(RANDOM).trained is None
    for text in ("seed: x\n", "- 1\n", "a: [\n"):
        (run / "recipe.yaml").write_text(text)
        assert open_model(str(run)).trained is None


def test_models_that_only_happen_to_share_a_name_stay_apart():
    models = open_models([RANDOM, f"{RANDOM}&seed=1"])
    assert [model.name for model in models] == [RANDOM, f"{RANDOM}&seed=1"]
    assert [model.replicate for model in models] == [0, 0]


def test_a_model_gets_the_nearest_size_that_it_takes():
    encoder = Truth()
    assert nearest_size(encoder, None) == (16, 16)
    assert nearest_size(encoder, (17, 31)) == (16, 32)
    assert nearest_size(encoder, (1, 1)) == (4, 4)
    encoder.resolution_flexible = False
    assert nearest_size(encoder, (64, 64)) == (16, 16)


def test_a_model_that_a_size_is_too_large_for_gets_the_largest_like_it_in_a_rehearsal_only(tmp_path):
    student = open_model(str(write_student(tmp_path))).encoder  # patch 8, at most 64 pixels a side
    assert nearest_size(student, (512, 512), smaller=True) == (64, 64)
    assert nearest_size(student, (512, 1024), smaller=True) == (32, 64)
    assert nearest_size(student, (64, 40), smaller=True) == nearest_size(student, (64, 40)) == (64, 40)
    with pytest.raises(UserError, match="cannot take images of 512×512"):
        nearest_size(student, (512, 512))


def test_a_sharpened_teacher_is_opened_with_the_teacher_that_its_run_names(tmp_path):
    from featsharp.config import SharpenerConfig
    from featsharp.sharpener import Sharpener

    teacher = open_model(RANDOM).encoder
    Sharpener(teacher, SharpenerConfig(upsampler="tile", bias=True)).save(tmp_path / "run" / "export")
    options = {"patch": 8, "image_size": 32, "width": 12}
    recipe = {"teachers": {"r": {"encoder": "random", "weights": None, "options": options}}}
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for spec in (f"sharpened:{tmp_path}/run", f"sharpened:{tmp_path}/run/export"):
        model = open_model(spec)
        assert model.encoder.native_size == (64, 64) and model.encoder.encoder.identity == teacher.identity
    # a size must be a multiple of patch × factor: the nearest one is taken
    assert nearest_size(model.encoder, (72, 40)) in {(64, 48), (64, 32), (80, 48), (80, 32)}


def test_upsamplers_without_training_are_opened_by_name():
    model = open_model("sharpened:bilinear?teacher=random&factor=3&patch=8&image_size=32")
    assert model.encoder.native_size == (96, 96) and model.name == "random bilinear 3x"
    maps = everything(model.encoder, torch.rand(1, 3, 96, 96))
    assert set(maps) == {"backbone"} and maps["backbone"].spatial.shape[2:] == (12, 12)


def test_heads_are_found_and_the_first_one_with_text_is_taken():
    student = Student({"a": (Truth("a"), Truth("t")), "b": (Truth("b"), Truth("u"))})
    model = Model("s", "s", student, adaptors={name: student.adaptor(name) for name in student.adaptor_names})
    assert model.text_head(None)[0] == "a" and model.text_head("b")[0] == "b"
    assert set(everything(student, torch.zeros(1, 3, 16, 16))) == {"backbone", "a", "b"}


def test_a_run_is_opened_with_its_heads_and_untrained_beside_it(tmp_path):
    run = write_student(tmp_path / "run")
    model, fresh = open_models([str(run), f"untrained:{run}"])
    assert (model.name, fresh.name) == ("run", "untrained")
    assert set(model.adaptors) == set(fresh.adaptors) == {"a", "b"}
    assert model.identity != fresh.identity
    assert model.adaptors["a"].teacher().dims.spatial == model.adaptors["a"].dims.spatial == 24
    with pytest.raises(UserError, match="no head 'c'"):
        model.text_head("c")
