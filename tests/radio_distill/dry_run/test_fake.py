"""Tensors without values: what is counted on them is what numbers would take, and nothing of them is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from featsharp.adaptive import axis_weights
from radio_distill.dry_run.fake import bytes_of, fake_tensors, materialize
from teachers.features import has_values

MIB = 2**20


def test_bytes_are_counted_from_birth_to_death():
    with fake_tensors() as meter:
        kept = [torch.empty(MIB // 4)]
        usage = meter.measure(lambda: (kept[0] + 1) * 2)  # two at a time, then one
        assert usage.peak == 2 * MIB and meter.held == MIB
        view = kept.pop().view(-1, 4)[2:]
        assert meter.held == MIB  # a view keeps all of it
        del view
        assert meter.held == 0


def test_a_training_step_holds_weights_gradients_and_what_the_backward_pass_needs():
    with fake_tensors() as meter:
        layer = nn.Linear(1024, 1024, bias=False)
        assert meter.held == bytes_of(layer) == 4 * MIB
        x = torch.empty(256, 1024)
        usage = meter.measure(lambda: layer(x).square().sum().backward())
        assert layer.weight.grad is not None and meter.held == (4 + 4 + 1) * MIB
        assert usage.flops == 2 * 2 * 256 * 1024 * 1024
        assert 4 * MIB + MIB < usage.peak < 4 * MIB + 4 * MIB


@pytest.mark.parametrize("grad", [False, True])
def test_operations_are_those_that_torchs_counter_finds(grad):
    net = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(2))
    end = nn.Linear(16, 5)

    def run() -> None:
        with torch.set_grad_enabled(grad):
            out = end(net(torch.ones(2, 3, 16, 16))).sum()
        if grad:
            out.backward()

    with FlopCounterMode(display=False) as counter:
        run()
    with fake_tensors() as meter:
        materialize(net, "cpu"), materialize(end, "cpu")
        assert meter.measure(run).flops == counter.get_total_flops() > 0


def test_attention_is_counted_though_a_cpu_runs_it_fused():
    with fake_tensors() as meter:
        q = torch.empty(2, 4, 32, 8, requires_grad=True)
        products = 2 * 2 * 4 * 32 * 32 * 8
        assert meter.measure(lambda: F.scaled_dot_product_attention(q, q, q)).flops == 2 * products
        usage = meter.measure(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
        assert usage.flops == 2 * products + 5 * products


def test_what_is_read_back_is_counted_and_answered():
    with fake_tensors() as meter:
        x = torch.randn(3)
        assert float(x.sum()) == 0.5 and bool((x > 0).all()) and x.round().int().tolist() == [0, 1, 0]
        assert meter.reads == 5


def test_nothing_without_values_outlives_the_context():
    with fake_tensors():
        module = nn.Linear(3, 3).to(torch.float64)  # torch's own `.to` cannot change fake parameters
        assert module.weight.dtype == torch.float64 and not has_values(module.weight)
        nn.init.trunc_normal_(module.weight, std=0.02)  # draws until all is well, which is never known here
        assert not has_values(axis_weights(17, 2, 3, torch.device("cpu"), torch.float32))
    assert has_values(axis_weights(17, 2, 3, torch.device("cpu"), torch.float32))
    assert has_values(nn.Linear(3, 3).to(torch.float64).weight) and has_values(torch.empty(1))
