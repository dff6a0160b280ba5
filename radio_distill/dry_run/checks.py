"""A recipe → every mistake that it and the catalogue alone can tell, all at once and before anything is built.

The start, `dry_run=true` and `rehearse=true` all ask here, so that none accepts what another refuses. Networks are
built on the meta device, which takes seconds and no memory. What is not at hand (weights, shards, sharpeners) is no
mistake of the recipe: see `find_missing`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from featsharp import adapter as adapters
from featsharp import sharpener
from featsharp.sharpener import Sharpener
from radio_distill import tars
from radio_distill.dry_run.networks import encoder_on_meta, planned_sharpener
from radio_distill.engine import deepspeed_mistakes
from radio_distill.recipe import Recipe, TeacherConfig
from radio_distill.sights import Sights
from radio_distill.student import student_spec
from radio_distill.targets import Teacher
from teachers import catalogue, radio_init
from teachers.errors import UserError, at, collected
from teachers.features import Encoder
from teachers.phi_s import check_count
from teachers.radio import RadioModel


def check_inputs(recipe: Recipe, source: str) -> None:
    """Raise one `UserError` that names every mistake of a recipe, and everything that a start lacks."""
    mistakes = find_mistakes(recipe)[0]
    missing = find_missing(recipe, lenient=bool(mistakes))
    if mistakes:
        raise refusal(source, mistakes, missing)
    if missing:
        head = f"cannot start {recipe.run}: {len(missing)} missing"
        raise UserError("\n".join([head, *missing, "Nothing was started."]))


def refusal(source: str, mistakes: list[UserError], missing: list[str] = ()) -> UserError:
    """All mistakes as one error; a single one keeps its own words."""
    if len(mistakes) == 1 and not missing:
        return mistakes[0]
    lines = [f"{source}: {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}", *map(str, mistakes)]
    if missing:
        lines += [f"and {len(missing)} missing", *missing]
    return UserError("\n".join([*lines, "Nothing was started."]))


def find_mistakes(recipe: Recipe) -> tuple[list[UserError], dict[str, Teacher]]:
    """All that is wrong with a recipe, each with its key's path; and its teachers on meta, with their sharpeners."""
    mistakes = [*deepspeed_mistakes(recipe), *_pipe_mistakes(recipe)]
    teachers: dict[str, Teacher] = {}
    for name, config in recipe.teachers.items():
        with collected(mistakes, f"teachers.{name}"):
            base = encoder_on_meta(name, config)
            # First without its sharpener: one that does not fit leaves the other checks of this teacher possible.
            teachers[name] = Teacher(name, config, base, None, "meta")
            with collected(mistakes, f"teachers.{name}.sharpen"):
                teachers[name].sharp = _sharpened(recipe, name, config, base)
    if len(teachers) == len(recipe.teachers):
        mistakes += _student_mistakes(recipe, teachers) if recipe.student else _sharpener_mistakes(recipe, teachers)
    return mistakes, teachers


def _pipe_mistakes(recipe: Recipe) -> Iterator[UserError]:
    """A recipe from elsewhere runs no command of its own."""
    for key, text in [] if recipe.allow_pipe else recipe.pipes():
        yield UserError(
            f"{key}: {text!r} would run a shell command that the recipe names",
            expected="paths or addresses, or your word that you have read it",
            todo="add allow_pipe=true, if you know what it does",
        )


# Sharpeners -------------------------------------------------------------------------------------------------------


def _sharpened(recipe: Recipe, name: str, config: TeacherConfig, base: Encoder) -> Sharpener | None:
    """The teacher's sharpener on meta, which must be this teacher's, and used."""
    if config.sharpen == "none":
        return None
    users = [stream for stream, it in recipe.streams.items() if it.sharpen and name in recipe.teachers_of(stream)]
    if recipe.task == "distill" and not users:
        streams = ", ".join(stream for stream in recipe.streams if name in recipe.teachers_of(stream))
        raise UserError(
            f"teachers.{name}.sharpen: no stream uses it, so {name} would teach unsharpened",
            expected=f"sharpen: true in one of its streams ({streams}), or no sharpener",
            todo=f"add streams.{streams.split(', ')[0]}.sharpen=true, or teachers.{name}.sharpen=none",
        )
    with torch.device("meta"):
        if config.sharpen in sharpener.UNTRAINED:
            return sharpener.build(config.sharpen, base, factor=config.factor, device="meta")
        settings, path = planned_sharpener(config)
        if path is not None:
            _check_planned(config, base, path)
        elif not sharpener.missing(config.sharpen):
            folder = sharpener.find(config.sharpen)
            its = adapters.read_config(folder)["teacher"]
            adapters.check_teacher(base, its, f"the sharpener in {folder}", settings)
            _check_network(config, its["built_from"] or {}, f"the sharpener in {folder}")
        return Sharpener(base, settings)


