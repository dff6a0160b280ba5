"""Features of many batches → normalisers: of each kind, running on, through a checkpoint."""

from __future__ import annotations

import pytest
import torch

from radio_distill.losses import dispersion
from radio_distill.normalisers import RunningMoments, fit_dispersions, normaliser
from radio_distill.recipe import TeacherConfig
from radio_distill.targets import Teacher
from teachers.catalogue import build
from teachers.features import Features
from teachers.phi_s import Moments, PhiS
from teachers.seeding import torch_rng


def features(seed: int, count: int = 6) -> torch.Tensor:
    """Correlated channels of other scales and means."""
    mix = torch.randn(5, 5, generator=torch_rng("mix")) * torch.tensor([1.0, 2.0, 4.0, 0.5, 0.1])
    return torch.einsum("bchw,cd->bdhw", torch.randn(count, 5, 4, 3, generator=torch_rng("features", seed)), mix) + 3


def moments(*seeds: int) -> Moments:
    made = Moments(5)
    for seed in seeds:
        made.update(features(seed))
    return made


def flat(maps: torch.Tensor) -> torch.Tensor:
    return maps.movedim(1, -1).flatten(0, -2)


def test_each_kind_of_normaliser_does_what_it_says_and_is_undone():
    seen = moments(0, 1)
    values = torch.cat([features(0), features(1)])
    phi_s, plain, none = (normaliser(seen, kind) for kind in ("phi_s", "global", "none"))
    torch.testing.assert_close(flat(phi_s(values)).var(0), torch.ones(5), rtol=1e-4, atol=1e-4)
    one = flat(plain(values))
    torch.testing.assert_close(one.mean(0), torch.zeros(5), rtol=0, atol=1e-5)
    assert one.var(0).mean().item() == pytest.approx(1, rel=1e-4) and one.var(0).max() > 1.5  # one deviation for all
    assert torch.equal(none(values), values)
    for made in (phi_s, plain, none):
        torch.testing.assert_close(made.inverse(made(values)), values, rtol=1e-4, atol=1e-4)
        # an error in the normalised space over α² is the error in the teacher's
        error = (made(values) - made(values + 0.3)).square().mean()
        assert (error / made.alpha**2).item() == pytest.approx(0.09, rel=1e-4)


class Plain:
    """What `RunningMoments.refresh` needs of a teacher."""

    def __init__(self):
        self.phi_s = PhiS(5)


def test_running_moments_are_those_of_all_that_was_seen_and_go_through_a_checkpoint():
    running, teacher = RunningMoments({"t": moments(0)}), Plain()
    running.add("t", features(1))
    again = RunningMoments.from_state({key: value.clone() for key, value in running.state().items()})
    for one in (running, again):
        one.add("t", features(2))
        one.refresh({"t": teacher}, "phi_s")
        wanted = normaliser(moments(0, 1, 2), "phi_s").state_dict()
        torch.testing.assert_close(teacher.phi_s.state_dict(), wanted, rtol=1e-4, atol=1e-5)


def test_dispersions_are_measured_over_all_batches_of_those_whose_summaries_are_targets():
    def teacher(name: str, **changes) -> Teacher:
        encoder = build("random", weights="random", width=6, patch=4, image_size=8)
        return Teacher(name, TeacherConfig(encoder="random", **changes), encoder, None, "cpu")

    teachers = {"a": teacher("a"), "b": teacher("b", summary_weight=0)}
    said = torch.randn(40, 6, generator=torch_rng("said")) + 1
    found = fit_dispersions(
        teachers, lambda: iter(said.split(8)), lambda teacher, batch: Features(batch, torch.empty(0))
    )
    assert found == {"a": pytest.approx(dispersion(said).item(), rel=1e-5)}
    assert teachers["a"].dispersion.item() == found["a"] and teachers["b"].dispersion == 1
