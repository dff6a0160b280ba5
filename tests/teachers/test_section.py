"""Every key of every document that asks for a number refuses what is none, with its path."""

from __future__ import annotations

import pydantic
import pytest

import eval.config
import eval.datasets
import eval.tasks  # noqa: F401
import radio_distill.recipe  # noqa: F401
from teachers.section import Section, _takes_numbers


def parts(base: type[Section] = Section) -> list[type[Section]]:
    return [part for child in base.__subclasses__() for part in (child, *parts(child))]


NUMBERS = [(part, name) for part in parts() for name in part.model_fields if _takes_numbers(part, name)]


def test_there_are_many():
    assert len(NUMBERS) > 150


NONE = [True, False, float("inf"), float("-inf"), float("nan"), 1e30, [True], [float("inf")]]


@pytest.mark.parametrize("value", NONE)
def test_no_number_is_asked_that_takes_what_is_none(value):
    taken = []
    for part, name in NUMBERS:
        with pytest.raises(pydantic.ValidationError) as caught:
            part.model_validate({name: value})
        if not any(error["loc"][0] == name for error in caught.value.errors()):
            taken.append((part.__name__, name))
    assert not taken


def test_numbers_are_still_numbers():
    class Part(Section):
        many: list[tuple[float, float]] = [(0.0, 1e15)]
        one: int | None = None
        flag: bool = True
        text: int | bool = 3

    assert Part(many=[(-1e15, 2)], one=0, flag=False, text=True).text is True
    with pytest.raises(pydantic.ValidationError, match="true is no number"):
        Part(many=[(1, True)])
