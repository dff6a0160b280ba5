"""PHI-S: exact unit variance for any width, isotropic scale, statistics that merge and are kept."""

import subprocess
import sys

import pytest
import torch

from teachers import phi_s
from teachers.errors import UserError
from teachers.phi_s import Moments, PhiS, cached_moments, fit
from teachers.rotations import equal_diagonal_rotation, hadamard
from teachers.seeding import torch_rng

WIDTHS = [92, 116, 390, 768, 1152, 1280]


def features(channels: int, n: int, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    """1×C×n×1 fp64 features with a steep spectrum and a mean; of rank `rank` if given."""
    rng = torch_rng("features", channels, seed)
    rank = rank or channels
    scales = torch.logspace(1, -2, rank, dtype=torch.float64)
    x = torch.randn(n, rank, generator=rng, dtype=torch.float64) * scales
    x = x @ torch.randn(rank, channels, generator=rng, dtype=torch.float64)
    return (x + 3 * torch.randn(channels, generator=rng, dtype=torch.float64)).T.reshape(1, channels, n, 1)


def seen(*maps: torch.Tensor) -> Moments:
    moments = Moments(maps[0].shape[1])
    for one in maps:
        moments.update(one)
    return moments


# What PHI-S gives for real teachers (arXiv 2410.01680): DFN CLIP's features are small, SAM's are large.
ALPHAS = {"dfn_clip": 41.41, "siglip": 0.65, "dino_v2": 0.76, "sam": 0.21}


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
def test_alpha_is_one_over_the_root_of_the_mean_variance_from_clips_scale_to_sams(alpha):
    x = features(48, 400)
    x = x / x.var(2).mean().sqrt() / alpha
    made = fit(seen(x))
    assert made.alpha.item() == pytest.approx(alpha, rel=1e-5)
    assert made.double()(x).var(2).numpy() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("channels", WIDTHS)
def test_every_channel_has_unit_variance_and_zero_mean(channels):
    x = features(channels, channels + 50, rank=min(channels, 200))  # wide teachers: rank-deficient ones
    y = fit(seen(x)).double()(x)
    cells = y.flatten(2)[0]
    torch.testing.assert_close(cells.var(1), torch.ones(channels, dtype=torch.float64), rtol=2e-5, atol=0)
    assert cells.mean(1).abs().max() < 1e-4


@pytest.mark.parametrize("channels", [92, 390, 768])
def test_inverse_undoes_forward_along_any_dim(channels):
    normaliser = fit(seen(features(channels, channels + 50)))
    x = features(channels, 12, seed=1).float().reshape(1, channels, 3, 4)
    torch.testing.assert_close(normaliser.inverse(normaliser(x)), x, rtol=0, atol=2e-5 * x.abs().max().item())
    last = x.movedim(1, -1)
    torch.testing.assert_close(normaliser(last, dim=-1), normaliser(x).movedim(1, -1))
    torch.testing.assert_close(normaliser.inverse(last, dim=-1), normaliser.inverse(x).movedim(1, -1))


@pytest.mark.parametrize("channels", [96, 116])
def test_errors_keep_their_relative_size(channels):
    x = features(channels, 200)
    normaliser = fit(seen(x)).double()
    truth, guess = x, x + features(channels, 200, seed=2) / 10
    raw = (truth - guess).square().mean()
    normalised = (normaliser(truth) - normaliser(guess)).square().mean()
    torch.testing.assert_close(raw, normalised / normaliser.alpha**2, rtol=1e-5, atol=0)


def test_the_best_constant_scores_one_and_variance_is_its_raw_error():
    x = features(92, 2000)
    moments = seen(x)
    normaliser = fit(moments)
    assert normaliser(x).square().mean().item() == pytest.approx(1, abs=1e-3)
    assert moments.variance == pytest.approx(1 / normaliser.alpha.item() ** 2, rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 12, 20, 28, 36, 44, 384, 640, 768, 1024, 1152, 1280, 1408, 1536])
