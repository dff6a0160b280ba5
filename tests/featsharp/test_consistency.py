"""The objective: one backward for all views, a bias that learns from both sides, terms of weight 0 left out."""

import copy

import pytest
import torch

from featsharp import consistency
from featsharp.bias import PositionBias
from featsharp.config import SharpenerConfig
from featsharp.consistency import seam_weights
from featsharp.fidelity import Fidelity
from featsharp.one_backward import one_backward
from featsharp.regularisers import total_variation
from featsharp.task import SharpenObjective
from teachers.seeding import torch_rng
from tests.featsharp.toys import NoisyColours, Pictures, random_teacher

SMALL = {"views": {"jitters": 3}, "losses": {"uncertainty_width": 8}, "fusion": {"heads": 8, "layer_scale": 0.1}}


def objective(tmp_path, config: dict, teacher=None) -> SharpenObjective:
    teacher = teacher or random_teacher()
    made = SharpenObjective(
        teacher, SharpenerConfig.model_validate(config), cache=tmp_path, statistics_batches=3, say=lambda text: None
    )
    made.begin_stage(0, lambda: (Pictures(made.image_size, 4, n) for n in range(3)), "toys")
    return made


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["attention", "simple"])
def test_one_backward_gives_the_gradients_of_one_a_view(tmp_path, monkeypatch, kind):
    made = objective(tmp_path, SMALL | {"downsampler": {"kind": kind}, "losses": {"uncertainty_width": 8, "tv": 0.1}})
    with torch.no_grad():
        torch.nn.init.normal_(made.model.uncertainty.out.weight, std=0.1, generator=torch_rng("spread"))
    sight = made.see(Pictures(made.image_size, 2, 9).float(made.image_size), torch_rng("views"), drop=True)
    total, logs = made.model(sight)
    ours = gradients(made.model, 3 * total)

    def naive(inputs, parameters, terms):
        return sum(term(*inputs) for term in terms)

    monkeypatch.setattr(consistency, "one_backward", naive)
    plain, plain_logs = made.model(sight)
    theirs = gradients(made.model, 3 * plain)
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(logs, plain_logs)
    assert ours.keys() == theirs.keys() == {name for name, _ in made.model.named_parameters()}
    for name in ours:
        assert (ours[name] - theirs[name]).norm() <= 1e-5 * theirs[name].norm() + 1e-9, name


def test_the_sharpener_is_walked_once_whatever_the_number_of_views(tmp_path):
    for jitters in (1, 4):
        made = objective(tmp_path, SMALL | {"views": {"jitters": jitters}})
        walks = []
        made.model.adapter.upsampler.fusion.register_full_backward_hook(lambda *_, walks=walks: walks.append(1))
        total, _ = made.losses(made.model, Pictures(made.image_size, 2, 0), 0, torch_rng(0))
        total.backward()
        assert len(walks) == 1


def test_gradients_are_scaled_by_what_comes_from_above_and_unused_ones_stay_none():
    x, used, unused = (torch.ones(3, requires_grad=True) for _ in range(3))
    total = one_backward([2 * x], [used, unused], [lambda h: (h * used).sum(), lambda h: h.square().sum()])
    (5 * total).backward()
    assert total.item() == 6 + 12
    assert x.grad.tolist() == [5 * 2 * (1 + 4)] * 3 and used.grad.tolist() == [10.0] * 3 and unused.grad is None


def test_bias_learns_from_the_prediction_and_from_the_target(tmp_path):
    """With everything else fixed the table's gradient is the sum of the two sides'; neither is zero."""
    made = objective(tmp_path, {"upsampler": "bilinear", "views": {"jitters": 1}, "losses": {"uncertainty": False}})
    sight = made.see(Pictures(made.image_size, 2, 3).float(made.image_size), torch_rng("views"))
    table, model = made.model.adapter.bias.table, made.model

    def side(predicted_from: torch.Tensor, target_from: torch.Tensor) -> torch.Tensor:
        sharp = torch.nn.functional.interpolate(sight.low + predicted_from, scale_factor=2, mode="bilinear")
        valid = consistency.fully_inside(sight.to_base[0], (6, 8)).float()
        error = (model.predict(sharp, sight, 0) - sight.targets[0] - target_from).square().mean(1, keepdim=True)
        loss = (valid * error).sum() / valid.sum().clamp(min=valid.numel() / 2)
        return torch.autograd.grad(loss, table)[0]

    def differences() -> torch.Tensor:
        return table - table.mean((2, 3), keepdim=True)

    fixed = differences().detach()
    both = gradients(model, model(sight)[0])["adapter.bias.table"]
    prediction, target = side(differences(), fixed), side(fixed, differences())
    torch.testing.assert_close(both, prediction + target, rtol=1e-3, atol=1e-6)
    assert prediction.abs().max() > 1e-4 and target.abs().max() > 1e-4


