"""Journal records → TensorBoard and Weights & Biases, which are views: neither is needed, neither can stop a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from radio_distill.journal import TIMES
from radio_distill.recipe import Recipe

Mirror = Callable[[dict[str, Any]], None]


def open_mirrors(recipe: Recipe, say: Callable[[str], None]) -> list[Mirror]:
    """The views that the recipe asks for and that could be opened; one that could not is told and left out."""
    mirrors: list[Mirror] = []
    if recipe.output.tensorboard:
        mirrors += _try("TensorBoard", say, lambda: _tensorboard(recipe.folder))
    if recipe.output.wandb != "off":
        mirrors += _try("Weights & Biases", say, lambda: _wandb(recipe))
    return mirrors


def _try(name: str, say: Callable[[str], None], start: Callable[[], Mirror]) -> list[Mirror]:
    try:
        mirror = start()
    except Exception as error:  # whatever a view's library raises, training goes on
        say(f"{name} is not used: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return []
    failed = []

    def guarded(record: dict[str, Any]) -> None:
        if failed:
            return
        try:
            mirror(record)
        except Exception as error:
            failed.append(error)
            say(f"{name} is left out from here on: {error}")

    return [guarded]


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    prefix = "" if record["kind"] == "step" else record["kind"] + "/"
    return {
        prefix + key: value
        for key, value in record.items()
        if key not in ("kind", "step", *TIMES) and isinstance(value, (int, float))
    }


def _tensorboard(run: Path) -> Mirror:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"))

    def write(record: dict[str, Any]) -> None:
        for key, value in _numbers(record).items():
            writer.add_scalar(key, value, record["step"])

    return write


def _wandb(recipe: Recipe) -> Mirror:
    import wandb

    # The run's own folder names it, so that a resumed run goes on in the same place. Online without a login would
    # raise: W&B's own offline mode is then what the user gets.
    mode = recipe.output.wandb
    if mode == "online" and not wandb.api.api_key:
        mode = "offline"
    run = wandb.init(
        project=recipe.output.wandb_project,
        name=recipe.folder.name,
        dir=str(recipe.folder),
        mode=mode,
        config=recipe.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, console="off"),
    )

    def write(record: dict[str, Any]) -> None:
        run.log(_numbers(record) | {"finished steps": record["step"]})

    return write
