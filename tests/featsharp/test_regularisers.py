"""The terms besides the views': what they are zero for, what they are large for, and that weight 0 costs nothing."""

import pytest
import torch

from featsharp import consistency
from featsharp.regularisers import crf, draw_points, mmd, nearest_cells
from teachers.seeding import torch_rng
from tests.featsharp.test_task import objective
from tests.featsharp.toys import Pictures

TERMS = {"tv": "total_variation", "crf": "crf", "mmd": "mmd", "conditional": "change_penalty"}


def fail(*_):
    pytest.fail("computed")


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_weight_0_is_not_computed_and_one_of_another_weight_is(tmp_path, monkeypatch, name):
    monkeypatch.setattr(consistency, TERMS[name], fail)
    plain = objective(tmp_path, conditional_bias=True)
    plain.losses(plain.model, Pictures(plain.image_size, 1, 0), 0, torch_rng(0))
    weighed = objective(tmp_path, conditional_bias=True, losses={name: 0.1})
    with pytest.raises(pytest.fail.Exception):
        weighed.losses(weighed.model, Pictures(weighed.image_size, 1, 0), 0, torch_rng(0))


@pytest.mark.parametrize("name", TERMS)
def test_a_term_adds_its_weight_times_itself(tmp_path, name):
    def loss(weight: float) -> float:
        made = objective(tmp_path, conditional_bias=True, losses={name: weight, "uncertainty": False})
        with torch.no_grad():
            made.model.adapter.bias.block.gamma2.fill_(0.3)
        total, _ = made.losses(made.model, Pictures(made.image_size, 2, 0), 0, torch_rng(0))
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in made.model.parameters())
        return total.item()

    nothing, one, two = (loss(weight) for weight in (0.0, 1.0, 2.0))
    assert one != pytest.approx(nothing, rel=1e-4)
    assert two - nothing == pytest.approx(2 * (one - nothing), rel=1e-2)


def two_colours(h: int, w: int) -> torch.Tensor:
    """Left half black, right half white."""
    image = torch.zeros(1, 3, h, w)
    image[..., w // 2 :] = 1
    return image


def test_crf_wants_features_to_differ_where_colours_do_and_nowhere_else():
    image, points = two_colours(40, 60), draw_points(1, torch_rng("points"))
    side = torch.cat([image[:, :1, ::2, ::2], 1 - image[:, :1, ::2, ::2]], 1)  # follows the image
    along = side.transpose(2, 3).flip(2)
    along = torch.nn.functional.interpolate(along, (20, 30), mode="nearest")  # the edge lies across the image's
    assert crf(torch.ones(1, 4, 20, 30), image, points).abs() < 1e-5
    assert crf(side, image, points) < 0.35 * crf(along, image, points)


def test_crf_by_pairs_is_the_definition():
    rng = torch_rng("crf")
    sharp, image = torch.randn(1, 3, 6, 8, generator=rng), torch.rand(1, 3, 24, 32, generator=rng)
    points = draw_points(1, rng)[:, :30]
    sample = torch.nn.functional.grid_sample
    f, c = (sample(x, points[:, None], padding_mode="border", align_corners=False)[0, :, 0].T for x in (sharp, image))
    total = 0.0
    for p in range(30):
        for q in range(30):
            place, colour = (points[0, p] / 2 - points[0, q] / 2).square().sum(), (c[p] - c[q]).square().sum()
            kernel = 10 * torch.exp(-place / 0.2 - colour / 0.3) + 3 * torch.exp(-place / 0.01)
            total += kernel / 13 * (1 - torch.cosine_similarity(f[p], f[q], dim=0))
    torch.testing.assert_close(crf(sharp, image, points), total / 900, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3])
def test_of_each_coarse_cell_the_nearest_sharp_feature_is_picked(factor):
    rng = torch_rng("nearest")
    low = torch.randn(2, 5, 3, 4, generator=rng)
    sharp = torch.nn.functional.interpolate(low, scale_factor=factor, mode="nearest")
    sharp = sharp + torch.randn(sharp.shape, generator=rng)
    sharp[..., 1::factor, 0::factor] = low + 0.01  # one place in every cell
    torch.testing.assert_close(nearest_cells(sharp, low), low + 0.01)


def test_mmd_tells_distributions_apart_and_is_unbiased():
    rng = torch_rng("mmd")

    def maps(shift: float = 0.0) -> torch.Tensor:
        return torch.randn(1, 4, 20, 30, generator=rng) + shift

    same = torch.tensor([mmd(maps(), maps()) for _ in range(20)])
    assert same.min() < 0 and same.mean().abs() < 2e-3
    assert mmd(maps(), maps(1.0)) > 50 * same.std()
    shifted = maps(1.0).requires_grad_()
    mmd(shifted, maps()).backward()
    assert shifted.grad.mean() > 0  # downhill is towards the others


def test_mmd_of_large_maps_looks_at_a_bounded_number():
    x, y = torch.randn(1, 2, 120, 100), torch.randn(1, 2, 60, 50)
    assert mmd(x, y).isfinite() and mmd(torch.randn(4, 2, 60, 60), torch.randn(4, 2, 60, 60)).isfinite()
    assert mmd(torch.ones(1, 2, 2, 2), torch.ones(1, 2, 1, 1)).isfinite()
