"""What every upsampler of the shelf promises, whatever it is made of."""

import pytest
import torch

from featsharp.config import SharpenerConfig
from featsharp.sharpener import Sharpener, build
from featsharp.task import SharpenObjective
from featsharp.upsamplers import UPSAMPLERS, Upsampler, build_upsampler
from teachers.errors import UserError
from teachers.seeding import seeded, torch_rng
from tests.featsharp.toys import Pictures, random_teacher

WIDTH, PIXELS = 16, 4  # channels; image pixels along a fine cell's side
FACTORS = (1, 2, 3, 5, 6, 7, 14)
GRIDS = ((3, 3), (2, 5), (1, 4))
SMALL = {"width": 16, "heads": 2, "blocks": 1}
OPTIONS = {"fusion": {"heads": 4}, "resfu": {"width": 8}, "jafar": SMALL, "anyup": SMALL, "naf": SMALL}


def factors(name: str) -> tuple[int, ...]:
    return (1,) if name == "identity" else FACTORS


SHELF = [(name, factor) for name in UPSAMPLERS for factor in factors(name)]


def configuration(name: str, factor: int, **options) -> SharpenerConfig:
    return SharpenerConfig.model_validate(OPTIONS | {"upsampler": name, "factor": factor} | options)


def upsampler(name: str, factor: int, moved: float = 0.05) -> Upsampler:
    """With every parameter moved away from its start, so that gates that begin closed stand open."""
    with seeded("shelf"):
        made = build_upsampler(configuration(name, factor), WIDTH).eval()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.add_(moved * torch.randn(parameter.shape, generator=torch_rng("moved", i)))
    return made


def inputs(grid: tuple[int, int], factor: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Map, map of the tiles, image."""
    fine, rng = [n * factor for n in grid], torch_rng("shelf", *grid, factor)
    low, tiles = (torch.randn(count, WIDTH, *size, generator=rng) for size in (grid, fine))
    return low, tiles, 4 * torch.rand(count, 3, *(n * PIXELS for n in fine), generator=rng) - 2


@pytest.mark.parametrize("name, factor", SHELF)
def test_any_factor_and_grid_gives_the_fine_map_image_by_image(name, factor):
    made = upsampler(name, factor)
    for grid in GRIDS:
        low, tiles, image = inputs(grid, factor)
        with torch.no_grad():
            out, first = made(low, tiles, image), made(low[:1], tiles[:1], image[:1])
        assert out.shape == (2, WIDTH, grid[0] * factor, grid[1] * factor) and out.dtype == torch.float32
        assert out.isfinite().all()
        torch.testing.assert_close(out[:1], first, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(out[0], out[1])


@pytest.mark.parametrize("name, factor", [(name, factor) for name, factor in SHELF if UPSAMPLERS[name].keeps_constants])
def test_a_constant_map_stays_constant_where_that_is_promised(name, factor):
    made = upsampler(name, factor)
    for grid in GRIDS:
        _, _, image = inputs(grid, factor)
        value = torch.linspace(-2, 2, WIDTH)[None, :, None, None]
        low, tiles = (value.expand(2, -1, grid[0] * n, grid[1] * n).contiguous() for n in (1, factor))
        with torch.no_grad():
            torch.testing.assert_close(made(low, tiles, image), tiles, rtol=1e-4, atol=1e-5)


def test_weighted_means_say_so():
    promised = {name for name, kind in UPSAMPLERS.items() if kind.keeps_constants}
    fixed = {"identity", "bilinear", "nearest", "tile", "s2"}
    learned = {"carafe", "sapa", "resfu", "jafar", "anyup", "naf"}
    assert fixed | learned <= promised
    assert not {"featsharp", "featup"} & promised  # they end in learned projections
    assert build_upsampler(configuration("featup", 2, featup={"correction": False}), WIDTH).keeps_constants


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_bf16_follows_fp32(name):
    factor = 1 if name == "identity" else 6
    made = upsampler(name, factor)
    given = inputs((2, 5), factor)
    with torch.no_grad():
        full = made(*given)
        half = made.to(torch.bfloat16)(*(x.to(torch.bfloat16) for x in given))
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    assert (half - full).square().mean() < 0.05 * full.square().mean()


@pytest.mark.parametrize("name, factor", SHELF)
def test_gradients_reach_every_parameter_and_the_maps(name, factor):
    made = upsampler(name, factor).train()
    low, tiles, image = inputs((2, 3), factor)
    low, tiles = low.requires_grad_(), tiles.requires_grad_()
    out = made(low, tiles, image)
    out.backward(torch.randn(out.shape, generator=torch_rng("upstream")))
    without = [key for key, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    assert all(p.grad.isfinite().all() for p in made.parameters())
    maps = [tiles] if name == "tile" else [low, tiles] if made.needs_tiles else [low]
    assert all(x.grad.isfinite().all() and x.grad.abs().sum() > 0 for x in maps)


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_two_steps_of_the_objective_move_every_parameter(name, tmp_path):
    made = objective(name, tmp_path)
    before = {key: p.detach().clone() for key, p in made.model.named_parameters()}
    losses = train(made, 2)
    assert all(torch.isfinite(torch.tensor(losses)))
    after = dict(made.model.named_parameters())
    assert all(p.isfinite().all() for p in after.values())
    assert not [key for key, p in after.items() if torch.equal(before[key], p.detach())]


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_trained_kept_and_loaded_it_sharpens_as_before(name, tmp_path):
    made = objective(name, tmp_path)
    train(made, 1)
    made.artefact(tmp_path / "run" / "export")
    sharp = build(tmp_path / "run", made.encoder)
    image = torch.rand(2, 3, *sharp.native_size, generator=torch_rng("image"))
    expected = Sharpener(made.encoder, made.config, made.model.adapter)
    assert sharp.config.upsampler == name and sharp.identity == expected.identity
    assert torch.equal(sharp(image).spatial, expected(image).spatial)
    assert sharp(image).spatial.shape[-2:] == (2 * sharp.factor, 3 * sharp.factor)


def objective(name: str, tmp_path) -> SharpenObjective:
    made = SharpenObjective(
        random_teacher((16, 24), width=WIDTH),
        configuration(name, 1 if name == "identity" else 2, views={"jitters": 1}, losses={"uncertainty_width": 4}),
        statistics_batches=1,
        cache=tmp_path / "cache",
        say=lambda text: None,
    )
    made.begin_stage(0, lambda: [Pictures(made.image_size, 8, 0)], "toys")
    return made


def train(made: SharpenObjective, steps: int) -> list[float]:
    optimizer = torch.optim.NAdam(made.param_groups(3e-3, 0.0))
    losses = []
    for step in range(steps):
        batch = Pictures(made.image_size, 2, 100 + step)
        total, _ = made.losses(made.model, batch, step, torch_rng("step", step))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


@pytest.mark.parametrize("factor", [2, 7])
def test_identity_enlarges_nothing_and_says_so(factor):
    with pytest.raises(UserError, match="factor 1"):
        build_upsampler(configuration("identity", factor), WIDTH)
