"""Cross attention from fine to coarse cells: the dense definition, whole or in pieces."""

from functools import partial

import pytest
import torch

from featsharp.budget import peak_bytes
from featsharp.cross_attention import cells_at_once, cross_attention
from teachers.seeding import torch_rng
from tests.featsharp.toys import attention_pieces, with_gradients

FACTORS = (1, 2, 3, 5, 7)
GRIDS = ((5, 5), (3, 7), (1, 6))


def dense(q, k, v, factor, heads, radius, sigma):
    """Every fine cell with every coarse one, then a mask: the definition."""
    (height, width), (h, w) = q.shape[-2:], k.shape[-2:]
    y, x = (i.flatten() for i in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    row, column = (i.flatten() for i in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    q, k = (z.flatten(2).unflatten(1, (heads, -1)) for z in (q, k))
    scores = torch.einsum("bneq,bnek->bnqk", q, k) / q.shape[2] ** 0.5
    if sigma is not None:
        centres = [(place + 0.5) / factor - 0.5 for place in (y, x)]
        away = (centres[0][:, None] - row) ** 2 + (centres[1][:, None] - column) ** 2
        scores = scores - away / (2 * sigma**2)
    if radius is not None:
        far = [(fine[:, None] // factor - coarse).abs() > radius for fine, coarse in ((y, row), (x, column))]
        scores = scores.masked_fill(far[0] | far[1], -torch.inf)
    out = torch.einsum("bqk,bck->bcq", scores.softmax(-1).mean(1), v.flatten(2))
    return out.unflatten(2, (height, width))


def draws(grid, factor):
    rng = torch_rng("cross attention", *grid, factor)
    shapes = [(2, 8, *(n * factor for n in grid)), (2, 8, *grid), (2, 3, *grid)]
    return [torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("radius, sigma", [(None, None), (None, 0.7), (1, None), (2, 0.7)])
def test_attention_equals_the_dense_definition_forward_and_backward(grid, factor, radius, sigma):
    wanted = draws(grid, factor)
    sigma = None if sigma is None else torch.full((1,), sigma, requires_grad=True)
    mine = cross_attention(*wanted, factor, 2, radius=radius, sigma=sigma)
    its = dense(*wanted, factor, 2, radius, sigma)
    wanted = wanted if sigma is None else [*wanted, sigma]
    for a, b in zip(with_gradients(mine, wanted), with_gradients(its, wanted)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("radius", [None, 1])
@pytest.mark.parametrize("most", [1, 50, 130])
def test_attention_in_pieces_is_the_same(radius, most):
    wanted, sigma = draws((3, 7), 3), torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    options = {"radius": radius, "sigma": sigma}
    whole = with_gradients(cross_attention(*wanted, 3, 2, **options), [*wanted, sigma])
    pieces = with_gradients(cross_attention(*wanted, 3, 2, most=most, **options), [*wanted, sigma])
    for a, b in zip(pieces, whole):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("radius, expected", [(None, 64), (1, 256)])
def test_pieces_are_as_small_as_was_asked_for(radius, expected, monkeypatch):
    pieces = attention_pieces(monkeypatch)
    cross_attention(*draws((8, 8), 2), 2, 2, radius=radius, most=64)
    assert pieces == [expected] * (2 * 16 * 16 // expected)  # 2 rows of 2 images, or a row of 8×8 tiles


@pytest.mark.parametrize("radius", [None, 1])
def test_attention_keeps_within_a_memory_budget_and_is_the_same(radius):
    rng, factor = torch_rng("budget"), 2
    maps = [torch.randn(2, 8, *size, generator=rng) for size in ((64, 48), (32, 24), (32, 24))]
    attention = partial(cross_attention, factor=factor, heads=2, radius=radius, sigma=torch.ones(1))
    with torch.no_grad():
        whole = attention(*maps)
        all_at_once = peak_bytes(attention, *maps)
        for budget in (all_at_once // 2, all_at_once // 4):
            torch.testing.assert_close(attention(*maps, budget=budget), whole)
            most = cells_at_once(budget, tuple(maps), factor, 2, radius, torch.ones(1))
            assert peak_bytes(partial(attention, most=most), *maps) <= budget