def test_hadamard_matrices_are_orthogonal_with_entries_of_one_size(n):
    h = hadamard(n)
    torch.testing.assert_close(h @ h.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(h.abs(), torch.full_like(h, n**-0.5), rtol=1e-12, atol=0)


def test_widths_without_a_construction_say_so():
    assert all(hadamard(n) is None for n in (3, 6, 92, 116, 390, 1023))


@pytest.mark.parametrize("n", [2, 3, 5, 92, 390])
@pytest.mark.parametrize("spectrum", ["steep", "deficient", "one", "flat"])
def test_equal_diagonal_rotation_is_exact(n, spectrum):
    eigenvalues = {
        "steep": torch.logspace(8, -8, n, dtype=torch.float64),
        "deficient": (torch.arange(n) < (n + 1) // 2).double(),
        "one": (torch.arange(n) == 1).double(),
        "flat": torch.ones(n, dtype=torch.float64),
    }[spectrum]
    rotation = equal_diagonal_rotation(eigenvalues)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    diagonal = ((rotation * eigenvalues) @ rotation.T).diagonal()
    torch.testing.assert_close(diagonal, torch.full_like(diagonal, eigenvalues.mean().item()), rtol=1e-12, atol=0)


def test_merging_parts_equals_one_pass():
    parts = [features(20, n, seed=n) * n for n in (7, 1, 300)]
    whole = seen(torch.cat(parts, dim=2))
    left, right = seen(parts[0]), seen(*parts[1:])
    left.merge(right)
    left.merge(Moments(20))
    for moments in (seen(*parts), left):
        assert moments.n == whole.n
        torch.testing.assert_close(moments.mean, whole.mean)
        torch.testing.assert_close(moments.covariance, whole.covariance, rtol=1e-10, atol=1e-8)
    cells = torch.cat(parts, dim=2)[0, :, :, 0]
    torch.testing.assert_close(whole.covariance, torch.cov(cells), rtol=1e-10, atol=1e-8)


TWO_RANKS = """
import os, sys, torch
import torch.distributed as dist
from teachers.phi_s import Moments
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
parts = [torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(seed)) + 9 for seed in range(3)]
moments = Moments(5)
for part in parts[:1] if rank == 0 else parts[1:]:
    moments.update(part)
moments.all_reduce()
whole = Moments(5)
for part in parts:
    whole.update(part)
assert moments.n == whole.n
torch.testing.assert_close(moments.mean, whole.mean)
torch.testing.assert_close(moments.m2, whole.m2)
dist.barrier()
dist.destroy_process_group()
sys.exit(os.wait()[1] if rank == 0 else 0)
"""


def test_all_reduce_over_two_ranks_equals_one_pass(tmp_path):
    # a fresh process that forks: two ranks for the price of one import of torch
    done = subprocess.run([sys.executable, "-c", TWO_RANKS, str(tmp_path / "store")], capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("bias", [True, False])
def test_fused_linear_answers_in_the_teachers_space(bias):
    x = features(92, 200)
    normaliser = fit(seen(x))
    head = torch.nn.Linear(16, 92, bias=bias)
    weight, new_bias = normaliser.fuse(head)
    tokens = torch.randn(2, 5, 16, generator=torch_rng("tokens"))
    expected = normaliser.inverse(head(tokens), dim=-1)
    torch.testing.assert_close(tokens @ weight.T + new_bias, expected, rtol=1e-4, atol=1e-4)


def test_fused_upsampling_head_is_folded_a_subcell_at_a_time():
    normaliser = fit(seen(features(12, 200)))
    head = torch.nn.Linear(8, 4 * 12)
    weight, bias = normaliser.fuse(head)
    tokens = torch.randn(3, 8, generator=torch_rng("tokens"))
    expected = normaliser.inverse(head(tokens).view(3, 4, 12), dim=-1).flatten(1)
    torch.testing.assert_close(tokens @ weight.T + bias, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="12 channels"):
        normaliser.fuse(torch.nn.Linear(8, 13))


def test_fit_is_deterministic():
    x = features(92, 300)
    assert torch.equal(fit(seen(x)).rotation, fit(seen(x)).rotation)


def test_signs_of_eigenvectors_are_canonical():
    x = features(96, 300)
    a, b = fit(seen(x)), fit(seen(x.flip(2)))  # another order of the same cells: the same matrix up to rounding
    torch.testing.assert_close(a.rotation, b.rotation, rtol=0, atol=1e-4)
    eigenvectors = (hadamard(96).T @ a.rotation.double()).T  # Q = H·Vᵀ
    assert eigenvectors.gather(0, eigenvectors.abs().argmax(0, keepdim=True)).min() > 0


def test_bf16_input_and_autocast_lose_nothing_beyond_the_input():
    normaliser = fit(seen(features(92, 300)))
    x = features(92, 12, seed=3).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = normaliser(x)
        back = normaliser.inverse(y)
    assert y.dtype == back.dtype == torch.float32
    torch.testing.assert_close(back, x.float(), rtol=0, atol=2e-5 * x.abs().max().item())


def test_an_unfitted_normaliser_is_the_identity():
    x = torch.randn(2, 6, 3, 3, generator=torch_rng("x"))
    torch.testing.assert_close(PhiS(6)(x), x)
    torch.testing.assert_close(PhiS(6).inverse(x), x)


def test_too_few_samples_nan_and_constant_features_are_explained():
    with pytest.raises(UserError, match="more feature vectors than channels: 92 were seen"):
        fit(seen(features(92, 92)))
    with pytest.raises(UserError, match="NaN or Inf"):
        seen(torch.full((1, 4, 2, 2), float("nan")))
    with pytest.raises(UserError, match="constant"):
        fit(seen(torch.ones(1, 4, 3, 3)))


def test_statistics_are_kept_by_encoder_data_and_number(tmp_path):
    x = features(12, 40)
    calls = []

    def build():
        calls.append(1)
        return seen(x)

    first = cached_moments(tmp_path, "encoder", "shards", 8, build)
    again = cached_moments(tmp_path, "encoder", "shards", 8, build)
    assert len(calls) == 1 and again.n == first.n
    assert torch.equal(again.mean, first.mean) and torch.equal(again.m2, first.m2)
    for key in (("other", "shards", 8), ("encoder", "others", 8), ("encoder", "shards", 9)):
        cached_moments(tmp_path, *key, build)
    assert len(calls) == 4
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]


def test_a_damaged_entry_is_made_again_with_a_message(tmp_path):
    x, said = features(12, 40), []
    cached_moments(tmp_path, "encoder", "shards", 8, lambda: seen(x))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    again = cached_moments(tmp_path, "encoder", "shards", 8, lambda: seen(x), say=said.append)
    assert again.n == 40 and "damaged" in said[0] and str(path) in said[0]
    assert cached_moments(tmp_path, "encoder", "shards", 8, None).n == 40


def test_statistics_that_cannot_be_kept_do_not_stop_the_run(tmp_path, monkeypatch):
    said = []

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(phi_s.os, "replace", full)
    moments = cached_moments(tmp_path, "encoder", "shards", 8, lambda: seen(features(12, 40)), say=said.append)
    assert moments.n == 40 and "No space left" in said[0] and not list(tmp_path.iterdir())
