"""A toy of a trunk and two heads, trained by an engine and by plain torch on the same numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from radio_distill.engine import World, backward, optimizer_step, start_engine
from radio_distill.optimisers import build_optimizer, freeze, param_groups
from radio_distill.recipe import Recipe

# Of every step: whether the trunk is frozen, and the heads that each micro-batch trains.
PLAN = (
    (True, ("a", "ab", "b")),
    (False, ("ab",)),
    (False, ("b", "a")),
    (True, ("b",)),
    (False, ("a", "ab", "b", "ab")),
)
DECAY, RATE = 0.1, 1e-2


class Toy(nn.Module):
    """Six numbers → three numbers a head; widths that no number of ranks divides."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Linear(6, 11), nn.GELU(), nn.LayerNorm(11), nn.Linear(11, 7))
            self.heads = nn.ModuleDict({name: nn.Linear(7, 3) for name in "ab"})

    def forward(self, x: Tensor, heads: Iterable[str], freeze_trunk: bool) -> dict[str, Tensor]:
        tokens = self.trunk(x)
        return {name: self.heads[name](tokens.detach() if freeze_trunk else tokens) for name in heads}


def toy_recipe(optimiser: str, stage: int = 0) -> Recipe:
    """Two teachers and two streams that nothing reads; clipping bites."""
    teacher, stream = {"encoder": "random"}, {"shards": "none", "size": 8, "batch": 2}
    return Recipe.model_validate(
        {
            "task": "distill",
            "run": "none",
            "teachers": {"a": teacher, "b": teacher},
            "streams": {"low": stream, "high": stream},
            "student": {"arch": "vit_nano", "patch": 8, "cpe_max": 32},
            "stages": [{"steps": len(PLAN)}],
            "optim": {"name": optimiser, "clip": 0.5, "weight_decay": DECAY, "lr": RATE},
            "deepspeed": {"zero_optimization": {"stage": stage}},
        }
    )


def toy_loss(model: nn.Module, step: int, number: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """The loss of a micro-batch of eight, or of a rank's share of it."""
    frozen, micro_batches = PLAN[step]
    random = torch.Generator().manual_seed(100 * step + number)
    x, y = torch.randn(8, 6, generator=random), torch.randn(8, 3, generator=random)
    x, y = x.chunk(ranks)[rank], y.chunk(ranks)[rank]
    said = model(x, micro_batches[number], frozen)
    return sum((one - y).square().mean() for one in said.values()) / len(micro_batches)


def train_plain(optimiser: str, steps: int = len(PLAN)) -> Toy:
    """What should come of it."""
    model, config = Toy(), toy_recipe(optimiser).optim
    made = build_optimizer(config, param_groups(model, RATE, DECAY), torch.device("cpu"))
    for step in range(steps):
        frozen, micro_batches = PLAN[step]
        freeze(made.param_groups, "trunk" if frozen else None)
        for parameter in model.parameters():  # as DeepSpeed does: a head that nobody asked decays
            parameter.grad = torch.zeros_like(parameter)
        for number in range(len(micro_batches)):
            toy_loss(model, step, number).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        made.step()
    return model


def toy_engine(optimiser: str, stage: int, world: World) -> object:
    model = Toy()
    return start_engine(toy_recipe(optimiser, stage), model, param_groups(model, RATE, DECAY), "fp32", world)


def train_engine(engine: object, world: World, steps: Iterable[int]) -> None:
    """Take these steps of the plan."""
    for step in steps:
        frozen, micro_batches = PLAN[step]
        freeze(engine.optimizer.param_groups, "trunk" if frozen else None)
        for number in range(len(micro_batches)):
            loss = toy_loss(engine, step, number, world.rank, world.size)
            backward(engine, loss, last=number == len(micro_batches) - 1)
        optimizer_step(engine)


def weights_of(engine: object) -> dict[str, Tensor]:
    """All of them, whole. On all ranks."""
    from radio_distill.checkpoint import whole_parameters

    with whole_parameters(engine):
        return {name: value.detach().clone() for name, value in engine.module.state_dict().items()}
