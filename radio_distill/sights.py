"""A stream's batch → the window of it that every network sees, and what each teacher says of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from radio_distill.recipe import Recipe
from radio_distill.shifts import Window, largest_shift, margin
from radio_distill.targets import Teacher, images_at
from radio_distill.views import check_sizes
from teachers.errors import UserError, collected
from teachers.features import Features, Size
from teachers.seeding import numpy_rng

if TYPE_CHECKING:
    from radio_distill.teacher_cache import TeacherCache
    from radio_distill.views import Batch


class View(NamedTuple):
    """Which window of a batch's crop every network sees."""

    student: Window
    teachers: dict[str, Window]  # those of the stream
    average: Window  # of the student's running average, for MESA


class Sights:
    """A recipe's streams and teachers: who looks at what."""

    def __init__(
        self,
        recipe: Recipe,
        teachers: Mapping[str, Teacher],
        device: torch.device | str,
        precision: Callable[[], AbstractContextManager],
        cache: TeacherCache | None,
    ):
        self.recipe, self.teachers, self.device = recipe, teachers, device
        self.precision, self.cache = precision, cache

    def student_size(self, stream: str, index: int) -> Size:
        """The student's size in batch `index` of a stream: drawn from the recipe's list, the same on all ranks."""
        choices = self.recipe.streams[stream].size
        return choices[numpy_rng(self.recipe.seed, "size", stream, index).integers(len(choices))]

    def view(self, stream: str, size: Size, generator: torch.Generator | None = None) -> View:
        """Every network's window where the student sees `size`: shifted on its own with a `generator`, else central."""
        sharpen, deviation = self.recipe.streams[stream].sharpen, self.recipe.loss.shift
        grid = self.grid(size)
        teachers = {name: self.teachers[name] for name in self.recipe.teachers_of(stream)}
        around = margin(deviation, [grid, *(teacher.grid(grid, sharpen) for teacher in teachers.values())])

        def window(size: Size, patch: int) -> Window:
            return Window.of(size, patch, around, deviation, generator)

        patch = self.recipe.student.patch
        seen = {n: window(t.size(grid, sharpen), t.encoder(sharpen).patch_size) for n, t in teachers.items()}
        return View(window(size, patch), seen, window(size, patch))

    def central(self, batch: Batch) -> View:
        """The unshifted windows of a batch."""
        return self.view(batch.stream, self.student_size(batch.stream, batch.index))

    def sizes(self, stream: str, index: int) -> list[Size]:
        """All image sizes that a batch must carry, the student's first; with a margin where networks shift."""
        view = self.view(stream, self.student_size(stream, index))
        return list(dict.fromkeys([view.student.base, *(window.base for window in view.teachers.values())]))

    def attention_window(self, batch: Batch) -> int | None:
        """The ViTDet window of a batch, one of the recipe's that divide its grid; the same on all ranks."""
        h, w = self.grid(self.student_size(batch.stream, batch.index))
        choices = [n for n in self.recipe.student.windows if n == 0 or h % n == w % n == 0]
        if not choices:
            return None
        return choices[numpy_rng(self.recipe.seed, "window", batch.stream, batch.index).integers(len(choices))] or None

    def grid(self, size: Size) -> Size:
        """The student's grid at `size`."""
        return size[0] // self.recipe.student.patch, size[1] // self.recipe.student.patch

    def see(self, name: str, batch: Batch, window: Window, sharpen: bool) -> Features:
        """What a teacher says of a batch, in its own space."""
        note = f"{window.base} {window.size} {window.top} {window.left}"
        if window.base not in batch.images:
            note += f" from {max(batch.images)}"  # resized from what the loader cut, which gives other pixels
        with torch.no_grad(), self.precision():
            images = images_at(batch, window, self.device)
            return self.teachers[name].see(images, sharpen, self.cache, batch.crops, note)

    def see_unsharpened(self, teacher: Teacher, batch: Batch) -> Features:
        """What a teacher says of the middle of a batch: for statistics, whoever teaches in the batch's stream."""
        grid = self.grid(self.student_size(batch.stream, batch.index))
        stream = self.recipe.streams[batch.stream]
        window = self.central(batch).teachers.get(teacher.name)
        if window is None or (stream.sharpen and teacher.sharp is not None):
            window = Window.of(teacher.size(grid, sharpen=False), teacher.base.patch_size, 0.0)
        return self.see(teacher.name, batch, window, sharpen=False)

    def valid(self, batch: Batch, window: Window, grid: Size) -> Tensor | None:
        """The cells of a window that are picture, B×h×w bool; None where nothing is padded."""
        if not self.recipe.streams[batch.stream].letterbox:
            return None
        return window.valid(batch.extents.to(self.device), grid)

    def mistakes(self) -> Iterator[UserError]:
        """What a stream's sizes ask of a teacher that it cannot take."""
        most = largest_shift(self.recipe.loss.shift)
        for stream, size in ((name, size) for name, config in self.recipe.streams.items() for size in config.size):
            where, sharpen = f"streams.{stream}.size", self.recipe.streams[stream].sharpen
            if 2 * most >= min(self.grid(size)):
                yield UserError(
                    f"{where} {list(size)}: shifts by up to {most} patches may leave two networks nothing in common "
                    f"on a grid of {'×'.join(map(str, self.grid(size)))}",
                    todo=f"lower loss.shift, or raise {where}",
                )
                continue
            found: list[UserError] = []
            for name, window in self.view(stream, size).teachers.items():
                with collected(found):
                    check_sizes([size, window.size], f"teachers.{name}")
                    self.teachers[name].check_size(window.size, sharpen)
                for error in found:
                    yield UserError(
                        f"{where} {list(size)}: {error.what}",
                        expected=error.expected,
                        todo=f"change {where}, or teachers.{name}",
                    )
                found.clear()
