"""A part of a recipe or of another document → checked values: unknown keys, and numbers that are none, are mistakes."""

from __future__ import annotations

import math
import typing
from functools import cache
from typing import Any

import pydantic

LARGEST = 1e15  # of any number: nothing that is counted, measured or weighed here is more


class Section(pydantic.BaseModel):
    """Base of every part of a document: unknown keys are mistakes, and defaults are held to the same rules.

    Where a number is asked, `true`, infinity, NaN and what is beyond `LARGEST` are none; every new key inherits this.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        if _takes_numbers(cls, info.field_name):
            _check(value)
        return value


def _check(value: Any) -> None:
    for one in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(one, (list, tuple)):
            _check(one)
        elif isinstance(one, bool):
            raise ValueError(f"{str(one).lower()} is no number")
        elif isinstance(one, (int, float)) and not abs(one) <= LARGEST:
            raise ValueError(f"{one} is {'too large for anything here' if math.isfinite(one) else 'no number'}")


@cache
def _takes_numbers(model: type[pydantic.BaseModel], name: str) -> bool:
    """Whether a number is asked at a key, and neither true or false nor anything at all."""
    leaves = _leaves(model.model_fields[name].annotation)
    numbers, others = (any(leaf is kind for leaf in leaves for kind in kinds) for kinds in ((int, float), (bool, Any)))
    return numbers and not others


def _leaves(annotation: Any) -> list[Any]:
    """All plain types of an annotation: of `list[int] | None` int and NoneType; of a literal those of its values."""
    if typing.get_origin(annotation) is typing.Literal:
        return [type(value) for value in typing.get_args(annotation)]
    inner = [leaf for argument in typing.get_args(annotation) for leaf in _leaves(argument)]
    return inner or [annotation]
