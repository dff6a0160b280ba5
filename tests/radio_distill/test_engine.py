"""DeepSpeed as the engine: what its section may say, ZeRO and precision against plain training, ranks that agree."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from processes import Ranks
from safetensors.torch import load_file
from trial import Trial

from radio_distill.engine import (
    LINEAR,
    RankError,
    World,
    choose_precision,
    deepspeed_mistakes,
    is_lost_peer,
    join_world,
    leave_world,
)
from radio_distill.optimisers import build_optimizer
from radio_distill.recipe import Recipe
from teachers.errors import UserError


@pytest.fixture
def recipe(tiny_recipe):
    return lambda **changes: Recipe.model_validate(tiny_recipe("run") | changes)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"train_batch_size": 8}, "deepspeed.train_batch_size is set by the recipe itself"),
        ({"optimizer": {"type": "Adam"}}, "remove it and use optim"),
        ({"gradient_clipping": 1.0}, "remove it and use optim.clip"),
        ({"torch_autocast": {"enabled": True}}, "remove it and use precision"),
        ({"zero_optimisation": {"stage": 1}}, "unknown key; did you mean 'zero_optimization'?"),
        ({"zero_optimization": 1}, "deepspeed.zero_optimization is 1"),
        ({"zero_optimization": {"stage": 4}}, "deepspeed.zero_optimization.stage is 4"),
        ({"bf16": {"enabled": True}}, "remove it and use precision=bf16"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}, "teachers' features overflow it"),
    ],
)
def test_a_section_that_repeats_the_recipe_or_cannot_train_is_refused(recipe, section, text):
    [mistake] = deepspeed_mistakes(recipe(deepspeed=section))
    assert text in str(mistake)


def test_all_that_is_wrong_with_a_section_is_found_at_once(recipe):
    section = {"train_batch_size": 8, "zero_optimisation": {}, "fp16": {"enabled": True}}
    assert len(list(deepspeed_mistakes(recipe(deepspeed=section)))) == 3
    assert not list(deepspeed_mistakes(recipe(deepspeed={"zero_optimization": {"stage": 2}})))


def test_what_deepspeed_itself_refuses_is_told_in_its_words(trial, capsys):
    assert trial.train("deepspeed.zero_optimization={stage: 1, reduce_buckt_size: 3}") == 2
    said = capsys.readouterr().err
    assert "DeepSpeed refuses the recipe's deepspeed section" in said and "reduce_buckt_size" in said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def plain(tiny_recipe, tmp_path_factory) -> list[dict[str, float]]:
    """The steps of the tiny recipe at stage 0, which is plain data-parallel training."""
    return _steps(tiny_recipe, tmp_path_factory.mktemp("plain"))


def _steps(tiny_recipe, folder, *overrides) -> list[dict[str, float]]:
    one = Trial(tiny_recipe(folder / "run"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("radio_distill.curves.draw", lambda run: None)
        assert one.train("heldout=null", "output.save=0", "stages.0.steps=5", *overrides) == 0
    return [{key: value for key, value in record.items() if key != "kind"} for record in one.journal()]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_trains_as_plain_data_parallel_does_and_tells_the_same_norms(plain, tiny_recipe, tmp_path, stage):
    steps = _steps(tiny_recipe, tmp_path, f"deepspeed.zero_optimization.stage={stage}")
    for one, wanted in zip(steps, plain, strict=True):
        assert one == pytest.approx(wanted, rel=1e-4)
    assert torch.nn.functional.linear is LINEAR  # ZeRO 3's own rounds otherwise, and would stay


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_heads_that_only_some_streams_ask_and_blocks_that_are_recomputed(tiny_recipe, tmp_path, stage):
    options = ["streams.low.teachers=[a]", "streams.high.teachers=[b]", "student.activation_checkpointing=true"]
    folders = [tmp_path / name for name in ("plain", "zero")]
    for folder in folders:
        folder.mkdir()
    plain = _steps(tiny_recipe, folders[0], *options, "student.activation_checkpointing=false")
    steps = _steps(tiny_recipe, folders[1], *options, f"deepspeed.zero_optimization.stage={stage}")
    assert "low/a/feature" in plain[0] and "low/b/feature" not in plain[0]
    for one, wanted in zip(steps, plain, strict=True):
        assert one == pytest.approx(wanted, rel=1e-4)


def test_nadam_and_bf16_train_too_and_parameters_stay_fp32(plain, tiny_recipe, tmp_path):
    steps = _steps(tiny_recipe, tmp_path, "optim.name=nadam", "precision=bf16")
    assert steps[0]["loss"] != plain[0]["loss"] and steps[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.01)
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    [saved] = (tmp_path / "run" / "checkpoints").glob("step-*/model.safetensors")
    assert {tensor.dtype for tensor in load_file(saved).values()} == {torch.float32}


def test_the_optimiser_is_the_one_named_with_decay_apart_from_the_gradient(recipe):
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))], "weight_decay": 0.1, "lr": 1.0, "lr_scale": 1.0}]
    for name, kind in (("adamw", torch.optim.AdamW), ("nadam", torch.optim.NAdam)):
        made = build_optimizer(recipe(optim={"name": name, "lr": 0.5}).optim, groups, torch.device("cpu"))
        assert isinstance(made, kind) and made.defaults["betas"] == (0.9, 0.999)
        [parameter] = groups[0]["params"]
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros(3)
        made.step()
        torch.testing.assert_close(parameter.data, torch.full((3,), 1 - 1.0 * 0.1))  # decay alone, at the group's rate
        assert made.param_groups[0]["lr_scale"] == 1.0


def test_precision_is_chosen_with_a_reason():
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == ("fp32", "as the recipe says")
    precision, why = choose_precision("auto", cpu)
    assert (precision, why) in (("bf16", "the CPU computes in it"), ("fp32", "this CPU has no bf16 arithmetic"))


def test_a_process_alone_is_a_world_and_can_join_again(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        world = join_world(threads=1)
        try:
            assert (world.rank, world.size, world.first, world.device.type) == (0, 1, True, "cpu")
            assert world.gather({"a": 1}) == [{"a": 1}]
            assert torch.equal(world.sum(torch.ones(2)), torch.ones(2))
            world.agree(None)
            with pytest.raises(UserError, match="no"):
                world.agree(UserError("no"))
        finally:
            leave_world()


def test_a_lost_peer_is_told_from_other_mistakes():
    assert is_lost_peer(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert is_lost_peer(torch.distributed.DistBackendError("NCCL"))
    assert not is_lost_peer(torch.distributed.DistNetworkError("... name: EADDRINUSE, message: address already in use"))
    assert not is_lost_peer(RuntimeError("shapes do not match")) and not is_lost_peer(ValueError("gloo"))


# Two ranks ------------------------------------------------------------------------------------------------------------


def keep_weights(rank: int, folder) -> None:
    """Write this rank's gradients before the second optimiser step, and its weights after it."""
    from radio_distill import loop

    step = loop.optimizer_step

    def watched(engine):
        gradients = {name: p.grad.clone() for name, p in engine.module.named_parameters() if p.grad is not None}
        norm = step(engine)
        torch.save([gradients, engine.module.state_dict(), norm], folder / f"rank{rank}.pt")
        return norm

    loop.optimizer_step = watched


