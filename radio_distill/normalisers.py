"""What teachers say of many images → their normalisers and dispersions, before a stage and in its first steps.

Shapes: C a teacher's width, N summaries of width D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from radio_distill.losses import dispersion
from radio_distill.targets import Teacher
from teachers.features import Features
from teachers.phi_s import Moments, PhiS, cached_moments, fit
from teachers.ranks import total

if TYPE_CHECKING:
    from radio_distill.views import Batch

See = Callable[[Teacher, "Batch"], Features]  # what an unsharpened teacher says of a batch


def normaliser(moments: Moments, kind: str) -> PhiS:
    """The map from the teacher's space to the one that the loss is taken in.

    `phi_s`: every channel of unit variance; `global`: the mean taken away and one deviation divided by; `none`: itself.
    All three are one rotation and one scale, so each can be folded into a head and undone.
    """
    if kind == "phi_s":
        return fit(moments)
    made = PhiS(len(moments.mean))
    if kind == "global":
        made.mean.copy_(moments.mean)
        made.alpha.fill_(moments.variance**-0.5)
    return made.to(moments.mean.device)


def fit_normalisers(
    teachers: Mapping[str, Teacher],
    batches: Callable[[], Iterable[Batch]],
    see: See,
    *,
    kind: str,
    cache: Path | None,
    notes: Mapping[str, str],
    count: int,
    device: torch.device | str,
    say: Callable[[str], None],
) -> dict[str, Moments]:
    """Fit every teacher's normaliser on its unsharpened features of `batches()`, or take the moments from the cache.

    `notes` (a teacher) and `count` name the data, and with the encoder's identity the key. Returns the moments.
    """
    found = {}
    for name, teacher in teachers.items():

        def look(teacher: Teacher = teacher) -> Moments:
            moments = Moments(teacher.base.dims.spatial, device=device)
            for batch in batches():
                moments.update(see(teacher, batch).spatial)
            moments.all_reduce()
            return moments

        found[name] = cached_moments(cache, teacher.base.identity, notes[name], count, look, say)
        teacher.phi_s.load_state_dict(normaliser(found[name], kind).state_dict())
    return found


def fit_dispersions(
    teachers: Mapping[str, Teacher], batches: Callable[[], Iterable[Batch]], see: See
) -> dict[str, float]:
    """Measure how widely every teacher's summaries spread over `batches()`, in rad²; those without a summary loss not.

    Nothing is kept on disk: a resumed run has the figures in its checkpoint.
    """
    wanted = {name: teacher for name, teacher in teachers.items() if teacher.has_summary_loss}
    summaries: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for batch in batches() if wanted else ():
        for name, teacher in wanted.items():
            summaries[name].append(see(teacher, batch).summary.cpu())
    for name, teacher in wanted.items():
        seen = torch.cat(summaries[name]).to(teacher.dispersion.device)  # where the ranks can add
        teacher.dispersion = dispersion(seen, total)
    return {name: teacher.dispersion.item() for name, teacher in wanted.items()}


class RunningMoments:
    """Teachers' moments that go on growing in the first steps of a stage, as PHI-S fitted them.

    Every addition is summed over the ranks at once, so all hold the same and a checkpoint of any step is whole.
    """

    def __init__(self, begun: Mapping[str, Moments]):
        self.moments = dict(begun)

    def add(self, name: str, features: Tensor) -> None:
        """Count in a batch's features B×C×h×w; all ranks call it together."""
        new = Moments(features.shape[1], device=features.device)
        new.update(features)
        new.all_reduce()
        self.moments[name].merge(new)

    def refresh(self, teachers: Mapping[str, Teacher], kind: str) -> None:
        """Give the teachers normalisers of all that has been seen so far."""
        for name, moments in self.moments.items():
            teachers[name].phi_s.load_state_dict(normaliser(moments, kind).state_dict())

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, m in self.moments.items()
            for key, value in {"n": torch.tensor(m.n), "mean": m.mean, "m2": m.m2}.items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> RunningMoments:
        """Go on from `state()`."""
        made: dict[str, Moments] = {}
        for key, mean in state.items():
            name, _, kind = key.rpartition(".")
            if kind == "mean":
                made[name] = Moments(len(mean), device=mean.device)
                made[name].n, made[name].mean = int(state[f"{name}.n"]), mean.clone()
                made[name].m2 = state[f"{name}.m2"].clone()
        return cls(made)
