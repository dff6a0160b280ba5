"""Optimisers: who decays, what a frozen trunk keeps, LAMB by its formula, and ZeRO 0 to 3 against plain torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toy_engine import PLAN, Toy, toy_engine, toy_recipe, train_engine, train_plain, weights_of

from radio_distill.checkpoint import whole_parameters
from radio_distill.ema import Ema
from radio_distill.engine import deepspeed_mistakes, join_world, leave_world
from radio_distill.optimisers import build_optimizer, freeze, param_groups

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        yield join_world(threads=1)
        leave_world()


class Named(nn.Module):
    """One parameter of every kind that a student has."""

    def __init__(self):
        super().__init__()
        self.patch_generator = nn.ParameterDict({"tokens": torch.ones(2, 4), "pos_embed": torch.ones(1, 9, 4)})
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])
        self.scale = nn.ParameterDict({"gamma": torch.ones(4), "s": torch.ones(3, 1, 1)})
        self.heads = nn.ModuleDict({"clip": nn.Linear(4, 2)})
        self.balance = nn.Linear(4, 2)
        self.still = nn.Parameter(torch.ones(3, 3), requires_grad=False)


def test_matrices_decay_and_positions_tokens_norms_biases_and_layer_scales_do_not():
    model = Named()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        (group["part"], group["weight_decay"]): {names[id(parameter)] for parameter in group["params"]}
        for group in param_groups(model, lr=0.1, weight_decay=0.5)
    }
    assert found == {
        ("trunk", 0.5): {"blocks.0.weight", "scale.s"},  # a spectral norm is a matrix so that it decays
        ("trunk", 0.0): {"patch_generator.tokens", "patch_generator.pos_embed", "blocks.0.bias", "blocks.1.weight",
                         "blocks.1.bias", "scale.gamma"},
        ("heads", 0.5): {"heads.clip.weight", "balance.weight"},
        ("heads", 0.0): {"heads.clip.bias", "balance.bias"},
    }  # fmt: skip
    assert {(group["lr"], group["lr_scale"]) for group in param_groups(model, 0.1, 0.5)} == {(0.1, 1.0)}


def test_lamb_scales_every_tensor_by_its_own_norm_and_decays_inside_the_step():
    """You et al. 2020, algorithm 2, written out; the engine clips, so the optimiser must not."""
    config = toy_recipe("lamb").optim
    big, small = nn.Parameter(10 * torch.ones(2, 3)), nn.Parameter(0.1 * torch.ones(4, 2))
    made = build_optimizer(config, [{"params": [big, small], "lr": 0.5, "weight_decay": 0.1, "lr_scale": 1.0}], CPU)
    wanted = [big.detach().clone(), small.detach().clone()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in wanted]
    for step in (1, 2, 3):
        for p, weight, (m, v) in zip((big, small), wanted, moments, strict=True):
            torch.manual_seed(step)
            p.grad = 100 * torch.randn(p.shape)
            m.lerp_(p.grad, 1 - config.betas[0])
            v.lerp_(p.grad.square(), 1 - config.betas[1])
            adam = m / (1 - config.betas[0] ** step) / ((v / (1 - config.betas[1] ** step)).sqrt() + config.eps)
            update = adam + 0.1 * weight
            weight -= 0.5 * weight.norm() / update.norm() * update
        made.step()
        torch.testing.assert_close([big.data, small.data], wanted, rtol=1e-5, atol=1e-7)


def test_lamb_is_refused_where_zero_splits_tensors():
    assert not list(deepspeed_mistakes(toy_recipe("lamb")))
    for stage in (1, 2, 3):
        [mistake] = deepspeed_mistakes(toy_recipe("lamb", stage))
        assert "zero_optimization.stage=0" in mistake.todo
        assert not list(deepspeed_mistakes(toy_recipe("adamw", stage)))


@pytest.mark.parametrize("optimiser", ["adamw", "nadam", "lamb"])
def test_a_frozen_part_keeps_weights_moments_and_counts_of_steps(optimiser):
    model = Toy()
    made = build_optimizer(toy_recipe(optimiser).optim, param_groups(model, 0.1, 0.5), CPU)
    whole = {group["part"] for group in made.param_groups}
    assert whole == {"trunk", "heads"}

    def step() -> dict:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = copy.deepcopy((model.state_dict(), made.state_dict()))
        made.step()
        assert [group["part"] for group in made.param_groups] == [g["part"] for g in before[1]["param_groups"]]
        return before

    step()
    freeze(made.param_groups, "trunk")
    weights, state = step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]) == name.startswith("trunk"), name
    for number, group in enumerate(made.state_dict()["param_groups"]):
        frozen = group["part"] == "trunk"
        for index in group["params"]:
            for key, value in made.state_dict()["state"][index].items():
                assert torch.equal(value, state["state"][index][key]) == frozen, (number, key)
    freeze(made.param_groups, None)
    weights, _ = step()
    assert not torch.equal(model.state_dict()["trunk.0.weight"], weights["trunk.0.weight"])


# Under DeepSpeed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimiser", "stage"), [("adamw", 0), ("adamw", 1), ("adamw", 2), ("adamw", 3), ("nadam", 3), ("lamb", 0)]
)
def test_steps_of_unequal_micro_batches_and_heads_and_a_frozen_trunk_equal_plain_torch(world, optimiser, stage):
    engine = toy_engine(optimiser, stage, world)
    ema = Ema(train_plain(optimiser, 0), 0.5)
    ema.model = engine.module
    average = Toy().state_dict()
    for step, (frozen, _) in enumerate(PLAN):
        before = weights_of(engine)
        train_engine(engine, world, [step])
        now, wanted = weights_of(engine), train_plain(optimiser, step + 1).state_dict()
        torch.testing.assert_close(now, dict(wanted), rtol=0, atol=1e-6)
        trunk = [name for name in now if name.startswith("trunk")]
        assert all(torch.equal(now[name], before[name]) for name in trunk) == frozen
        with whole_parameters(engine):
            ema.update()
        average = {name: (value + wanted[name]) / 2 for name, value in average.items()}
    torch.testing.assert_close(dict(ema.module.state_dict()), average, rtol=0, atol=1e-6)


def test_an_average_is_a_model_of_its_own_that_goes_on_after_a_checkpoint():
    model = Toy()
    ema, buffered = Ema(model, 0.9), nn.BatchNorm1d(3)
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())
    start = copy.deepcopy(model.state_dict())
    for value in model.parameters():
        value.data += 1
    ema.update()
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, start[name] + 0.1)
    again = Ema(Toy(), 0.9)
    again.model = model
    again.load_state({key: value.clone() for key, value in ema.state().items()})
    ema.update()
    again.update()
    assert again.updates == ema.updates == 2
    assert all(torch.equal(value, again.state()[key]) for key, value in ema.state().items())

    average = Ema(buffered, 0.5)
    buffered(torch.randn(4, 3) + 5)
    average.update()
    assert torch.equal(average.module.running_mean, buffered.running_mean)  # a statistic: copied
    half = nn.Linear(2, 2).to(torch.bfloat16)
    assert {p.dtype for p in Ema(half, 0.5).module.parameters()} == {torch.float32}
    with pytest.raises(ValueError):
        Ema(model, 1.0)
