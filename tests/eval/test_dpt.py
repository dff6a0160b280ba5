"""The DPT head: shapes on any grid, what reaches what, and that it can learn detail finer than its map."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from eval.dpt import Dpt, DptSettings, ResidualUnit, build_head
from teachers.seeding import seeded, torch_rng


def head_of(*args, **options):
    with seeded("a head"):
        return Dpt(*args, **options)


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (5, 7), (8, 8), (16, 12)])
@pytest.mark.parametrize("finest", [1, 2, 4])
def test_answers_on_any_grid(grid, finest):
    answer = head_of(6, 3, hidden=4, finest=finest).eval()(torch.randn(2, 6, *grid, generator=torch_rng(*grid)))
    assert answer.shape == (2, 3, finest * grid[0], finest * grid[1]) and answer.isfinite().all()


def test_levels_are_a_pyramid():
    for finest, sizes in {4: [20, 10, 5, 3], 2: [10, 5, 3, 2], 1: [5, 3, 2, 1]}.items():
        levels = head_of(6, 3, hidden=4, finest=finest).levels
        assert [level(torch.zeros(1, 6, 5, 5)).shape[2] for level in levels] == sizes


def test_every_parameter_learns():
    head = head_of(6, 3, hidden=8)
    head(torch.randn(4, 6, 8, 8, generator=torch_rng("maps"))).square().mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_the_coarse_levels_see_far():
    head = head_of(2, 1, hidden=8).eval()
    maps = torch.randn(1, 2, 16, 16, generator=torch_rng("far")).requires_grad_()
    head(maps)[0, 0, 0, 0].backward()
    reached = maps.grad.abs().sum(dim=(0, 1)) > 0
    assert reached[0, 8] and reached[8, 0]  # the convolutions of the finest level alone reach 3 cells


def test_scale_of_the_map_does_not_matter():
    maps = torch.randn(4, 6, 8, 8, generator=torch_rng("scale"))
    one, other = (head_of(6, 3, hidden=8) for _ in range(2))
    torch.testing.assert_close(one(maps), other(1000 * maps + 50), atol=1e-3, rtol=1e-3)


def test_learns_detail_finer_than_the_map():
    """Sub-cell detail in the channels (16 of them: a 4×4 block) comes out as pixels; bilinear enlargement could not."""
    rng = torch_rng("detail")
    truth = (torch.rand(12, 1, 16, 16, generator=rng) < 0.5).float()
    maps = F.pixel_unshuffle(truth, 4)
    head = head_of(16, 1, hidden=16)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(head(maps[:8]), truth[:8]).backward()
        optimizer.step()
    right = (head.eval()(maps[8:]) > 0) == (truth[8:] > 0.5)
    assert right.float().mean() > 0.95


def test_residual_unit_without_weights_is_the_identity():
    unit = ResidualUnit(3)
    for parameter in unit.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 5, 4, generator=torch_rng("unit"))
    assert torch.equal(unit(x), x)


def test_settings_choose_the_head():
    common = {"task": "depth", "data": "world"}
    linear = build_head(6, 3, DptSettings(**common, head="linear"))
    assert linear(torch.zeros(2, 6, 5, 7)).shape == (2, 3, 5, 7)
    dpt = build_head(6, 3, DptSettings(**common, hidden=8, finest=2))
    assert isinstance(dpt, Dpt) and dpt(torch.zeros(2, 6, 5, 7)).shape == (2, 3, 10, 14)
    with pytest.raises(ValueError, match="finest"):
        DptSettings(**common, finest=3)
