"""Turns a function that makes a list into a sequence that is made when it is first looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A list that costs nothing until someone asks for its length or its entries: every task opens every split."""

    def __init__(self, make: Callable[[], list[T]]):
        self._make = make

    @cached_property
    def _made(self) -> list[T]:
        return self._make()

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, index):
        return self._made[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._made)
