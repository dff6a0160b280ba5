"""Every loss against its formula in numpy, an image and a cell at a time."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from radio_distill.losses import (
    FEATURE_ERRORS,
    ErrorShare,
    angle,
    cosine_distance,
    dispersion,
    image_means,
    meet,
    mesa_error,
    relational_error,
    resize_map,
    squared_angle,
)
from teachers.seeding import torch_rng


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_rng("noise", seed))


# Feature maps ---------------------------------------------------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def smooth_l1(a: np.ndarray, b: np.ndarray) -> float:
    d = np.abs(a - b)
    return float(np.where(d < 1, d * d / 2, d - 0.5).mean())


ORACLES = {
    "mse": lambda a, b: float(((a - b) ** 2).mean()),
    "smooth_l1": smooth_l1,
    "cosine": lambda a, b: 1 - cosine(a, b),
    "hybrid": lambda a, b: 0.9 * (1 - cosine(a, b)) + 0.1 * smooth_l1(a, b),
}


@pytest.mark.parametrize("kind", FEATURE_ERRORS)
def test_a_feature_error_is_its_formula_cell_by_cell_and_fp32(kind):
    a, b = noise(2, 3, 4, 5), 2 * noise(2, 3, 4, 5, seed=1)
    found = FEATURE_ERRORS[kind](a, b)
    wanted = [
        [[ORACLES[kind](x[:, i, j], y[:, i, j]) for j in range(5)] for i in range(4)]
        for x, y in zip(a.numpy(), b.numpy())
    ]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    assert FEATURE_ERRORS[kind](a.bfloat16(), b.bfloat16()).dtype == torch.float32
    assert FEATURE_ERRORS[kind](b, b).abs().max() < 1e-6


def test_cells_that_do_not_count_have_no_value_and_no_gradient():
    cells = noise(3, 4, 5).requires_grad_()
    with torch.no_grad():
        cells[0, 0, 0] = math.inf  # what stands in the padding may be anything
    valid = noise(3, 4, 5, seed=1) > 0
    valid[0, 0, 0], valid[2] = False, False
    means = image_means(cells, valid)
    means.sum().backward()
    for mean, image, kept, gradient in zip(means, cells.detach(), valid, cells.grad):
        assert mean.item() == pytest.approx(image[kept].mean().item() if kept.any() else 0, rel=1e-5, abs=1e-7)
        torch.testing.assert_close(gradient, kept / max(int(kept.sum()), 1))
    assert torch.equal(image_means(cells.detach()[1:]), cells.detach()[1:].flatten(1).mean(1))


def test_mesa_compares_layer_normalised_cells_and_leaves_the_average_alone():
    a, b = noise(2, 6, 3, 4).requires_grad_(), (5 * noise(2, 6, 3, 4, seed=1) + 3).requires_grad_()
    found = mesa_error(a, b)
    x, y = (t.detach().double().numpy() for t in (a, b))
    x, y = ((t - t.mean(1, keepdims=True)) / np.sqrt(t.var(1, keepdims=True) + 1e-5) for t in (x, y))
    np.testing.assert_allclose(found.detach().numpy(), ((x - y) ** 2).mean(1), atol=1e-4)
    found.sum().backward()
    assert b.grad is None and a.grad.abs().sum() > 0
    assert mesa_error(a, 3 * a + 7).max() < 1e-4  # scale and mean of a cell are not compared


# Summaries ------------------------------------------------------------------------------------------------------------


def test_summary_errors_are_their_formulas():
    a, b = noise(6, 7), noise(6, 7, seed=1)
    cosines = np.array([cosine(x, y) for x, y in zip(a.numpy(), b.numpy())])
    np.testing.assert_allclose(cosine_distance(a, b).numpy(), 1 - cosines, atol=1e-6)
    np.testing.assert_allclose(angle(a, b).numpy(), np.arccos(cosines), atol=1e-5)
    np.testing.assert_allclose(squared_angle(a, b, 0.5).numpy(), np.arccos(cosines) ** 2 / 0.5, atol=1e-4)
    assert cosine_distance(a, 3 * a).abs().max() < 1e-6
    assert angle(a.bfloat16(), b).dtype == torch.float32


def test_the_angle_has_a_finite_gradient_where_arccos_has_none():
    for target, wanted in ((1.0, 0.0), (-1.0, math.pi)):
        a = torch.tensor([[0.6, 0.8]], requires_grad=True)
        found = angle(a, target * a.detach())
        assert found.item() == pytest.approx(wanted, abs=1e-5)
        (found.square()).sum().backward()
        assert a.grad.isfinite().all()


def test_the_angles_gradient_is_that_of_arccos_elsewhere():
    a, b = noise(5, 4).double().requires_grad_(), noise(5, 4, seed=1).double()
    torch.arccos(torch.nn.functional.cosine_similarity(a, b)).square().sum().backward()
    wanted, a.grad = a.grad, None
    squared_angle(a, b).sum().backward()
    torch.testing.assert_close(a.grad, wanted, rtol=1e-4, atol=1e-5)


def test_dispersion_is_the_mean_squared_angle_to_the_mean_direction():
    summaries = noise(200, 3) + torch.tensor([2.0, 0.0, 0.0])
    z = summaries.double().numpy()
    mean = z.mean(0)
    wanted = np.mean([np.arccos(cosine(x, mean)) ** 2 for x in z])
    assert dispersion(summaries).item() == pytest.approx(wanted, rel=1e-4)
    assert dispersion(noise(4000, 2)).item() == pytest.approx(math.pi**2 / 3, rel=0.05)  # all round the circle


def test_ranks_with_a_part_of_the_summaries_each_find_the_dispersion_of_all():
    summaries = noise(200, 3) + torch.tensor([2.0, 0.0, 0.0])
    barrier, said = threading.Barrier(2), [None, None]

    def rank(number: int) -> float:
        def total(mine: torch.Tensor) -> torch.Tensor:
            said[number] = mine
            barrier.wait()
            both = said[0] + said[1]
            barrier.wait()
            return both

        return dispersion((summaries[:80], summaries[80:])[number], total).item()

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(rank, range(2))) == pytest.approx([dispersion(summaries).item()] * 2, rel=1e-5)


def test_relations_are_those_of_pairs_and_blind_to_rotation_and_scale():
    a, b = noise(5, 4), noise(5, 6, seed=1)
    unit = [t / t.norm(dim=1, keepdim=True) for t in (a, b)]
    distances = [torch.cdist(t, t).double().numpy() for t in unit]
    distances = [d / d[~np.eye(5, dtype=bool)].mean() for d in distances]
    wanted = [
        np.mean([smooth_l1(distances[0][i, j], distances[1][i, j]) for j in range(5) if j != i]) for i in range(5)
    ]
    np.testing.assert_allclose(relational_error(a, b).numpy(), wanted, atol=1e-4)
    turn = torch.linalg.qr(noise(4, 4, seed=2))[0]
    assert relational_error(a, 7 * a @ turn).max() < 1e-5
    assert relational_error(a[:2], b[:2]).tolist() == [0, 0]
    same = torch.ones(4, 3, requires_grad=True)  # a collapsed student
    relational_error(same, noise(4, 3)).sum().backward()
    assert same.grad.isfinite().all()


# Grids ----------------------------------------------------------------------------------------------------------------


def enlarged(values: np.ndarray, size: int) -> np.ndarray:
    """One axis at a finer grid, bilinear, pixel centres on pixel centres."""
    out = []
    for i in range(size):
        at = min(max((i + 0.5) * len(values) / size - 0.5, 0), len(values) - 1)
        low = min(int(at), len(values) - 2)
        out.append((1 - at + low) * values[low] + (at - low) * values[low + 1])
    return np.array(out)


def shrunk(values: np.ndarray, size: int) -> np.ndarray:
    """One axis at a coarser grid: a triangle as wide as two coarse cells around each coarse centre."""
    scale, out = len(values) / size, []
    for i in range(size):
        distance = np.abs(np.arange(len(values)) + 0.5 - (i + 0.5) * scale) / scale
        weights = np.clip(1 - distance, 0, None)
        out.append(np.tensordot(weights / weights.sum(), values, axes=1))
    return np.array(out)


@pytest.mark.parametrize(("policy", "grid"), [("student", (3, 4)), ("teacher", (6, 10)), ("max", (6, 10))])
def test_maps_meet_on_the_grid_of_the_policy(policy, grid):
    student, teacher = noise(1, 2, 3, 4), noise(1, 2, 6, 10, seed=1)
    predicted, target = meet(student, teacher, policy)
    assert predicted.shape[-2:] == target.shape[-2:] == grid
    kept, moved, resize = (predicted, target, shrunk) if policy == "student" else (target, predicted, enlarged)
    assert kept is (student if policy == "student" else teacher)
    source = (teacher if policy == "student" else student)[0].permute(1, 2, 0).double().numpy()
    rows = resize(source, grid[0])
    wanted = resize(rows.swapaxes(0, 1), grid[1]).swapaxes(0, 1)
    np.testing.assert_allclose(moved[0].permute(1, 2, 0).numpy(), wanted, atol=1e-5)
    assert meet(teacher, student, "max")[0] is teacher and meet(teacher, student, "student")[0] is teacher


def test_a_map_at_its_own_grid_is_not_touched():
    features = noise(1, 2, 3, 4)
    assert resize_map(features, (3, 4)) is features
    assert resize_map(torch.ones(1, 2, 3, 4), (5, 2)).allclose(torch.ones(1, 2, 5, 2))


def test_the_error_share_is_what_is_left_of_the_variance():
    pairs = [(noise(2, 3, h, w, seed=h), 3 + 2 * noise(2, 3, h, w, seed=9 + h)) for h, w in ((4, 5), (2, 2), (1, 7))]
    share = ErrorShare()
    for pair in pairs:
        share.update(*pair)
    x, t = (np.concatenate([p[i].permute(0, 2, 3, 1).reshape(-1, 3).double().numpy() for p in pairs]) for i in (0, 1))
    assert share.value() == pytest.approx(((x - t) ** 2).sum() / ((t - t.mean(0)) ** 2).sum(), rel=1e-9)

    perfect, constant = ErrorShare(), ErrorShare()
    for _, target in pairs:
        perfect.update(target, target)
        constant.update(torch.tensor(t.mean(0)).view(1, 3, 1, 1).expand_as(target), target)
    assert perfect.value() == 0 and constant.value() == pytest.approx(1, rel=1e-9)


def test_the_error_share_counts_valid_cells_only():
    a, b, valid = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1), noise(2, 4, 5, seed=2) > 0
    masked, plain = ErrorShare(), ErrorShare()
    masked.update(a, b, valid)
    kept = [t.permute(0, 2, 3, 1)[valid].T[None, :, :, None] for t in (a, b)]
    plain.update(*kept)
    assert masked.value() == pytest.approx(plain.value(), rel=1e-9)
