"""Joint bilateral upsampling: the learned kernel, levels and stacks, in every form of the filter; known answers."""

import pytest
import torch
import torch.nn.functional as F

from featsharp.adaptive import adaptive_upsample
from featsharp.config import JbuConfig
from featsharp.jbu import JbuLevel, JbuStack, bilateral_kernel, prime_factors, shift_likeness, tile_likeness
from teachers.seeding import torch_rng
from tests.featsharp.answers import answers, fill_level

FORMS = ["composed", "shift_add", "shift"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_rng("jbu", seed), dtype=torch.float64)


@pytest.mark.parametrize("h, w", [(9, 13), (16, 8), (1, 6)])
def test_tiled_likeness_equals_the_definition_forward_and_backward(h, w):
    q = normal(2, 5, h, w).requires_grad_()
    upstream = normal(2, 49, h, w, seed=1)
    tiled, shift = tile_likeness(q, 3), shift_likeness(q, 3)
    torch.testing.assert_close(tiled, shift)
    torch.testing.assert_close(
        *(torch.autograd.grad(out, q, upstream)[0] for out in (tiled, shift))
    )


def test_level_passes_gradcheck_through_its_learned_kernel():
    level = JbuLevel(2, JbuConfig(width=4)).double()
    guidance, source = normal(1, 3, 6, 4).requires_grad_(), normal(1, 2, 3, 2, seed=1).requires_grad_()
    torch.autograd.gradcheck(level, (source, guidance), fast_mode=True)
    level(source, guidance).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in level.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_kernel_sums_to_one_so_a_constant_stays_constant(form):
    level = JbuLevel(2, JbuConfig(implementation=form))
    guidance = normal(2, 3, 10, 14).float()
    kernel = bilateral_kernel(level.project(guidance), level.temperature, level.sigma, 3, form)
    torch.testing.assert_close(kernel.sum(1), torch.ones(2, 10, 14))
    torch.testing.assert_close(level(torch.full((2, 3, 5, 7), 2.5), guidance), torch.full((2, 3, 10, 14), 2.5))


def test_an_edge_in_the_guidance_is_not_smeared():
    """With strong guidance, cells left of an edge keep the value that is far from it: bilinear would mix them."""
    guidance = torch.zeros(1, 1, 16, 16)
    guidance[..., 8:] = 1
    source = torch.zeros(1, 1, 8, 8)
    source[..., 4:] = 1
    kernel = bilateral_kernel(4 * (guidance - 0.5), torch.tensor(1.0), torch.tensor(1.0), 3)
    sharp = adaptive_upsample(source, kernel, 2)
    bilinear = F.interpolate(source, scale_factor=2, mode="bilinear")
    truth = guidance
    assert (sharp - truth).square().mean() < 0.6 * (bilinear - truth).square().mean()


def test_factor_1_is_the_identity_without_parameters():
    stack, x = JbuStack(1, JbuConfig()), torch.rand(1, 4, 3, 5)
    assert stack(x, torch.rand(1, 3, 24, 40)) is x
    assert not list(stack.parameters())


@pytest.mark.parametrize("factor", [3, 5, 6, 7, 12, 14])
def test_stacks_of_primes_reach_their_size(factor):
    stack = JbuStack(factor, JbuConfig())
    assert [level.factor for level in stack.levels] == prime_factors(factor)
    assert stack(torch.rand(1, 4, 2, 3), torch.rand(1, 3, 61, 90)).shape == (1, 4, 2 * factor, 3 * factor)


@pytest.mark.parametrize("form", FORMS)
def test_level_gives_the_known_answer(form):
    known = answers("jbu_level")
    level = JbuLevel(2, JbuConfig(implementation=form))
    fill_level(level, known, "weight.")
    torch.testing.assert_close(level(known["source"], known["guidance"]), known["out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_stack_of_6_gives_the_known_answer(form):
    known = answers("jbu_stack_x6")
    stack = JbuStack(6, JbuConfig(implementation=form))
    for i, level in enumerate(stack.levels):
        fill_level(level, known, f"weight.ups.{i}.")
    torch.testing.assert_close(stack(known["source"], known["guidance"]), known["out"], rtol=0, atol=1e-5)