def test_bias_cannot_shift_a_channel_as_a_whole():
    bias, x = PositionBias(4, (6, 8)), torch.rand(2, 4, 12, 16)
    torch.nn.init.normal_(bias.table, generator=torch_rng("bias"))
    added = bias(x, tiles=2) - x
    torch.testing.assert_close(added.mean((2, 3)), torch.zeros(2, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(added[..., :6, :8], added[..., 6:, 8:])


def test_bias_recovers_the_negative_of_noise_that_sticks_to_the_grid(tmp_path):
    teacher = NoisyColours(grid=(6, 8))
    made = objective(
        tmp_path,
        {
            "upsampler": "bilinear",
            "views": {"jitters": 2, "shift": 0.2, "source_scale": 1, "zoom": [1, 1.5]},
            "downsampler": {"kind": "simple"},
            "losses": {"uncertainty": False},
        },
        teacher,
    )
    optimizer = torch.optim.Adam(made.param_groups(0.03, 0))
    for step in range(150):
        total, _ = made.losses(made.model, Pictures(made.image_size, 8, 100 + step), step, torch_rng(step))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    phi_s, table = made.model.adapter.phi_s, made.model.adapter.bias.table.detach()
    noise = phi_s(teacher.noise) - phi_s(torch.zeros_like(teacher.noise))
    learned, truth = (x - x.mean((2, 3), keepdim=True) for x in (table, -noise))
    correlation = (learned * truth).sum() / (learned.norm() * truth.norm())
    assert correlation >= 0.95


def test_weights_of_seams_are_on_the_four_cells_around_them():
    weights = seam_weights((8, 12), 2, 2.0)[0, 0]
    assert weights.mean().item() == pytest.approx(1)
    heavy = weights > weights.min() * 1.5
    assert heavy[3:5].all() and heavy[:, 5:7].all() and heavy.sum() == 2 * 12 + 2 * 8 - 4


def test_terms_of_weight_0_are_not_computed(tmp_path, monkeypatch):
    made = objective(tmp_path, SMALL | {"losses": {"uncertainty": False}})
    assert made.model.uncertainty is None
    monkeypatch.setattr(consistency, "total_variation", lambda x: pytest.fail("computed"))
    made.losses(made.model, Pictures(made.image_size, 1, 0), 0, torch_rng(0))


def test_total_variation_is_zero_for_a_constant_and_works_on_one_row():
    assert total_variation(torch.ones(1, 2, 5, 4)) == 0
    assert total_variation(torch.tensor([[[[0.0, 2.0]]]])) == 1.5


def test_fidelity_is_one_for_a_constant_and_large_for_a_perfect_guess(tmp_path):
    made = objective(tmp_path, SMALL)
    images = Pictures(made.image_size, 16, 50).float(made.image_size)
    sight = made.see(images, torch_rng("views"))
    model = copy.deepcopy(made.model)
    mean = sight.targets.mean((0, 1, 3, 4)).view(1, -1, 1, 1)
    model.predict = lambda sharp, sight, j: mean.expand_as(sight.targets[j])
    judge = Fidelity(model)
    judge.update(sight)
    assert judge.result()["fidelity"] == pytest.approx(1, abs=0.25)
    model.predict = lambda sharp, sight, j: model.target(sight, j) + 0.1
    judge = Fidelity(model)
    judge.update(sight)
    assert judge.result()["fidelity"] == pytest.approx(100, rel=1e-3)