def fail_on_one_rank(rank: int) -> None:
    from radio_distill import shards

    following = shards.ShardStream.__next__

    def breaks(self):
        if rank == 1 and self.index == 2:
            raise UserError("stream 'low': 30 of the last 40 samples were bad")
        return following(self)

    shards.ShardStream.__next__ = breaks


def test_ranks_hold_the_same_gradients_and_weights_after_a_step(trial, tmp_path):
    command = [str(trial.file), "stages.0.steps=2", "output.save=0", "heldout=null"]
    ranks = Ranks(command, 2, tmp_path / "log", partial(keep_weights, folder=tmp_path))
    assert ranks.wait() == [0, 0], ranks.said()
    (gradients, weights, norm), (others, same, again) = (torch.load(tmp_path / f"rank{n}.pt") for n in (0, 1))
    assert gradients.keys() == others.keys() and norm == again == trial.journal()[-1]["norm"]
    assert all(torch.equal(gradients[key], others[key]) for key in gradients)
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    total = torch.sqrt(sum(gradient.double().square().sum() for gradient in gradients.values()))
    assert norm == pytest.approx(total.item(), rel=1e-5)


def test_what_one_rank_meets_is_told_once_by_that_rank_and_the_others_end_without_a_traceback(trial, tmp_path):
    ranks = Ranks([str(trial.file)], 2, tmp_path / "log", fail_on_one_rank)
    assert ranks.wait() == [2, 2]
    said = ranks.said()
    assert said.count("samples were bad") == 1 and "rank 0 stops: another rank has ended, and says why" in said
    assert "Traceback" not in said


def test_an_error_of_all_ranks_is_told_by_the_first(trial, tmp_path):
    ranks = Ranks([str(trial.file), "optim.lr=1e15", "optim.clip=0", "output.save=1"], 2, tmp_path / "log")
    assert ranks.wait() == [2, 2]
    assert ranks.said().count("not finite") == 1 and "Traceback" not in ranks.said()
    assert issubclass(RankError, UserError) and World(1, 1, 2, torch.device("cpu")).first is False
