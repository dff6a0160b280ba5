"""Depth and normal errors: figures agree with torchmetrics and brute force, unknown truth counts for nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eval.geometry_metrics import (
    ANGLES,
    RATIOS,
    angles,
    angular_errors,
    depth_errors,
    normal_errors,
    picture_means,
)
from teachers.errors import UserError
from teachers.seeding import torch_rng


def some_depth(*shape):
    """Truth and a prediction that is off by up to a factor of about 2, with a tenth of the truth unknown."""
    rng = torch_rng("depth", *shape)
    truth = 0.3 + 4 * torch.rand(shape, generator=rng)
    predicted = truth * torch.exp(0.4 * torch.randn(shape, generator=rng))
    return predicted, truth.masked_fill(torch.rand(shape, generator=rng) < 0.1, torch.nan)


def some_normals(*shape):
    rng = torch_rng("normals", *shape)
    truth = torch.nn.functional.normalize(torch.randn(shape, generator=rng), dim=-3)
    predicted = 3 * truth + torch.randn(shape, generator=rng)
    unknown = torch.rand((*shape[:-3], 1, *shape[-2:]), generator=rng) < 0.1
    return predicted, truth.masked_fill(unknown, torch.nan)


def test_depth_errors_agree_with_brute_force():
    predicted, truth = some_depth(2, 7, 5)
    errors = depth_errors(predicted, truth, near=0.5, far=4.0)
    for picture in range(2):
        pairs = [
            (p, t) for p, t in zip(predicted[picture].flatten().tolist(), truth[picture].flatten().tolist())
            if not math.isnan(t) and 0.5 <= t <= 4.0
        ]  # fmt: skip
        assert 0 < len(pairs) < 35 and errors.known[picture] == len(pairs)
        for k, bound in enumerate(RATIOS):
            assert errors.within[picture, k] == sum(max(p / t, t / p) < bound for p, t in pairs)
        assert errors.squared[picture] == pytest.approx(sum((p - t) ** 2 for p, t in pairs), rel=1e-5)


def test_depth_rmse_agrees_with_torchmetrics():
    from torchmetrics.functional.regression import mean_squared_error

    predicted, truth = some_depth(40, 30)
    errors, known = depth_errors(predicted, truth), truth.isfinite()
    wanted = mean_squared_error(predicted[known], truth[known], squared=False)
    assert (errors.squared / errors.known).sqrt().item() == pytest.approx(wanted.item(), rel=1e-5)


def test_depth_that_is_not_positive_is_never_right():
    errors = depth_errors(torch.tensor([[-1.0, 0.0, 1.0]]), torch.ones(1, 3))
    assert errors.within.tolist() == [1, 1, 1]


def test_normal_errors_agree_with_brute_force():
    predicted, truth = some_normals(2, 3, 6, 9)
    errors = normal_errors(predicted, truth)
    for picture in range(2):
        found = []
        for p, t in zip(predicted[picture].flatten(1).T.double(), truth[picture].flatten(1).T.double()):
            if not t.isnan().any():
                cosine = float(p @ t / (p.norm() * t.norm()))
                found.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
        assert errors.known[picture] == len(found) < 54
        assert errors.within[picture].tolist() == [sum(angle < bound for angle in found) for bound in ANGLES]
        assert errors.degrees[picture] == pytest.approx(sum(found), rel=1e-5)
        assert errors.squared[picture] == pytest.approx(sum(angle**2 for angle in found), rel=1e-5)


def test_angular_errors_agree_with_torchmetrics():
    from torchmetrics.functional.image import spectral_angle_mapper

    predicted, truth = some_normals(1, 3, 11, 4)
    truth = truth.nan_to_num(0.7)
    wanted = spectral_angle_mapper(predicted, truth, reduction="none")
    torch.testing.assert_close(angular_errors(predicted, truth), wanted.rad2deg(), atol=1e-3, rtol=1e-4)


def test_angles_are_exact_where_the_arc_cosine_is_not():
    x = torch.tensor([1.0, 0.0, 0.0])
    turned = torch.tensor([math.cos(1e-4), math.sin(1e-4), 0.0])
    assert angles(x, turned, 0).item() == pytest.approx(1e-4, rel=1e-3)
    assert angles(x, x, 0) == 0 and angles(x, -2 * x, 0).item() == pytest.approx(math.pi)
    assert angles(0 * x, x, 0).item() == pytest.approx(math.pi / 2)
    same = x.clone().requires_grad_()
    angles(same, x, 0).backward()
    assert same.grad.isfinite().all()


def test_pictures_of_which_nothing_is_known_count_for_nothing():
    predicted, truth = some_depth(3, 4, 4)
    truth[1] = torch.nan
    errors = depth_errors(predicted, truth)
    means = picture_means(errors.squared, errors.known)
    assert means[1].tolist() == [0, 0] and means[:, 1].tolist() == [1, 0, 1]
    np.testing.assert_allclose(means[2, 0], float((predicted[2] - truth[2]).square().nanmean()), rtol=1e-5)
    assert angular_errors(torch.ones(3, 2, 2), torch.full((3, 2, 2), torch.nan)).isnan().all()


def test_answers_that_are_no_numbers_do_not_pass_for_unknown_truth():
    predicted, truth = torch.ones(4, 4), torch.ones(4, 4)
    predicted[0, 0] = torch.nan
    with pytest.raises(UserError, match="1 predicted values are not finite"):
        depth_errors(predicted, truth)
    truth[0, 0] = torch.nan
    assert depth_errors(predicted, truth).known == 15
    with pytest.raises(UserError, match="not finite"):
        angular_errors(torch.full((3, 2, 2), torch.nan), torch.ones(3, 2, 2))
