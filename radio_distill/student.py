"""A recipe's `student` section and its teachers' widths → the `RadioModel` that is trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from radio_distill.recipe import StudentConfig
from teachers.features import Dims
from teachers.radio import RadioModel
from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
from teachers.seeding import seeded

# Tokens and positions are no matrices: decaying them pulls what is learnt about places towards nothing.
UNDECAYED = ("pos_embed", "tokens")


def student_spec(config: StudentConfig, teachers: Mapping[str, Dims]) -> RadioSpec:
    """What to build: one summary token and two heads for every teacher, in the recipe's order."""
    width, depth, num_heads = config.shape
    widest = max(max(dims.spatial, dims.summary or 0) for dims in teachers.values())
    mlp = MlpSpec(config.heads.hidden or widest, config.heads.blocks)
    return RadioSpec(
        patch=config.patch,
        width=width,
        depth=depth,
        num_heads=num_heads,
        stem=config.stem,
        cpe_max=config.cpe_max,
        registers=config.registers,
        heads={
            name: HeadSpec(dims.spatial, mlp, dims.summary, mlp if dims.summary else None)
            for name, dims in teachers.items()
        },
        position_dropout=config.position_dropout,
        drop_path=config.drop_path,
        activation_checkpointing=config.activation_checkpointing,
    )


def build_student(config: StudentConfig, teachers: Mapping[str, Dims], seed: int) -> RadioModel:
    """A freshly initialised student, the same on every rank."""
    with seeded("student", seed):
        return RadioModel(student_spec(config, teachers))


def decay_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """Parameter groups: matrices decay; positions, tokens, norms and biases do not."""
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.split(".")[-1] in UNDECAYED
            (spared if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [{**group, "lr": lr, "lr_scale": 1.0} for group in groups if group["params"]]
