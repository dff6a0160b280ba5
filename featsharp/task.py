"""Trains a sharpener: batches of images → the losses by which views of an image must agree (`task: sharpen`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from featsharp import adapter as adapters
from featsharp.budget import images_at_once
from featsharp.config import SharpenerConfig
from featsharp.consistency import Consistency, Sight
from featsharp.downsample import draw_keep
from featsharp.fidelity import Fidelity, fixed_views
from featsharp.multiview import Views, draw_views, sample_view
from featsharp.regularisers import draw_points
from featsharp.tiles import each, in_chunks, look, shrink
from featsharp.upsamplers.base import enlarge
from teachers.features import Encoder, Size
from teachers.phi_s import Moments, cached_moments, fit
from teachers.seeding import seeded

if TYPE_CHECKING:
    from PIL.Image import Image


class Batch(Protocol):
    """What the objective uses of the trainer's batches."""

    images: Mapping[Size, Tensor]

    def float(self, size: Size) -> Tensor: ...


class SharpenObjective:
    """A sharpener for one frozen teacher, and how well it predicts what the teacher says of other views."""

    def __init__(
        self,
        encoder: Encoder,
        config: SharpenerConfig,
        *,
        seed: int = 0,
        statistics_batches: int = 100,
        cache: Path | str | None = "~/.cache/radio-distill/statistics",
        device: torch.device | str = "cpu",
        precision: Callable[[], AbstractContextManager] = nullcontext,
        say: Callable[[str], None] = print,
        built_from: Mapping[str, Any] | None = None,
    ):
        self.encoder, self.config, self.seed, self.device = encoder, config, seed, torch.device(device)
        self.statistics_batches, self.cache = statistics_batches, cache and Path(cache).expanduser()
        self.precision, self.say, self.built_from = precision, say, built_from
        with seeded("sharpener", seed):
            self.model: nn.Module = Consistency(config, encoder).to(self.device)
        self.view_size = tuple(n * config.factor for n in encoder.native_size)
        self.image_size = tuple(round(n * config.views.source_scale) for n in self.view_size)
        encoder.check_size(encoder.native_size)
        self.fidelity: dict[str, float] = {}  # of the last evaluation

    # What the loop asks for (radio_distill/objectives.py, `Objective`) --------------------------------------------

    def sizes(self, stream: str, index: int) -> list[Size]:
        """One size, from which all views are cut."""
        return [self.image_size]

    def begin_stage(self, number: int, batches: Callable[[], Iterable[Batch]], note: str) -> dict[str, Any]:
        """Fit the teacher's PHI-S statistics before the first stage, or take them from the cache; later ones keep
        them."""
        if number > 0:
            return {}

        def see() -> Moments:
            moments = Moments(self.encoder.dims.spatial, device=self.device)
            for batch in batches():
                images = shrink(batch.float(self.image_size).to(self.device), self.encoder.native_size)
                with torch.no_grad(), self.precision():
                    moments.update(in_chunks(self.encoder, images, self._images_at_once()).spatial)
            moments.all_reduce()
            return moments

        note = f"{note} at {self.image_size}"
        moments = cached_moments(self.cache, self.encoder.identity, note, self.statistics_batches, see, self.say)
        self.model.adapter.phi_s.load_state_dict(fit(moments).state_dict())
        return {f"alpha {self.encoder.name}": self.model.adapter.phi_s.alpha.item()}

    def after_step(self, step: int) -> None:
        """Nothing follows the weights of a sharpener."""

    def param_groups(self, lr: float, weight_decay: float) -> list[dict]:
        """The JBU and the uncertainty learn at rates of their own; only matrices of the rest decay."""
        scales = {"jbu": self.config.lr_scale.jbu, "uncertainty": self.config.lr_scale.uncertainty}
        scales["spectral"] = self.config.lr_scale.spectral
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            part = next((part for part in scales if part in name.split(".")), None)
            decay = weight_decay if part is None and name.endswith(".weight") and parameter.ndim > 1 else 0.0
            groups.setdefault((scales.get(part, 1.0), decay), []).append(parameter)
        return [
            {"params": params, "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), params in groups.items()
        ]

    def losses(
        self, model: nn.Module, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """How far the views of a batch disagree; `mse` is what the uncertainty and the seams weigh, unweighted."""
        sight = self.see(batch.float(self.image_size).to(self.device), generator, drop=True)
        total, logs = model(sight)
        return total, {f"{self.encoder.name}/{key}": value for key, value in logs.items()}

    def _images_at_once(self) -> int | None:
        return images_at_once(self.encoder, self.encoder.native_size, self.config)

    @torch.no_grad()
    def see(self, images: Tensor, generator: torch.Generator, drop: bool = False) -> Sight:
        """Draw views of images B×3×image_size in [0, 1] and show them to the teacher."""
        config, b = self.config, len(images)
        views = draw_views(config.views, b, self.view_size, generator)
        grid = self.encoder.grid(self.encoder.native_size)
        keep = None
        if drop and config.downsampler.kind == "attention" and config.downsampler.drop:
            shape = (config.views.jitters, b, *grid)
            keep = draw_keep(config.downsampler, shape, config.factor, generator).to(self.device)
        sight = self.show(images, views, keep)
        if drop and config.losses.crf:
            sight = sight._replace(points=draw_points(b, generator).to(self.device))
        return sight

    @torch.no_grad()
    def show(self, images: Tensor, views: Views, keep: Tensor | None = None) -> Sight:
        """What the teacher says of these views: the base view whole and in tiles, and the jittered views, in one
        call."""
        config, b = self.config, len(images)
        to_base, base = views.jitters.to(self.device), views.base.to(self.device)
        image = sample_view(images, base, self.view_size)
        others = [
            shrink(sample_view(images, base @ jitter, self.view_size), self.encoder.native_size) for jitter in to_base
        ]
        with self.precision():
            whole, tiles, seen = look(
                self.encoder,
                image,
                config.factor,
                self.model.adapter.upsampler.tile_levels,
                self._images_at_once(),
                torch.cat(others),
            )
        phi_s = self.model.adapter.phi_s
        return Sight(image, phi_s(whole.spatial), each(tiles, phi_s), phi_s(seen).unflatten(0, (-1, b)), to_base, keep)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Fidelity on held-out images, whose views are always the same; see `featsharp.fidelity`."""
        self.fidelity = self.judge(batches).result()
        return {f"{self.encoder.name}/{key}": value for key, value in self.fidelity.items()}

    @torch.no_grad()
    def judge(self, batches: Iterable[Batch]) -> Fidelity:
        """The sums, a picture, that fidelity is made of."""
        fidelity = Fidelity(self.model)
        for batch in batches:
            images = batch.float(self.image_size).to(self.device)
            views = fixed_views(self.config.views, len(fidelity), len(images), self.view_size)
            fidelity.update(self.show(images, views))
        return fidelity

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Image]:
        """A row an image: the image, the teacher's map, bilinear, sharpened; one PCA basis for all."""
        from teachers.pictures import PcaBasis, panel

        adapter, f = self.model.adapter, self.config.factor
        images = shrink(batch.float(self.image_size).to(self.device), self.view_size)
        with self.precision():
            whole, tiles, _ = look(self.encoder, images, f, adapter.upsampler.tile_levels, self._images_at_once())
        maps = [whole.spatial, enlarge(whole.spatial, f), adapter.sharpen(whole.spatial, tiles, images)]
        basis = PcaBasis.fit(maps)
        titles = [self.encoder.name, f"bilinear {f}x", f"{self.config.upsampler} {f}x"]
        rows = [
            [("image", image), *((title, basis.to_rgb(m[i])) for title, m in zip(titles, maps))]
            for i, image in enumerate(images)
        ]
        return {"sharpened": panel(rows)}

    def state(self) -> dict[str, Tensor]:
        """The teacher's statistics are buffers of the model, but no parameter: the loop saves them on their own."""
        return {f"phi_s.{key}": value for key, value in self.model.adapter.phi_s.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.model.adapter.phi_s.load_state_dict({key.removeprefix("phi_s."): value for key, value in state.items()})

    def artefact(self, folder: Path) -> None:
        """The adapter: what `featsharp.sharpener.build` and a recipe's `sharpen:` load."""
        adapters.save(
            self.model.adapter,
            self.config,
            self.encoder,
            folder,
            built_from=self.built_from,
            fidelity=self.fidelity,
            downsampler=self.model.downsampler,
        )
