"""The conditional position bias: begins as nothing, sees one teacher pass at a time, may be held to change little."""

import pytest
import torch

from featsharp.bias import ConditionalBias, PositionBias, change_penalty
from featsharp.config import SharpenerConfig
from featsharp.one_backward import one_backward
from featsharp.sharpener import Sharpener, load
from teachers.seeding import seeded, torch_rng
from tests.featsharp.test_task import objective, train
from tests.featsharp.toys import Pictures


def visible(width: int = 12) -> ConditionalBias:
    with seeded("conditional"):
        block = ConditionalBias(width)
    with torch.no_grad():
        block.gamma1.fill_(0.5)
        block.gamma2.fill_(0.5)
    return block


def test_it_begins_as_the_table_alone():
    with seeded("bias"):
        bias = PositionBias(12, (3, 5), conditional=True)
    torch.nn.init.normal_(bias.table, generator=torch_rng("table"))
    x = torch.randn(2, 12, 6, 10, generator=torch_rng("x"))
    torch.testing.assert_close(bias(x, tiles=2), bias.fixed(x, tiles=2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width, heads", [(12, 4), (64, 16), (112, 16), (7, 1)])
def test_any_width_has_heads_that_divide_it(width, heads):
    assert ConditionalBias(width).heads == heads
    assert ConditionalBias(width)(torch.randn(1, width, 2, 3)).shape == (1, width, 2, 3)


def test_tiles_are_changed_each_on_its_own():
    block = visible()
    x = torch.randn(2, 12, 6, 10, generator=torch_rng("x"))
    whole = block(x, tiles=2)
    torch.testing.assert_close(whole[..., 3:, :5], block(x[..., 3:, :5]))
    assert not torch.allclose(whole, block(x), atol=1e-3)


def test_its_change_is_counted_more_where_views_agree():
    change = torch.ones(1, 2, 1, 4)
    differences = torch.tensor([0.0, 0.0, 100.0, 100.0]).view(1, 1, 1, 1, 4).expand(1, 1, 2, 1, 4)
    seen = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 1, 1, 1, 4)
    assert change_penalty(change, differences, seen).item() == pytest.approx(1)  # weights have mean 1
    where = [change_penalty(change * torch.eye(4)[i], differences, seen).item() for i in range(4)]
    assert where[0] > 1.3 * where[2] and where[1] < where[2] == where[3]
    assert change_penalty(0 * change, differences, seen) == 0


def test_it_learns_with_the_sharpener_and_is_kept_in_the_adapter(tmp_path):
    made = objective(tmp_path, conditional_bias=True)
    before = {name: p.detach().clone() for name, p in made.model.adapter.bias.named_parameters()}
    train(made, 3)
    assert not [n for n, p in made.model.adapter.bias.named_parameters() if torch.equal(before[n], p.detach())]
    made.artefact(tmp_path / "run")
    x = torch.rand(1, 3, 96, 128, generator=torch_rng("image"))
    live = Sharpener(made.encoder, made.config, made.model.adapter)
    assert torch.equal(load(tmp_path / "run", made.encoder)(x).spatial, live(x).spatial)


def test_the_penalty_reaches_the_block_and_holds_it_back(tmp_path, monkeypatch):
    """Its gradient, by itself, shrinks the change."""
    made = objective(tmp_path, conditional_bias=True, losses={"conditional": 1.0, "uncertainty": False})
    block = made.model.adapter.bias.block
    with torch.no_grad():
        block.gamma1.fill_(0.3)
        block.gamma2.fill_(0.3)
    sight = made.see(Pictures(made.image_size, 2, 3).float(made.image_size), torch_rng("views"))
    (term,) = made.model._regularisers(sight)
    losses = []
    optimizer = torch.optim.SGD(block.parameters(), 0.5)
    for _ in range(40):
        sharp = torch.zeros(1, requires_grad=True)
        loss = one_backward([sharp], list(block.parameters()), [lambda sharp: term(sharp) + 0 * sharp.sum()])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0 < losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "settings, text",
    [({"bias": False, "conditional_bias": True}, "on top of bias"), ({"losses": {"conditional": 1}}, "which is off")],
)
def test_settings_that_contradict_each_other_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        SharpenerConfig.model_validate(settings)
