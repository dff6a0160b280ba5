"""The adaptive filter: every form is the definition, forward and backward; every tap learns; nothing large is kept."""

import importlib.util
import sys

import pytest
import torch

from featsharp.adaptive import FORMS, adaptive_upsample, shift_upsample
from teachers.errors import UserError
from teachers.seeding import torch_rng

FAST = ["composed", "shift_add"]
SHAPES = [(6, 9, 1), (6, 9, 2), (1, 5, 2), (1, 1, 2), (5, 3, 3), (4, 6, 4), (4, 2, 5), (3, 5, 6), (3, 4, 7), (2, 3, 14)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_rng("adaptive", seed), dtype=torch.float64)


def problem(h, w, factor, channels=4, batch=2, radius=3):
    """Source, kernel and upstream gradient."""
    taps, large = (2 * radius + 1) ** 2, (h * factor, w * factor)
    return normal(batch, channels, h, w), normal(batch, taps, *large, seed=1), normal(batch, channels, *large, seed=2)


def both_ways(upsample, source, kernel, upstream, factor):
    """Output and both gradients."""
    source, kernel = source.clone().requires_grad_(), kernel.clone().requires_grad_()
    out = upsample(source, kernel, factor)
    return out.detach(), *torch.autograd.grad(out, [source, kernel], upstream.to(out.dtype))


@pytest.mark.parametrize("h, w, factor", SHAPES)
@pytest.mark.parametrize("form", FAST)
def test_fast_forms_equal_the_definition_forward_and_backward(form, h, w, factor):
    case = problem(h, w, factor)
    for mine, its in zip(both_ways(FORMS[form], *case, factor), both_ways(shift_upsample, *case, factor)):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("form", FAST)
def test_another_radius_and_a_chunk_of_one_row_or_channel_change_nothing(form, monkeypatch):
    case = problem(9, 11, 2, radius=5)
    monkeypatch.setitem(sys.modules["featsharp.adaptive"].CHUNK, "cpu", 1)
    for mine, its in zip(both_ways(FORMS[form], *case, 2), both_ways(shift_upsample, *case, 2)):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
def test_single_precision_stays_within_rounding_and_bf16_within_its_own(form, last):
    source, kernel, upstream = problem(10, 13, 2, channels=16)
    kernel = kernel.softmax(1)
    truth = both_ways(shift_upsample, source, kernel, upstream, 2)
    layout = torch.channels_last if last else torch.contiguous_format
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
        low = [x.to(dtype=dtype, memory_format=layout) for x in (source, upstream)]
        out = both_ways(FORMS[form], low[0], kernel.float(), low[1], 2)
        assert [x.dtype for x in out] == [dtype, dtype, torch.float32]
        for mine, its in zip(out, truth):
            assert (mine.double() - its).norm() < tolerance * its.norm()


@pytest.mark.parametrize("form", [*FAST, "shift"])
def test_gradients_are_right_and_reach_all_49_taps(form):
    source, kernel, _ = problem(3, 4, 2, channels=2, batch=1)
    source.requires_grad_()
    kernel.requires_grad_()
    torch.autograd.gradcheck(lambda s, k: adaptive_upsample(s, k, 2, form), (source, kernel), fast_mode=True)
    adaptive_upsample(source, kernel, 2, form).square().sum().backward()
    assert (kernel.grad.abs().amax((0, 2, 3)) > 1e-3).all()


def test_every_element_of_the_kernel_gradient_passes_the_slow_gradcheck():
    source, kernel, _ = problem(1, 2, 2, channels=2, batch=1)
    for form in FAST:
        torch.autograd.gradcheck(
            lambda s, k, form=form: adaptive_upsample(s, k, 2, form), (source.requires_grad_(), kernel.requires_grad_())
        )


@pytest.mark.parametrize("form, most", [("composed", 0.5), ("shift_add", 0.1)])
def test_what_is_kept_for_the_backward_does_not_grow_with_taps_times_channels(form, most):
    """In units of the output map, besides source and kernel: tile weights at most."""
    source, kernel, _ = problem(16, 16, 2, channels=256, batch=1)
    kept: dict[int, int] = {}

    def keep(x):
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = adaptive_upsample(source.requires_grad_(), kernel.requires_grad_(), 2, form)
    known = sum(x.untyped_storage().nbytes() for x in (source, kernel))
    assert out.numel() == 256 * 32 * 32
    extra = sum(kept.values()) - known
    assert extra <= most * out.untyped_storage().nbytes(), f"{extra / out.untyped_storage().nbytes():.2f} maps"


def test_an_unknown_form_and_triton_on_a_cpu_are_user_errors():
    source, kernel, _ = problem(2, 2, 2)
    with pytest.raises(UserError, match="unknown implementation 'fast'"):
        adaptive_upsample(source, kernel, 2, "fast")
    with pytest.raises(UserError, match="CUDA"):
        adaptive_upsample(source, kernel, 2, "triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("h, w, factor", [*SHAPES, (32, 48, 2)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_forms_on_a_gpu_equal_the_definition(h, w, factor, dtype, tolerance):
    source, kernel, upstream = (x.cuda() for x in problem(h, w, factor, channels=72))
    kernel = kernel.softmax(1)
    truth = both_ways(shift_upsample, source, kernel, upstream, factor)
    forms = FAST + ["triton"] * (importlib.util.find_spec("triton") is not None)
    for form in forms:
        for mine, its in zip(both_ways(FORMS[form], source.to(dtype), kernel.float(), upstream, factor), truth):
            assert (mine.double() - its).norm() < tolerance * its.norm(), form
