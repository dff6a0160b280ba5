"""Spectral reparametrisation: every matrix starts at σ = 1, learns it apart, and folds into plain weights."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from featsharp.adapter import Adapter
from featsharp.config import FusionConfig, SharpenerConfig
from featsharp.fusion import SwiGLU, WindowAttention
from featsharp.sharpener import Sharpener, load
from teachers.seeding import seeded, torch_rng
from teachers.spectral import SpectralScale, folded_state, reparametrise
from tests.featsharp.test_task import objective, train
from tests.featsharp.toys import Pictures, random_teacher

FUSION = FusionConfig(heads=4)


def block() -> nn.ModuleDict:
    """The linear layers of a fusion block."""
    with seeded("spectral"):
        made = nn.ModuleDict({"attention": WindowAttention(32, FUSION), "ffn": SwiGLU(32, 40, 16)})
        reparametrise(made)
    return made


def largest(weight: torch.Tensor, chunks: int) -> list[float]:
    return [torch.linalg.matrix_norm(part, 2).item() for part in weight.detach().chunk(chunks)]


LAYERS = [("attention.qkv", 3), ("attention.proj", 1), ("ffn.w12", 2), ("ffn.w3", 1)]


@pytest.mark.parametrize("name, chunks", LAYERS)
def test_every_matrix_starts_with_a_largest_singular_value_of_1(name, chunks):
    linear = block().get_submodule(name)
    assert linear.parametrizations.weight[0].spectral.shape == (chunks,)
    assert largest(linear.weight, chunks) == pytest.approx([1.0] * chunks, abs=1e-3)
    assert largest(linear.parametrizations.weight.original, chunks) != pytest.approx([1.0] * chunks, abs=0.05)


def test_the_value_is_learned_apart_from_the_matrix():
    linear = block().eval().get_submodule("attention.qkv")
    with torch.no_grad():
        linear.parametrizations.weight[0].spectral[1] = 3.0
        linear.parametrizations.weight.original.mul_(7)
    expected = [1.0, torch.nn.functional.softplus(torch.tensor(3.0)).item() + 0.05, 1.0]
    assert largest(linear.weight, 3) == pytest.approx(expected, rel=1e-3)


def test_power_iteration_follows_a_matrix_that_moves_in_training_only():
    with seeded("moving"):
        linear = nn.Linear(20, 30)
        reparametrise(linear)
    with torch.no_grad():
        linear.parametrizations.weight.original.add_(torch.randn(30, 20, generator=torch_rng("moved")))
    linear.eval()
    before = largest(linear.weight, 1)
    assert before == largest(linear.weight, 1) != pytest.approx([1.0], abs=0.01)
    linear.train()
    for _ in range(60):
        linear(torch.zeros(1, 20))
    assert largest(linear.weight, 1) == pytest.approx([1.0], abs=1e-2)


def test_gradients_are_those_of_the_true_singular_value():
    weight = torch.randn(6, 5, dtype=torch.float64, generator=torch_rng("gradient")).requires_grad_()
    upstream = torch.randn(6, 5, generator=torch_rng("upstream"))
    scale = SpectralScale(weight, 1).eval()
    mine = torch.autograd.grad((scale(weight) * upstream).sum(), weight)[0]
    true = torch.autograd.grad((weight / torch.linalg.matrix_norm(weight, 2) * upstream).sum(), weight)[0]
    torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-4)


def test_folded_is_live():
    made = block()
    with seeded("other"):
        plain = nn.ModuleDict({"attention": WindowAttention(32, FUSION), "ffn": SwiGLU(32, 40, 16)})
    state = folded_state(made)
    plain.load_state_dict(state)
    assert made.ffn.w3.parametrizations.weight[0].training
    made.eval()
    x = torch.randn(1, 5, 7, 32, generator=torch_rng("x"))
    for name in ("attention", "ffn"):
        assert torch.equal(plain[name](x), made[name](x))
    untouched = folded_state(plain)
    assert untouched.keys() == state.keys() and all(torch.equal(untouched[key], state[key]) for key in state)


def test_a_saved_adapter_holds_folded_weights_and_answers_as_the_live_one(tmp_path):
    made = objective(tmp_path, spectral=True, conditional_bias=True)
    train(made, 3)
    made.artefact(tmp_path / "run")
    assert not any("parametrizations" in key for key in load_file(tmp_path / "run" / "adapter.safetensors"))
    made.model.eval()
    x = torch.rand(2, 3, 96, 128, generator=torch_rng("image"))
    live, loaded = Sharpener(made.encoder, made.config, made.model.adapter), load(tmp_path / "run", made.encoder)
    torch.testing.assert_close(loaded(x).spatial, live(x).spatial)
    assert loaded.config.spectral
    loaded.save(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again", made.encoder)(x).spatial, loaded(x).spatial)


def test_every_parameter_learns_and_singular_values_at_a_rate_of_their_own(tmp_path):
    made = objective(tmp_path, spectral=True)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    scale = {id(p): group["lr_scale"] for group in made.param_groups(1e-3, 0.05) for p in group["params"]}
    learned = [p for name, p in made.model.named_parameters() if name.endswith(".spectral")]
    assert len(learned) == 4 and {scale[id(p)] for p in learned} == {0.1}
    train(made, 3)
    assert not [name for name, p in made.model.named_parameters() if torch.equal(before[name], p.detach())]


def test_training_continues_from_a_state_as_if_it_had_not_stopped(tmp_path):
    """The singular vectors are buffers: without them a resumed run would follow another path."""
    made, again = objective(tmp_path, spectral=True), objective(tmp_path, spectral=True)
    train(made, 2)
    again.model.load_state_dict(made.model.state_dict())
    picture, rng = Pictures(made.image_size, 2, 5), ("step", 5)
    losses = [one.losses(one.model, picture, 5, torch_rng(*rng))[0].item() for one in (made, again)]
    assert losses[0] == losses[1]


def test_it_is_off_by_default_and_runs_in_bf16_and_on_meta():
    teacher, settings = random_teacher(), {"fusion": {"heads": 8}}
    assert not any("spectral" in key for key in Adapter(SharpenerConfig(**settings), teacher).state_dict())
    made = block()
    x = torch.randn(1, 5, 7, 32, generator=torch_rng("x"))
    with torch.autocast("cpu", torch.bfloat16):
        low = made.ffn(x)
    torch.testing.assert_close(low.float(), made.ffn(x), rtol=0.1, atol=0.05)
    with torch.device("meta"):
        adapter = Adapter(SharpenerConfig(spectral=True, **settings), teacher)
        maps = torch.empty(1, 32, 6, 8), torch.empty(1, 32, 12, 16), torch.empty(1, 3, 96, 128)
        assert adapter(*maps).shape == (1, 32, 12, 16)
