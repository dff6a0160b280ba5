"""A sharpened teacher's maps → how well they predict what the teacher says of other views of the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from eval.datasets.split import choose
from eval.feature_cache import View
from eval.resampling import metric, ratio
from eval.scores import MetricScore
from eval.tasks.task import Context, Need, NotApplicable, Result, TaskSettings, alone
from featsharp.config import ViewsConfig
from featsharp.fidelity import Fidelity, fixed_views
from featsharp.multiview import fully_inside
from featsharp.reading import BATCH
from featsharp.runs import open_run, restore
from featsharp.sharpener import Sharpener
from featsharp.task import SharpenObjective
from teachers.errors import UserError

VERSION = 1
GROUP = "Fidelity"
COUNTS = False
SEEDED = False
FIT = "crop"
SPLITS = ("val",)
PROTOCOL = (
    "The sharp map of a base view, moved as a jittered view was and brought down to the teacher's grid, against what "
    "the teacher says of that view, without the position noise that the sharpener has learnt; several views a picture, "
    "the same for every model; cells that lie on both views count. Fidelity: the variance of what the teacher says "
    "there / squared error; 1 is what the best constant scores. 'fidelity raw': against what the teacher says, noise "
    "and all. '× bilinear': fidelity as a multiple of that of bilinear enlargement, by the same targets. Brought down "
    "by the downsampler that was trained with the sharpener; for what is not trained (bilinear, tile, s2), and for the "
    "bilinear of the comparison, by the best of six Gaussians. Pictures: largest centred box, at the size that the "
    "sharpener takes, whatever size the recipe names. Shown, not part of Δm%. (FeatUp, FeatSharp.)"
)


class Settings(TaskSettings):
    """Fidelity of a sharpened teacher."""

    task: Literal["fidelity"]
    pictures: Annotated[int, Field(ge=1)] | None = Field(None, description="judge by so many, drawn once; none = all")
    views: ViewsConfig = ViewsConfig()


partners = alone


def parts(ctx: Context) -> list[Need]:
    _sharpener(ctx)
    return []  # other views of the pictures than the cache holds


def run(ctx: Context) -> Result:
    sharpener, val = _sharpener(ctx), ctx.split("val")
    objective = judge_of(sharpener, ctx.settings.views, ctx.device)
    view = View(val, objective.image_size, FIT)
    numbers = choose(val.count, ctx.settings.pictures, "fidelity", val.identity)
    sums, spread = judge(objective, view, numbers)
    if spread <= 0:
        raise UserError(f"{sharpener.encoder.name} says the same of all cells of {val}", expected="features that vary")
    cells = spread * sums["cells"]

    def score(part: np.ndarray, whole: np.ndarray, constant: np.ndarray) -> MetricScore:
        """Σ part / Σ whole; chance is what it would be with the errors of the best constant."""
        pairs, chance = np.stack([part, whole], axis=1), float(part.sum() / constant.sum())
        identity = val.identity
        return metric(pairs, ratio, identity, direction="higher", unit="", chance=chance, counts_in_delta=COUNTS)

    metrics = {
        "fidelity": score(cells, sums["fidelity"], cells),
        "fidelity raw": score(cells, sums["fidelity_raw"], cells),
        "× bilinear": score(sums["bilinear"], sums["fidelity"], cells),
    }
    facts = {"upsampler": sharpener.config.upsampler, "factor": sharpener.factor, "size": list(objective.image_size)}
    if sharpener.folder is not None:  # as `python -m featsharp.fidelity` gives it
        facts["fidelity by its own statistics"] = float(sums["cells"].sum() / sums["fidelity"].sum())
    return Result(metrics, facts)


def _sharpener(ctx: Context) -> Sharpener:
    """The model as what it must be."""
    if not isinstance(ctx.model.encoder, Sharpener):
        raise NotApplicable("not a sharpened teacher")
    return ctx.model.encoder


def judge_of(sharpener: Sharpener, views: ViewsConfig, device: torch.device | str = "cpu") -> SharpenObjective:
    """What judges a sharpener by `views`: a trained one with its downsampler, any other without.

    Raises `UserError` for a trained one whose downsampler was not kept.
    """
    if sharpener.folder is not None:
        return restore(open_run(sharpener.folder), sharpener.encoder, views, device)
    config = sharpener.config.model_copy(update={"views": views})
    objective = SharpenObjective(sharpener.encoder, config, device=device)
    objective.model.adapter, objective.model.downsampler = sharpener.adapter, None
    return objective


@torch.no_grad()
def judge(objective: SharpenObjective, view: View, numbers: Sequence[int]) -> tuple[dict[str, np.ndarray], float]:
    """The sums that fidelity is made of, N each, and the variance (a channel's, on average) of what the teacher says.

    Both in PHI-S space. Its unit is the variance of the pictures that it was fitted on, other ones for every model:
    hence a variance of the pictures, views and cells at hand, which the sharpeners of a teacher share.
    """
    found, cells, total, squares = Fidelity(objective.model), 0, 0.0, 0.0
    for start in range(0, len(numbers), BATCH):
        images = torch.stack([view.image(index) for index in numbers[start : start + BATCH]])
        views = fixed_views(objective.config.views, start, len(images), objective.view_size)
        sight = objective.show(images.to(objective.device).float() / 255, views)
        found.update(sight)
        for to_base, seen in zip(sight.to_base, sight.targets):
            inside = fully_inside(to_base, tuple(seen.shape[-2:]))
            seen = seen.double() * inside
            cells += int(inside.sum())
            total, squares = total + seen.sum(dim=(0, 2, 3)), squares + seen.square().sum(dim=(0, 2, 3))
    variance = squares / cells - (total / cells).square()
    return found.sums(), float(variance.mean())
