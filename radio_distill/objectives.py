"""A recipe's `task` → the objective that the loop trains."""

from __future__ import annotations

from radio_distill.engine import World, autocast, choose_precision
from radio_distill.loop import Objective
from radio_distill.recipe import Recipe


def build_objective(recipe: Recipe, world: World) -> Objective:
    """Teachers are loaded here: a missing weights file is reported before anything is trained."""
    # Small frozen teachers gain nothing from bf16 on a CPU and lose digits of the target.
    wanted = recipe.teacher_precision
    if wanted == "auto" and world.device.type == "cpu":
        wanted = "fp32"
    precision = autocast(choose_precision(wanted, world.device)[0], world.device)
    say = print if world.first else _silent
    if recipe.task == "distill":
        from radio_distill.distill import DistillObjective

        return DistillObjective(recipe, world.device, precision, say)
    from featsharp.task import SharpenObjective
    from radio_distill.targets import load_teacher

    [(name, teacher)] = recipe.teachers.items()
    return SharpenObjective(
        load_teacher(name, teacher, world.device).base,
        recipe.sharpener,
        seed=recipe.seed,
        statistics_batches=recipe.statistics.batches,
        cache=recipe.statistics.cache,
        device=world.device,
        precision=precision,
        say=say,
        built_from=teacher.model_dump(include={"encoder", "weights", "options"}),
    )


def _silent(text: str) -> None:
    """What the other ranks say."""
