"""A student's reparametrised and noisy weights: unchanged at first, the same when run again, plain once baked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from teachers.radio import RadioModel
from teachers.radio_spec import HeadSpec, MlpSpec
from teachers.seeding import seeded, torch_rng
from teachers.spectral import FLOOR, SpectralScale, WeightNoise, holding, load_folded
from tests.teachers.radio_toys import MLP, SPEC, images, model

HEADS = {**SPEC.heads, "sam": HeadSpec(8, MlpSpec(12, 0, "attention"), 4, MLP)}
ALL = {"spectral": True, "spectral_heads": True, "damp": 0.1, "mlp": "swiglu", "heads": HEADS}


def twins(**options) -> tuple[RadioModel, RadioModel]:
    """A reparametrised student, and the plain one that it was made from."""
    live = model(**options)
    plain = model(seed=1, **{**options, "spectral": False, "spectral_heads": False, "damp": 0.0})
    load_folded(live, plain.state_dict())
    return live, plain


def largest(weight: torch.Tensor, chunks: int) -> torch.Tensor:
    return torch.stack([torch.linalg.matrix_norm(part, 2) for part in weight.detach().chunk(chunks)])


def test_reparametrising_changes_nothing_at_first():
    live, plain = twins(**ALL)
    with torch.no_grad():
        for name, wanted in plain(images(2, 3, 16, 24)).items():
            got = live(images(2, 3, 16, 24))[name]
            torch.testing.assert_close(got.features, wanted.features, atol=1e-4, rtol=1e-4)
            assert wanted.summary is None or torch.allclose(got.summary, wanted.summary, atol=1e-4)


def test_a_fresh_student_is_the_same_function_with_and_without():
    with seeded("fresh"):
        plain = RadioModel(SPEC).eval()
    with seeded("fresh"):
        live = RadioModel(replace(SPEC, spectral=True)).eval()
    torch.testing.assert_close(live.tokens(images(2, 3, 8, 8)), plain.tokens(images(2, 3, 8, 8)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "chunks"), [("attn.qkv", 3), ("attn.proj", 1), ("mlp.w12", 2), ("mlp.w3", 1)]
)  # fmt: skip
def test_every_matrix_of_the_trunk_has_its_own_values_and_they_are_its_norms(name, chunks):
    live, plain = twins(**{**ALL, "damp": 0.0})
    linear = live.blocks[1].get_submodule(name)
    spectral = linear.parametrizations.weight[0].spectral
    assert spectral.shape == (chunks, 1, 1)  # a matrix: weight decay reaches it
    wanted = largest(plain.blocks[1].get_submodule(name).weight, chunks)
    torch.testing.assert_close(nn.functional.softplus(spectral).flatten() + FLOOR, wanted, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        spectral[0] += 1
    raised = nn.functional.softplus(spectral).flatten() + FLOOR
    torch.testing.assert_close(largest(linear.weight, chunks), raised.detach(), rtol=1e-3, atol=1e-4)


def test_the_patch_embedding_stays_plain_and_heads_are_asked_for_apart():
    def reparametrised(**options) -> set[str]:
        keys = model(**options).state_dict()
        return {key.split(".")[0] for key in keys if ".spectral" in key}

    assert reparametrised() == set()
    assert reparametrised(spectral=True) == {"blocks"}
    assert reparametrised(spectral=True, spectral_heads=True) == {"blocks", "heads"}
    live = model(**ALL)
    linears = [name for name, part in live.named_modules() if isinstance(part, nn.Linear)]
    plain = [name for name in linears if f"{name}.parametrizations.weight.0.spectral" not in live.state_dict()]
    assert plain == ["patch_generator.embedder"]


def test_values_below_the_floor_begin_at_it_and_large_ones_are_exact():
    for size in (1e-3, 1.0, 300.0):
        weight = torch.randn(6, 5, generator=torch_rng("size"))
        weight *= size / torch.linalg.matrix_norm(weight, 2)
        scale = SpectralScale(weight, 1, keep=True).eval()
        wanted = max(size, FLOOR + 1e-4)
        assert torch.linalg.matrix_norm(scale(weight), 2).item() == pytest.approx(wanted, rel=2e-3)


def test_a_checkpointed_forward_meets_the_same_noise_and_the_same_norms():
    def run(checkpointing: bool) -> tuple[torch.Tensor, dict, dict]:
        made, _ = twins(**ALL, activation_checkpointing=checkpointing)
        with seeded("forward"):
            loss = made.train()(images(3, 3, 8, 12))["clip"].features.square().mean()
            loss.backward()
        gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
        return loss, gradients, dict(made.named_buffers())

    (plain, gradients, left), (kept, recomputed, again) = run(False), run(True)
    assert torch.equal(plain, kept) and gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(left[name], again[name]) for name in left)  # one step of power iteration, not two


def test_power_iteration_stands_still_while_it_is_held():
    with seeded("held"):
        scale = SpectralScale(torch.randn(6, 5), 1).train()
    other, before = torch.randn(6, 5, generator=torch_rng("other")), scale.right.clone()
    with holding():
        scale(other)
        assert torch.equal(scale.right, before)
    scale(other)
    assert not torch.equal(scale.right, before)


def test_noise_multiplies_weights_with_mean_1_and_its_deviation_in_training_only():
    noise, weight = WeightNoise(0.2), torch.full((200, 300), 2.0)
    with seeded("noise"):
        ratio = noise.train()(weight) / weight
    assert ratio.mean().item() == pytest.approx(1, abs=0.005) and ratio.std().item() == pytest.approx(0.2, abs=0.005)
    assert torch.equal(noise.eval()(weight), weight)
    made = model(damp=0.2).train()
    made.patch_generator.eval()  # crops are not what this is about
    first, second = made.tokens(images(1, 3, 8, 8)), made.tokens(images(1, 3, 8, 8))
    assert not torch.equal(first, second)
    made.eval()
    assert torch.equal(made.tokens(images(1, 3, 8, 8)), made.tokens(images(1, 3, 8, 8)))


def test_baked_is_plain_and_answers_as_the_live_one_in_eval_mode():
    live, _ = twins(**ALL)
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if name.endswith("spectral"):
                parameter += 0.3
    live.train()
    spec, state = live.baked()
    assert live.training and live.blocks[0].attn.qkv.parametrizations.training  # as it was
    assert not (spec.spectral or spec.spectral_heads or spec.damp) and "blocks.0.mlp.w12.weight" in state
    plain = RadioModel(spec).eval()
    plain.load_state_dict(state)
    live.eval()
    with torch.no_grad():
        for name, wanted in live(images(2, 3, 16, 24)).items():
            torch.testing.assert_close(
                plain(images(2, 3, 16, 24))[name].features, wanted.features, atol=1e-6, rtol=1e-6
            )
    untouched = model().baked()
    assert untouched[0] == SPEC and untouched[1].keys() == model().state_dict().keys()


def test_every_parameter_gets_a_gradient_also_in_bf16():
    made = model(**ALL, final_norm=True, layer_scale=0.1, patch_bias=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = made(images(2, 3, 8, 12))
    sum(
        o.features.square().mean() + (0 if o.summary is None else o.summary.square().mean()) for o in out.values()
    ).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []
