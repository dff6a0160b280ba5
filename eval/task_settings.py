"""What every task can be told: the keys that all of a recipe's tasks share.

It stands outside `eval/tasks` because that package imports all tasks, and what tasks share (probes, heads) needs it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from radio_distill.recipe import SizeKey
from teachers.section import Section


class TaskSettings(Section):
    """A task's section of a recipe begins with these."""

    task: str = Field(description="which one")
    data: str = Field(description="a name under data:")
    group: str | None = Field(None, description="column of Δm% that its metrics enter; none = the task's own")
    counts: bool | None = Field(None, description="whether its metrics enter Δm%; none = as the task has it")
    size: Literal["native"] | SizeKey = Field(
        "native", description="pixels, or the model's own size; a model that cannot take it gets its nearest"
    )