def _check_planned(config: TeacherConfig, base: Encoder, path: Path) -> None:
    """A shipped recipe will train the sharpener: it must be of this teacher, seen at this size."""
    from radio_distill.recipe import load_recipe

    [(name, its)] = load_recipe(path).teachers.items()
    _check_network(config, its.model_dump(include={"encoder", "options"}), f"the sharpener of {path}")
    other = encoder_on_meta(name, its)
    if other.native_size != base.native_size:
        raise UserError(
            "the sharpener of {} is for images of {}×{}; this teacher sees {}×{}".format(
                path, *other.native_size, *base.native_size
            ),
            expected="one size for both",
            todo="give both the same options.image_size",
        )


def _check_network(config: TeacherConfig, its: dict, what: str) -> None:
    """Two teachers of equal width can still be two; weights are compared when they are loaded."""
    if not its:
        return
    mine, other = (catalogue.network_of(one.get("encoder"), one.get("options") or {}) for one in (dict(config), its))
    if mine != other:
        raise UserError(
            f"{what} is for another teacher: {its['encoder']}, not {config.encoder}",
            expected="the sharpener of this teacher",
            todo="take that teacher (encoder and options), or another sharpener",
        )


def _sharpener_mistakes(recipe: Recipe, teachers: dict[str, Teacher]) -> Iterator[UserError]:
    """Of a `task: sharpen`."""
    from featsharp.task import SharpenObjective

    [(name, teacher)] = teachers.items()
    [config] = recipe.streams.values()
    found: list[UserError] = []
    with collected(found, "sharpener"), torch.device("meta"):
        SharpenObjective(teacher.base, recipe.sharpener, seed=recipe.seed, device="meta")
    with collected(found, "statistics.batches"):
        h, w = teacher.base.grid(teacher.base.native_size)
        check_count(recipe.statistics.batches * config.batch * _ranks() * h * w, teacher.base.dims.spatial, name)
    yield from found


# Students ---------------------------------------------------------------------------------------------------------


def _student_mistakes(recipe: Recipe, teachers: dict[str, Teacher]) -> Iterator[UserError]:
    """Of a `task: distill`: sizes, statistics, the student's form and its beginning."""
    found: list[UserError] = []
    sights = Sights(recipe, teachers, "meta", nullcontext, None)
    yield from sights.mistakes()
    yield from _statistics_mistakes(recipe, sights)
    with collected(found, "student"), torch.device("meta"):
        spec = student_spec(recipe, {name: teacher.base.dims for name, teacher in teachers.items()})
        RadioModel(spec)
        if any(recipe.student.windows):
            spec.window_period  # noqa: B018 (raises where no block is left to see windows)
    if recipe.student.init is not None and not found:
        with collected(found, "student.init"):
            radio_init.check(recipe.student.init, spec)
    yield from found


def _statistics_mistakes(recipe: Recipe, sights: Sights) -> Iterator[UserError]:
    """PHI-S needs more cells than channels; how many its batches have is known."""
    if recipe.loss.normalise != "phi_s":
        return
    found: dict[str, UserError] = {}
    for number, stage in enumerate(recipe.stages):
        if number > 0 and not stage.statistics:
            continue
        stream, config = next(iter(recipe.streams_of(number).items()))
        sizes = [sights.student_size(stream, index) for index in range(recipe.statistics.batches)]
        for name, teacher in sights.teachers.items():
            cells = 0
            for size in sizes:
                h, w = teacher.grid(sights.grid(size), sharpen=False)
                cells += h * w * config.batch * _ranks()
            try:
                check_count(cells, teacher.base.dims.spatial, name)
            except UserError as error:
                found.setdefault(name, at("statistics.batches", error))
    yield from found.values()


def _ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


# What is not at hand ----------------------------------------------------------------------------------------------


def find_missing(recipe: Recipe, lenient: bool = False) -> list[str]:
    """What a real start would lack, each with the command that makes it or the place to get it.

    Args:
        lenient: pass over a teacher whose entry is wrong in itself, which is said elsewhere.
    """
    found: list[str] = []
    for name, teacher in recipe.teachers.items():
        if lenient and teacher.encoder not in (*catalogue.CATALOGUE, *catalogue.ALIASES):
            continue
        lacking = catalogue.missing(teacher.encoder, teacher.weights, **teacher.options)
        found += _indent(f"teachers.{name}.weights", lacking)
        if teacher.sharpen != "none":
            found += _indent(f"teachers.{name}.sharpen", sharpener.missing(teacher.sharpen))
    if recipe.student and recipe.student.init is not None:
        found += _indent("student.init", radio_init.missing(recipe.student.init))
    wanted = {f"streams.{name}.shards": stream.shards for name, stream in recipe.streams.items()}
    if recipe.heldout:
        wanted["heldout.shards"] = recipe.heldout.shards
    lacking: dict[str, list[str]] = {}  # streams often share their shards: one message for all
    for key, shards in wanted.items():
        mixed = isinstance(shards, dict)
        sources = {f"{key}.{name}.shards": mix.shards for name, mix in shards.items()} if mixed else {key: shards}
        for place, text in sources.items():
            try:
                tars.resolve(text, place)
            except UserError as error:
                lacking.setdefault(str(error).removeprefix(f"{place}: "), []).append(place)
    return found + [f"{', '.join(places)}: {text}" for text, places in lacking.items()]


def _indent(key: str, text: str | None) -> list[str]:
    return [f"{key}: {text}"] if text else []
