"""Batches of several streams → the losses that pull one student towards all teachers (`task: distill`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from radio_distill.losses import ErrorShare, feature_mse, meet, summary_cosine
from radio_distill.recipe import Recipe
from radio_distill.student import build_student, decay_groups
from radio_distill.targets import Teacher, fit_statistics, images_at, load_teacher
from teachers.features import Size
from teachers.radio import RadioOutput
from teachers.seeding import numpy_rng

if TYPE_CHECKING:
    from PIL.Image import Image

    from radio_distill.views import Batch


class DistillObjective:
    """A student, its frozen teachers, and what the one says against what the others say."""

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device | str,
        precision: Callable[[], AbstractContextManager],
        say: Callable[[str], None] = print,
    ):
        self.recipe, self.device, self.precision, self.say = recipe, device, precision, say
        self.teachers: dict[str, Teacher] = {
            name: load_teacher(name, config, device) for name, config in recipe.teachers.items()
        }
        dims = {name: teacher.base.dims for name, teacher in self.teachers.items()}
        self.model: nn.Module = build_student(recipe.student, dims, recipe.seed)
        self.check_sizes()

    # What the loop asks for (see radio_distill/loop.py, `Objective`) ----------------------------------------------

    def student_size(self, stream: str, index: int) -> Size:
        """The student's size in batch `index` of a stream: drawn from the recipe's list, the same on all ranks."""
        choices = self.recipe.streams[stream].size
        return choices[numpy_rng(self.recipe.seed, "size", stream, index).integers(len(choices))]

    def sizes(self, stream: str, index: int) -> list[Size]:
        """All image sizes that the batch must carry, the student's first."""
        size = self.student_size(stream, index)
        return list(dict.fromkeys([size, *self._teacher_sizes(stream, size).values()]))

    def begin_stage(self, number: int, batches: Callable[[], Iterable[Batch]], note: str) -> dict[str, Any]:
        """Fit the teachers' normalisers on batches of the first stream, before the first stage; returns facts."""
        if number > 0:
            return {}
        stream = next(iter(self.recipe.streams))
        grid = self._grid(self.student_size(stream, 0))
        fit_statistics(
            self.teachers,
            batches,
            {name: teacher.size(grid, sharpen=False) for name, teacher in self.teachers.items()},
            cache=Path(self.recipe.statistics.cache).expanduser(),
            note=note,
            count=self.recipe.statistics.batches,
            precision=self.precision,
            device=self.device,
            say=self.say,
        )
        return {f"alpha {name}": teacher.phi_s.alpha.item() for name, teacher in self.teachers.items()}

    def after_step(self, step: int) -> None:
        """Nothing follows the weights yet."""

    def param_groups(self, lr: float, weight_decay: float) -> list[dict]:
        return decay_groups(self.model, lr, weight_decay)

    def losses(
        self, model: nn.Module, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over teachers, and each term by name. The student's own noise uses the global generator."""
        predicted, targets = self._both(model, batch)
        total, logs = torch.zeros((), device=self.device), {}
        for name, teacher in self.teachers.items():
            weights, said, wanted = teacher.config, predicted[name], targets[name]
            if weights.feature_weight:
                loss = feature_mse(*meet(said.features, wanted.spatial, self.recipe.loss.grid))
                logs[f"{name}/feature"] = loss.detach()
                total = total + weights.feature_weight * loss
            if weights.summary_weight and wanted.summary is not None:
                loss = summary_cosine(said.summary, wanted.summary)
                logs[f"{name}/summary"] = loss.detach()
                total = total + weights.summary_weight * loss
        return total, logs

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """A stream and teacher: the feature error (1.0 = the best constant) and 1 − cos of the summary."""
        errors: dict[str, ErrorShare] = {}
        cosines: dict[str, list[float]] = {}
        counts: dict[str, list[int]] = {}
        was_training = self.model.training
        self.model.eval()
        for batch in batches:
            predicted, targets = self._both(self.model, batch)
            for name in self.teachers:
                key, said, wanted = f"{batch.stream}/{name}", predicted[name], targets[name]
                pair = meet(said.features, wanted.spatial, self.recipe.loss.grid)
                errors.setdefault(f"{key}/feature_error", ErrorShare()).update(*pair)
                if wanted.summary is not None:
                    cosines.setdefault(key, []).append(float(summary_cosine(said.summary, wanted.summary)))
                    counts.setdefault(key, []).append(len(said.summary))
        self.model.train(was_training)
        out = {key: share.value() for key, share in errors.items()}
        for key, values in cosines.items():
            out[f"{key}/summary_error"] = sum(v * n for v, n in zip(values, counts[key])) / sum(counts[key])
        return out

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Image]:
        """The student beside every teacher: PCA colours of both maps, on one basis fitted on that teacher's."""
        from teachers.pictures import PcaBasis, panel

        was_training = self.model.training
        self.model.eval()
        predicted, targets = self._both(self.model, batch)
        self.model.train(was_training)
        bases = {name: PcaBasis.fit([target.spatial]) for name, target in targets.items()}
        rows = []
        for i, image in enumerate(batch.float(self.student_size(batch.stream, batch.index))):
            row = [(batch.stream, image)]
            for name, basis in bases.items():
                row.append((f"{name}: teacher", basis.to_rgb(targets[name].spatial[i])))
                row.append((f"{name}: student", basis.to_rgb(predicted[name].features[i])))
            rows.append(row)
        return {batch.stream: panel(rows)}

    def state(self) -> dict[str, Tensor]:
        """What was fixed before the first step: the teachers' normalisers."""
        return {
            f"phi_s.{name}.{key}": value
            for name, teacher in self.teachers.items()
            for key, value in teacher.phi_s.state_dict().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, teacher in self.teachers.items():
            prefix = f"phi_s.{name}."
            teacher.phi_s.load_state_dict(
                {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            )

    def artefact(self, folder: Path) -> None:
        """The usable student: normalisers folded into its heads, a config and a model card beside it."""
        from radio_distill.export import write_export

        write_export(self, folder)

    # -------------------------------------------------------------------------------------------------------------

    def _both(self, model: nn.Module, batch: Batch) -> tuple[dict[str, RadioOutput], dict[str, Any]]:
        """What the student says of a batch, and what it should say."""
        size = self.student_size(batch.stream, batch.index)
        sharpen = self.recipe.streams[batch.stream].sharpen
        sizes = self._teacher_sizes(batch.stream, size)
        with torch.no_grad(), self.precision():
            targets = {
                name: teacher.targets(images_at(batch, sizes[name], self.device), sharpen)
                for name, teacher in self.teachers.items()
            }
        return model(images_at(batch, size, self.device)), targets

    def _grid(self, size: Size) -> Size:
        patch = self.recipe.student.patch
        return size[0] // patch, size[1] // patch

    def _teacher_sizes(self, stream: str, size: Size) -> dict[str, Size]:
        grid, sharpen = self._grid(size), self.recipe.streams[stream].sharpen
        return {name: teacher.size(grid, sharpen) for name, teacher in self.teachers.items()}

    def check_sizes(self) -> None:
        """Raise `UserError` where a teacher cannot take what a stream's sizes ask of it."""
        from radio_distill.views import check_sizes
        from teachers.errors import UserError

        for stream, config in self.recipe.streams.items():
            for size in config.size:
                for name, wanted in self._teacher_sizes(stream, size).items():
                    try:
                        check_sizes([size, wanted], f"teachers.{name}")
                        self.teachers[name].encoder(config.sharpen).check_size(wanted)
                    except UserError as error:
                        raise UserError(
                            f"streams.{stream}.size {list(size)}: {error.what}",
                            expected=error.expected,
                            todo=f"change streams.{stream}.size, or teachers.{name}",
                        ) from None
