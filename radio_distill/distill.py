"""Batches of several streams → the losses that pull one student towards all teachers (`task: distill`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from radio_distill.balance import AdaLoss, Uncertainty, dropped
from radio_distill.comparing import by_teacher, compare, fixed_weights, mesa, terms_of
from radio_distill.ema import Ema
from radio_distill.losses import ErrorShare, cosine_distance, meet
from radio_distill.normalisers import RunningMoments, fit_dispersions, fit_normalisers
from radio_distill.optimisers import param_groups
from radio_distill.recipe import Recipe
from radio_distill.shifts import Window
from radio_distill.sights import Sights, View
from radio_distill.student import build_student
from radio_distill.targets import Teacher, images_at, load_teacher
from radio_distill.teacher_cache import TeacherCache
from teachers.features import Features, Size
from teachers.radio import RadioOutput

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
        load: Callable[..., Teacher] = load_teacher,
    ):
        self.recipe, self.device, self.precision, self.say = recipe, device, precision, say
        self.teachers: dict[str, Teacher] = {
            name: load(name, config, device) for name, config in recipe.teachers.items()
        }
        folder = recipe.cache.folder
        self.cache = TeacherCache(Path(folder), recipe.cache.max_gib, say) if folder else None
        self.sights = Sights(recipe, self.teachers, device, precision, self.cache)
        dims = {name: teacher.base.dims for name, teacher in self.teachers.items()}
        # There at once: its average is copied from it, and judged before the engine takes the model.
        self.model: nn.Module = build_student(recipe, dims, say).to(device)
        terms = terms_of(self.teachers)
        self.ada = AdaLoss(terms) if recipe.loss.balance == "adaloss" else None
        if recipe.loss.balance == "uncertainty":  # it learns with the student, and is left out of the export
            self.model.balance = Uncertainty(self.model.summary_width, terms).to(device)
        self.ema = Ema(self.model, recipe.optim.ema) if recipe.optim.ema else None
        self.running: RunningMoments | None = None

    @property
    def result(self) -> nn.Module:
        """The student that is judged and exported: the averaged one where the recipe averages."""
        return self.ema.module if self.ema else self.model

    # What the loop asks for (see radio_distill/loop.py, `Objective`) ----------------------------------------------

    def sizes(self, stream: str, index: int) -> list[Size]:
        """All image sizes that the batch must carry, the student's first."""
        return self.sights.sizes(stream, index)

    def begin_stage(self, number: int, batches: Callable[[], Iterable[Batch]], note: str) -> dict[str, Any]:
        """Fit the teachers' normalisers and dispersions on batches of the stage's first stream; returns facts."""
        config, loss = self.recipe.statistics, self.recipe.loss
        self.running = None
        if number > 0 and not self.recipe.stages[number].statistics:
            return {}
        facts = {}
        if loss.normalise != "none":
            moments = fit_normalisers(
                self.teachers,
                batches,
                self.sights.see_unsharpened,
                kind=loss.normalise,
                cache=config.cache and Path(config.cache).expanduser(),
                notes={name: self._data_note(note, number, teacher) for name, teacher in self.teachers.items()},
                count=config.batches,
                device=self.device,
                say=self.say,
            )
            if config.mode == "running":
                self.running = RunningMoments(moments)
            facts |= {f"alpha {name}": teacher.phi_s.alpha.item() for name, teacher in self.teachers.items()}
        if loss.summary == "balanced":
            spread = fit_dispersions(self.teachers, batches, self.sights.see_unsharpened)
            facts |= {f"dispersion {name}": value for name, value in spread.items()}
        return facts

    def after_step(self, step: int) -> None:
        """Follow the weights with their average; renew the normalisers while they are still being learnt."""
        if self.ema:
            self.ema.update()
        if self.running:
            config, inside = self.recipe.statistics, self.recipe.stage_at(step - 1)[1] + 1
            if inside % config.refresh == 0 or inside == config.steps:
                self.running.refresh(self.teachers, self.recipe.loss.normalise)
            if inside >= config.steps:
                self.running = None

    def param_groups(self, lr: float, weight_decay: float) -> list[dict]:
        return param_groups(self.model, lr, weight_decay)

    def losses(
        self, model: nn.Module, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over teachers, and each term by name. The student's own noise uses the global generator."""
        config, names = self.recipe.loss, self.recipe.teachers_of(batch.stream)
        view = self.sights.view(batch.stream, self.sights.student_size(batch.stream, batch.index), generator)
        seen_before = self.cache.counts if self.cache else None
        targets = {name: self._target(name, batch, view) for name in names}
        frozen = self.recipe.trunk_frozen(step)
        said = model(
            images_at(batch, view.student, self.device),
            window=self.sights.attention_window(batch),
            freeze_trunk=frozen,
            heads=names,
        )
        terms, logs = {}, {}
        for name in names:
            windows = (view.student, view.teachers[name])
            found, told = compare(
                self.teachers[name], said[name], targets[name], windows, self._valid(batch, windows[1]), config
            )
            terms |= found
            logs |= told
        total = self._weigh(terms, said["backbone"].summary, generator)
        if config.mesa.weight and step >= config.mesa.start and not frozen:
            loss = self._mesa(said["backbone"].features, batch, view)
            logs["mesa"] = loss.detach()
            total = total + config.mesa.weight * loss
        if seen_before is not None:
            logs["cache_hits"] = torch.tensor(_share_of_hits(seen_before, self.cache.counts))
        return total, logs

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """A stream and teacher: the feature error (1.0 = the best constant) and 1 − cos of the summary.

        It is what would be exported that is judged.
        """
        errors: dict[str, ErrorShare] = {}
        cosines: dict[str, list[Tensor]] = {}
        for batch in batches:
            for name, said, wanted, view in self._both(batch):
                key = f"{batch.stream}/{name}"
                pair = meet(said.features, wanted.spatial, self.recipe.loss.grid)
                valid = self._valid(batch, view.teachers[name])(tuple(pair[1].shape[-2:]))
                errors.setdefault(f"{key}/feature_error", ErrorShare()).update(*pair, valid)
                if self.teachers[name].has_summary_loss:
                    cosines.setdefault(f"{key}/summary_error", []).append(cosine_distance(said.summary, wanted.summary))
        out = {key: share.value() for key, share in errors.items()}
        return out | {key: torch.cat(values).mean().item() for key, values in cosines.items()}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Image]:
        """The student beside every teacher: PCA colours of both maps, on one basis fitted on that teacher's."""
        from teachers.pictures import PcaBasis, panel

        images = images_at(batch, self.sights.central(batch).student, "cpu")
        rows = [[(batch.stream, image)] for image in images]
        for name, said, wanted, _ in self._both(batch):
            basis = PcaBasis.fit([wanted.spatial])
            for row, theirs, ours in zip(rows, wanted.spatial, said.features):
                row.append((f"{name}: teacher", basis.to_rgb(theirs)))
                row.append((f"{name}: student", basis.to_rgb(ours)))
        return {batch.stream: panel(rows)}

    def state(self) -> dict[str, Tensor]:
        """All that is no weight: normalisers and what they go on learning from, running losses, averaged weights."""
        parts: dict[str, Mapping[str, Tensor]] = {f"phi_s.{n}": t.phi_s.state_dict() for n, t in self.teachers.items()}
        parts["dispersion"] = {name: teacher.dispersion for name, teacher in self.teachers.items()}
        parts["running"] = self.running.state() if self.running else {}
        parts["ada"] = self.ada.state() if self.ada else {}
        parts["ema"] = self.ema.state() if self.ema else {}
        return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}

        for name, teacher in self.teachers.items():
            teacher.phi_s.load_state_dict(part(f"phi_s.{name}"))
            teacher.dispersion = state.get(f"dispersion.{name}", teacher.dispersion).to(self.device)
        running = part("running")
        self.running = RunningMoments.from_state(running) if running else None
        if self.ada:
            self.ada.load_state(part("ada"))
        if self.ema:
            self.ema.load_state(part("ema"))

    def artefact(self, folder: Path) -> None:
        """The usable student: normalisers folded into its heads, a config and a model card beside it."""
        from radio_distill.export import write_export

        write_export(self, folder)

    # -------------------------------------------------------------------------------------------------------------

    def _target(self, name: str, batch: Batch, view: View) -> Features:
        """What the student should say; while statistics are still being learnt, they learn from it too."""
        teacher, sharpen = self.teachers[name], self.recipe.streams[batch.stream].sharpen
        seen = self.sights.see(name, batch, view.teachers[name], sharpen)
        if self.running and not (sharpen and teacher.sharp is not None):
            self.running.add(name, seen.spatial)
        return Features(seen.summary, teacher.phi_s(seen.spatial))

    def _valid(self, batch: Batch, window: Window) -> Callable[[Size], Tensor | None]:
        return lambda grid: self.sights.valid(batch, window, grid)

    def _weigh(self, terms: dict[str, Tensor], summary: Tensor, generator: torch.Generator) -> Tensor:
        """All terms, B each, as one number: the recipe's weights, and those that adapt."""
        loss = self.recipe.loss
        weights = fixed_weights(terms, self.teachers, loss)
        adapting = {term: value for term, value in terms.items() if not term.endswith("/relational")}
        if self.ada:
            adaptive = self.ada.weights(adapting)
            terms = terms | {term: adaptive[term] * value for term, value in adapting.items()}
        elif loss.balance == "uncertainty":
            terms = terms | self.model.balance(summary, adapting)
        sums = by_teacher({term: weights[term] * value for term, value in terms.items()})
        if loss.teacher_drop and len(sums) > 1:
            kept = dropped(sums, loss.teacher_drop, generator)
            sums = {name: kept[name] * value for name, value in sums.items()}
        if not sums:
            return torch.zeros((), device=self.device)
        return torch.stack(list(sums.values())).sum(0).mean()

    def _mesa(self, features: Tensor, batch: Batch, view: View) -> Tensor:
        """How far the student's features are from its average's, on the places that both saw."""
        with torch.no_grad(), self.precision():
            averaged = self.ema.module(images_at(batch, view.average, self.device), heads=())["backbone"].features
        return mesa(features, averaged, (view.student, view.average), self._valid(batch, view.average))

    def _both(self, batch: Batch) -> Iterator[tuple[str, RadioOutput, Features, View]]:
        """By teacher: what the student to be exported says of a held-out batch, and what it should say."""
        view, names = self.sights.central(batch), self.recipe.teachers_of(batch.stream)
        student, sharpen = self.result, self.recipe.streams[batch.stream].sharpen
        was_training = student.training
        said = student.eval()(images_at(batch, view.student, self.device), heads=names)
        student.train(was_training)
        for name in names:
            seen = self.sights.see(name, batch, view.teachers[name], sharpen)
            yield name, said[name], Features(seen.summary, self.teachers[name].phi_s(seen.spatial)), view

    def _data_note(self, note: str, number: int, teacher: Teacher) -> str:
        """What names a stage's statistics for a teacher: the loop's words for the data, and how the teacher sees it."""
        sizes = next(iter(self.recipe.streams_of(number).values())).size
        seen = [teacher.size(self.sights.grid(size), sharpen=False) for size in sizes]
        extra = f" fit {teacher.config.fit}" if teacher.config.fit != "resize" else ""
        extra += f" shift {self.recipe.loss.shift}" if self.recipe.loss.shift else ""
        return f"{note} at {seen}{extra}"


def _share_of_hits(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    hits, misses = (after[key] - before[key] for key in ("hits", "misses"))
    return hits / max(hits + misses, 1)
