"""A recipe and its overrides → a `Recipe`, or every mistake at once with its key path and a suggestion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from radio_distill import documents, train
from radio_distill.recipe import Recipe, load_recipe
from radio_distill.student_config import StudentConfig
from teachers.errors import UserError


@pytest.fixture
def tiny(tiny_recipe, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run"), sort_keys=False))
    return file


def mistakes(file, *overrides) -> dict[str, str]:
    """Key path → sentence, of the one message that the overrides earn."""
    with pytest.raises(UserError) as caught:
        load_recipe(file, overrides)
    head, *rows = str(caught.value).splitlines()
    assert head.startswith(f"{file}: ") and "Nothing was started." in rows
    found = dict(row.strip().split("   ", 1) for row in rows[: rows.index("Nothing was started.")])
    assert head == f"{file}: {len(found)} mistake{'s' if len(found) > 1 else ''}"
    return {path: text.strip() for path, text in found.items()}


SHARPEN = (
    "task=sharpen", "student=null", "sharpener={}", "teachers={a: {encoder: random}}",
    "streams={low: {shards: x, size: 32, batch: 1}}",
)  # fmt: skip


def test_every_mistake_is_told_at_once_with_its_path_and_a_suggestion(tiny):
    found = mistakes(
        tiny, "teachres.c.encoder=random", "optim.lrr=3", "streams.low.btach=3", "student.heads.hiden=3",
        "stages.0.stps=1", "teachers.a.encodr=random", "zzz=1",
    )  # fmt: skip
    assert found == {
        "teachres": "unknown key; did you mean 'teachers'?",
        "optim.lrr": "unknown key; did you mean 'lr'?",
        "streams.low.btach": "unknown key; did you mean 'batch'?",
        "student.heads.hiden": "unknown key; did you mean 'hidden'?",
        "stages.0.stps": "unknown key; did you mean 'steps'?",
        "teachers.a.encodr": "unknown key; did you mean 'encoder'?",
        "zzz": "unknown key",
    }


def test_wrong_types_and_ranges_say_what_was_expected_and_what_was_given(tiny):
    found = mistakes(
        tiny, "seed=abc", "compile=maybe", "student.heads=3", "optim.lr=1e", "streams.low.batch=0", "stages.0.lr=0",
        "optim.betas=[0.9]", "precision=fp8", "streams.low.size=abc", "threads=0", "output.wandb=yes", "heldout=3",
    )  # fmt: skip
    assert found["seed"] == "expected a whole number, got 'abc'"
    assert found["compile"] == "expected true or false, got 'maybe'"
    assert found["student.heads"] == "expected a mapping, got 3"
    assert found["optim.lr"] == "expected a number, got '1e'"
    assert found["streams.low.batch"] == "input should be greater than or equal to 1, got 0"
    assert found["stages.0.lr"] == "input should be greater than 0, got 0"
    assert found["optim.betas.1"] == "is missing"
    assert found["precision"] == "input should be 'auto', 'fp32' or 'bf16', got 'fp8'"
    assert found["streams.low.size"] == "expected a list, got 'abc'"
    assert len(found) == 12 and {"threads", "output.wandb", "heldout"} <= set(found)


def test_a_mistake_inside_a_mix_or_a_weighting_is_told_where_it_is_and_once(tiny):
    mix = "{a: {shards: x, wieght: 2}, b: {shard: y}}"
    assert mistakes(tiny, f"streams.low.shards={mix}", "loss.reduce={low: 1, high: x}") == {
        "streams.low.shards.a.wieght": "unknown key; did you mean 'weight'?",
        "streams.low.shards.b.shard": "unknown key; did you mean 'shards'?",
        "streams.low.shards.b.shards": "is missing",
        "loss.reduce.high": "expected a number, got 'x'",
    }


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["student=null"], "task: distill needs a 'student' section"),
        (["sharpener={}"], "task: distill takes no 'sharpener' section"),
        (["task=sharpen", "student=null", "sharpener={}"], "exactly one teacher and one stream"),
        ([*SHARPEN, "optim.ema=0.9"], "optim.ema is for task: distill"),
        ([*SHARPEN, "loss.grid=student"], "loss is for task: distill"),
        ([*SHARPEN, "stages.0.freeze_trunk=1"], "stages.freeze_trunk is for task: distill"),
        (["loss.reduce={low: 1}"], "loss.reduce must weigh exactly the streams low, high"),
        (["streams.low.size=36"], "streams.low.size [36, 36] does not suit the student: use multiples of"),
        (["streams.high.size=[[32,72]]"], "streams.high.size [32, 72] does not suit the student"),
        (["student.num_heads=5"], "width 32 is not a multiple of num_heads 5"),
        (["student.cpe_max=60"], "cpe_max 60 is not a multiple of patch 8"),
        (["student.arch=vit_bse"], "unknown architecture 'vit_bse': use one of vit_nano"),
        (["streams.low.scale=[1,0.5]"], "expected 0 < low <= high, got [1.0, 0.5]"),
        (["stages=[]"], "at least 1 item"),
        (["streams.a/b={shards: x, batch: 1, size: 32}"], "names may hold letters, digits, - and _ only: a/b"),
    ],
)
def test_what_does_not_fit_together_is_told(tiny, overrides, text):
    with pytest.raises(UserError, match="1 mistake") as caught:
        load_recipe(tiny, overrides)
    assert text in " ".join(str(caught.value).split())


def test_overrides_reach_lists_and_make_new_names(tiny):
    recipe = load_recipe(tiny, [
        "stages.0.steps=3", "teachers.c.encoder=random", "teachers.c.weights=random", "streams.low.size=[16,[16,32]]",
        "optim.lr=3e-4", "output.wandb=off", "heldout=null", "run=runs/${optim.lr}",
    ])  # fmt: skip
    assert [stage.steps for stage in recipe.stages] == [3]
    assert list(recipe.teachers) == ["a", "b", "c"]
    assert recipe.streams["low"].size == [(16, 16), (16, 32)]
    assert (recipe.optim.lr, recipe.output.wandb, recipe.heldout, recipe.run) == (3e-4, "off", None, "runs/0.0003")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("stages.7.steps=3", "cannot apply the override 'stages.7.steps=3'"),
        ("optim", "cannot read the override 'optim'"),
        ("=3", "cannot read the override '=3'"),
        ("run=${nope}", "run: Interpolation key 'nope' not found"),
        ("streams.low.shards=[a", "cannot apply the override"),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(tiny, override, text):
    with pytest.raises(UserError) as caught:
        load_recipe(tiny, [override])
    assert text in str(caught.value)


def test_the_environment_fills_in_a_recipe(tiny, monkeypatch):
    override = "streams.low.shards=${oc.env:SHARDS,shards}/{000..009}.tar"
    monkeypatch.delenv("SHARDS", raising=False)
    assert load_recipe(tiny, [override]).streams["low"].shards == "shards/{000..009}.tar"
    monkeypatch.setenv("SHARDS", "s3://bucket")
    assert load_recipe(tiny, [override]).streams["low"].shards == "s3://bucket/{000..009}.tar"
    with pytest.raises(UserError, match="streams.low.shards: .*'NOWHERE_SET' not found"):
        load_recipe(tiny, ["streams.low.shards=${oc.env:NOWHERE_SET}/x.tar"])


def test_a_missing_recipe_is_answered_with_those_that_are_there():
    with pytest.raises(UserError) as caught:
        load_recipe("recipes/quickstrat.yaml")
    assert "radio_l.yaml" in caught.value.expected and caught.value.todo == "use recipes/quickstart.yaml"
    for name, meant in {
        "recipes/eval/quik.yaml": "recipes/eval/quick.yaml",
        "recipes/eval/quikstart.yaml": "recipes/eval/quickstart.yaml",
        "quikstart": "recipes/quickstart.yaml",
        "eval/tabeltop": "recipes/eval/tabletop.yaml",
    }.items():
        with pytest.raises(UserError) as caught:
            documents.find_document(name)
        assert caught.value.todo == f"use {meant}" and documents.find_document(meant).is_file()


@pytest.mark.parametrize("size", ["-64", "0", "[64,0]"])
def test_a_size_has_sides(tiny, size):
    with pytest.raises(UserError, match="greater than or equal to 1"):
        load_recipe(tiny, [f"streams.low.size={size}"])


def test_shipped_recipes_are_valid_and_so_are_they_as_a_run_folder_keeps_them(monkeypatch):
    monkeypatch.setenv("SHARDS", "shards")
    assert load_recipe("quickstart").task == "distill"
    folder = documents.find_document("quickstart").parent
    for path in [*folder.glob("*.yaml"), *folder.glob("featsharp/*.yaml")]:
        recipe = load_recipe(path)
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe  # every default written out


def test_the_catalogues_radio_l_is_the_student_of_its_recipe(monkeypatch):
    from radio_distill.student import student_spec
    from teachers.catalogue import build

    monkeypatch.setenv("SHARDS", "shards")
    recipe = load_recipe("radio_l")
    teachers = {name: build(t.encoder, meta=True, **t.options) for name, t in recipe.teachers.items()}
    described = build("radio_l", meta=True)
    trained = student_spec(recipe, {name: t.dims for name, t in teachers.items()})
    # What is exported has its reparametrisation folded in.
    assert described.model.spec == replace(trained, spectral=False, spectral_heads=False, damp=0.0)
    assert all(teacher.licence in described.licence for teacher in teachers.values())


def option_names(document: dict, prefix: str = "") -> set[str]:
    """The keys that a recipe sets, whatever its teachers, streams and numbers of stages are called."""
    names = set()
    for key, value in document.items():
        inner = value if isinstance(value, dict) else {}
        if prefix + key in ("teachers", "streams"):
            inner = {"*": {k: v for one in value.values() for k, v in one.items()}}
        elif prefix + key == "stages":
            inner = {k: v for one in value for k, v in one.items()}
        elif key == "options":  # of an encoder: each has its own
            inner = {}
        names |= {prefix + key, *option_names(inner, f"{prefix}{key}.")}
    return names


@pytest.mark.parametrize("name", ["radio_b", "radio_l", "radio_h", "am_radio_h", "c_radio_v4_h"])
def test_every_key_of_a_large_recipe_is_in_its_twin_on_the_tabletop(name, monkeypatch):
    monkeypatch.setenv("SHARDS", "shards")
    large, twin = (documents.read(documents.find_document(recipe)) for recipe in (name, f"tabletop_{name}"))
    assert option_names(large) <= option_names(twin)
    for key in ("loss", "optim", "stages"):  # and what these choose by name is the same
        chosen = [{k: v for k, v in flat(recipe[key]).items() if isinstance(v, str)} for recipe in (large, twin)]
        told = {k: v for k, v in chosen[0].items() if k not in ("reduce", "streams")}
        assert told == {k: v for k, v in chosen[1].items() if k in told}


def flat(value) -> dict:
    return value if isinstance(value, dict) else {k: v for one in value for k, v in one.items()}


@pytest.mark.parametrize("content", [b"a: [1\nb: }", b"- a\n- b", b"\xff\xfe\x00", b"just words"])
def test_what_is_no_recipe_is_refused_in_words(tmp_path, content):
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match="odd.yaml"):
        load_recipe(file)


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for key, *_ in documents.keys(Recipe):
        assert f"  {key} " in said, key
    for key in ("teachers.NAME.encoder", "stages.N.steps", "streams.NAME.size", "sharpener.fusion.window", "deepspeed"):
        assert f"  {key} " in said
    assert "--local" not in said and max(map(len, said.splitlines())) < 200


def test_the_launcher_may_put_its_rank_in_front():
    options = train.parse(["--local_rank=0", "recipe.yaml", "a.b=1", "c=2"])
    assert (options.recipe, options.overrides) == ("recipe.yaml", ["a.b=1", "c=2"])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["stages.0.streams=[lo]"], "stages.0.streams no stream 'lo' among low, high"),
        (["stages.0.streams=[low]"], "streams.high is in no stage"),
        (["streams.low.teachers=[c]"], "streams.low.teachers no teacher 'c' among a, b"),
        (["streams.low.teachers=[a]", "streams.high.teachers=[a]"], "teachers.b is in no stream"),
        (["loss.mesa.weight=1"], "set optim.ema, such as 0.9996"),
        (["student.windows=[3]"], "depth ≥ 2 × global_blocks"),
        (["student.windows=[5]", "student.global_blocks=1"], "student.windows 5 divides no stream's grid"),
        (["student.patch_bias=true", "student.stem=conv"], "patch_bias is for stem: linear"),
    ],
)
def test_names_and_options_that_do_not_fit_together_are_told(tiny, overrides, text):
    with pytest.raises(UserError, match="1 mistake") as caught:
        load_recipe(tiny, overrides)
    assert text in " ".join(str(caught.value).split())


def test_stages_choose_streams_and_streams_choose_teachers(tiny):
    stages = "stages=[{steps: 3, streams: [low], freeze_trunk: 2}, {steps: 2}]"
    recipe = load_recipe(tiny, [stages, "streams.low.teachers=[b]"])
    taken = [list(recipe.streams_at(step)) for step in (0, 2, 3, 9)]
    assert taken == [["low"], ["low"], ["low", "high"], ["low", "high"]]
    assert [recipe.trunk_frozen(step) for step in range(5)] == [True, True, False, False, False]
    assert (recipe.teachers_of("low"), recipe.teachers_of("high")) == (["b"], ["a", "b"])


def test_a_register_multiple_fills_up_all_tokens_and_adds_a_whole_one_where_nothing_is_missing():
    student = StudentConfig(register_multiple=8)
    assert [student.register_count(teachers) for teachers in (1, 3, 8, 9)] == [7, 5, 8, 7]
    assert StudentConfig(register_multiple=8, summary_tokens="one").register_count(3) == 7
    assert StudentConfig(registers=5).register_count(3) == 5
