"""What a student and a teacher say of one batch → the terms of the loss, an image each, and what the journal keeps.

Shapes: B images, C a teacher's width, h w its grid. A term's name is `teacher/feature`, `/summary` or `/relational`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from radio_distill.losses import (
    FEATURE_ERRORS,
    angle,
    cosine_distance,
    image_means,
    meet,
    mesa_error,
    relational_error,
    squared_angle,
    squared_error,
)
from radio_distill.shifts import Window, common, offset
from radio_distill.targets import Teacher
from radio_distill.training_config import LossConfig
from teachers.features import Features, Size
from teachers.radio import RadioOutput

Valid = Callable[[Size], Tensor | None]  # the cells of the target's window that are picture, at a grid


def terms_of(teachers: Mapping[str, Teacher]) -> list[str]:
    """The terms that adapt, by name: features, and summaries where they are targets."""
    summaries = [f"{name}/summary" for name, teacher in teachers.items() if teacher.has_summary_loss]
    return [f"{name}/feature" for name in teachers] + summaries


def compare(
    teacher: Teacher,
    said: RadioOutput,
    wanted: Features,
    windows: tuple[Window, Window],
    valid: Valid,
    config: LossConfig,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A teacher's terms, B each; and the figures to log, features' and summaries' in the teacher's own terms too.

    `wanted` has its map in the normalised space; `windows` are the student's and the teacher's.
    """
    terms, told = {}, {}
    if teacher.config.feature_weight:
        pair, cells = _where_both_saw(said.features, wanted.spatial, windows, valid, config.grid)
        terms["feature"] = image_means(FEATURE_ERRORS[config.feature](*pair), cells)
        squared = terms["feature"] if config.feature == "mse" else image_means(squared_error(*pair), cells)
        told["feature_teacher"] = squared.mean() / teacher.phi_s.alpha**2
    if teacher.has_summary_loss:
        terms["summary"] = _summary_error(said.summary, wanted.summary, teacher, config)
        told["summary_degrees"] = torch.rad2deg(angle(said.summary, wanted.summary).mean())
        if config.relational:
            terms["relational"] = relational_error(said.summary, wanted.summary)
    told |= {term: value.mean() for term, value in terms.items()}
    named = {f"{teacher.name}/{term}": value for term, value in terms.items()}
    return named, {f"{teacher.name}/{key}": value.detach() for key, value in told.items()}


def _where_both_saw(
    said: Tensor, wanted: Tensor, windows: tuple[Window, Window], valid: Valid, policy: str
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Two maps on one grid and of the same places, and which of their cells count (None: all)."""
    said, wanted = meet(said, wanted, policy)
    grid = (wanted.shape[-2], wanted.shape[-1])
    said, wanted, (rows, columns) = common(said, wanted, offset(*windows, grid))
    cells = valid(grid)
    return (said, wanted), None if cells is None else cells[:, rows, columns]


def _summary_error(said: Tensor, wanted: Tensor, teacher: Teacher, config: LossConfig) -> Tensor:
    if config.summary == "cosine":
        return cosine_distance(said, wanted)
    return squared_angle(said, wanted, teacher.dispersion if config.summary == "balanced" else 1.0)


def mesa(said: Tensor, averaged: Tensor, windows: tuple[Window, Window], valid: Valid) -> Tensor:
    """The student's features B×C×h×w against its running average's of another window: one number."""
    (said, averaged), cells = _where_both_saw(said, averaged, windows, valid, "student")
    return image_means(mesa_error(said, averaged), cells).mean()


def fixed_weights(terms: Mapping[str, Tensor], teachers: Mapping[str, Teacher], config: LossConfig) -> dict[str, float]:
    """The recipe's weight of every term."""
    weights = {}
    for term in terms:
        name, _, kind = term.rpartition("/")
        own = teachers[name].config
        weights[term] = {
            "feature": own.feature_weight,
            "summary": own.summary_weight,
            "relational": config.relational,
        }[kind]
    return weights


def by_teacher(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of each teacher's terms, B each."""
    sums: dict[str, Tensor] = {}
    for term, value in terms.items():
        name = term.rpartition("/")[0]
        sums[name] = sums[name] + value if name in sums else value
    return sums
