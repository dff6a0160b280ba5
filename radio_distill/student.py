"""A recipe and its teachers' widths → the `RadioModel` that is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from radio_distill.recipe import Recipe, TeacherConfig
from radio_distill.student_config import ARCHITECTURES, HeadsConfig
from teachers.features import Dims
from teachers.radio import RadioModel
from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
from teachers.seeding import seeded


def student_spec(recipe: Recipe, teachers: Mapping[str, Dims]) -> RadioSpec:
    """What to build: two heads for every teacher, in the recipe's order; one without a summary loss has one.

    `teachers`: the widths of each one's features.
    """
    config = recipe.student
    width, depth, num_heads = config.shape
    widest = max(max(dims.spatial, dims.summary or 0) for dims in teachers.values())
    return RadioSpec(
        patch=config.patch,
        width=width,
        depth=depth,
        num_heads=num_heads,
        stem=config.stem,
        patch_bias=config.patch_bias,
        mlp=config.mlp or ARCHITECTURES[config.arch].mlp,
        mlp_ratio=ARCHITECTURES[config.arch].mlp_ratio,
        layer_scale=config.layer_scale,
        cpe_max=config.cpe_max,
        token_per_teacher=config.summary_tokens == "teacher",
        registers=config.register_count(len(teachers)),
        heads={name: _heads(recipe.teachers[name], dims, config.heads, widest) for name, dims in teachers.items()},
        position_dropout=config.position_dropout,
        drop_path=config.drop_path,
        activation_checkpointing=config.activation_checkpointing,
        global_blocks=config.global_blocks,
        windowed_blocks=config.windowed_blocks,
        spectral=config.spectral,
        spectral_heads=config.spectral_heads,
        damp=config.damp,
        final_norm=config.final_norm,
    )


def _heads(teacher: TeacherConfig, dims: Dims, shared: HeadsConfig, widest: int) -> HeadSpec:
    own = teacher.head
    hidden = own.hidden or shared.hidden or widest
    blocks = shared.blocks if own.blocks is None else own.blocks
    summary = dims.summary if teacher.summary_weight else None
    return HeadSpec(
        spatial=dims.spatial,
        spatial_mlp=MlpSpec(hidden, blocks, own.features or shared.features),
        summary=summary,
        summary_mlp=MlpSpec(hidden, blocks, own.summary or shared.summary) if summary else None,
        supervised=summary is not None,
        up=own.up,
    )


def build_student(recipe: Recipe, teachers: Mapping[str, Dims], say: Callable[[str], None] = print) -> RadioModel:
    """The student as it begins, the same on every rank: fresh from the recipe's seed, or from `student.init`."""
    with seeded("student", recipe.seed):
        model = RadioModel(student_spec(recipe, teachers))
    if recipe.student.init is not None:
        from teachers.radio_init import initialise

        say(initialise(model, recipe.student.init))
    return model
