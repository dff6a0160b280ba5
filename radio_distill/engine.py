"""A recipe and a module → a DeepSpeed engine, on CUDA, on one CPU process, or on several (gloo).

DeepSpeed's behaviour on a CPU that this file answers: plain `python` needs the rendezvous variables; the first
`initialize` compiles a shared-memory all-reduce for a minute; bf16 parameters at ZeRO stage 0 make the first optimiser
step wrong. Parameters stay fp32 here and bf16 is autocast, which is right at every stage.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from radio_distill.optimisers import build_optimizer
from radio_distill.recipe import Recipe
from teachers.errors import UserError

# What the recipe says elsewhere: two places for one thing would disagree one day.
OURS = {
    "train_batch_size": "streams.NAME.batch",
    "train_micro_batch_size_per_gpu": "streams.NAME.batch",
    "gradient_accumulation_steps": "streams and optim.accumulate",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim and stages",
    "torch_autocast": "precision",
}
# What else people set there: to suggest a name for a mistyped one.
KNOWN = (
    "activation_checkpointing", "bf16", "checkpoint", "comms_logger", "communication_data_type", "compile",
    "data_types", "disable_allgather", "dump_state", "flops_profiler", "fp16", "gradient_allreduce_op",
    "gradient_predivide_factor", "log_level", "memory_breakdown", "prescale_gradients", "sparse_gradients",
    "steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "zero_optimization", *OURS,
)  # fmt: skip
LINEAR = nn.functional.linear  # ZeRO 3 puts another in its place, for the whole process


class RankError(UserError):
    """Something that only this rank has met, so that it must say so itself."""


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` added over ranks, on this rank's device."""
        values = values.to(self.device)
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Everybody's `value`, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def agree(self, error: UserError | None) -> None:
        """Raise on every rank what any of them has met; all ranks call it."""
        for met in self.gather(error):
            if met is not None:
                raise met


def join_world(threads: int | None = None) -> World:
    """Meet the other ranks that `deepspeed` or `torchrun` started; alone under plain `python`."""
    cuda = torch.cuda.is_available()
    if "RANK" not in os.environ:
        # Port 0: the system gives one while it is bound. A number found free beforehand may be taken by then.
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
        os.environ.update({key: str(value) for key, value in alone.items()})
    size, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0))
    if cuda:
        torch.cuda.set_device(local)
    else:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", size)))
        torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // here))
    deepspeed = quiet_deepspeed()
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
    return World(int(os.environ["RANK"]), local, size, torch.device("cuda", local) if cuda else torch.device("cpu"))


def leave_world() -> None:
    """Take leave of the other ranks, so that none reports a broken connection; this process can then train again."""
    nn.functional.linear = LINEAR
    if torch.distributed.is_initialized():
        # DeepSpeed's own call: it forgets the group too.
        quiet_deepspeed().comm.destroy_process_group()


def quiet_deepspeed() -> Any:
    """The `deepspeed` module without its start-up lines, and on a CPU without its hidden compile."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # A private name. DeepSpeed 0.19 makes it on first use, by trying out compilers: ours stands before that.
        # Should it go one day, the op is compiled again and nothing else is lost.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    return deepspeed


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """`fp32` or `bf16` for an `auto`, `fp32` or `bf16`, and the reason to print."""
    if wanted != "auto":
        return wanted, "as the recipe says"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in it"
        return "fp32", "this GPU has no bf16"
    if _cpu_has_bf16():
        return "bf16", "the CPU computes in it"
    return "fp32", "this CPU has no bf16 arithmetic"


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A context in which modules compute in `precision`."""
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def deepspeed_mistakes(recipe: Recipe) -> Iterator[UserError]:
    """What is wrong with a `deepspeed` section: it repeats the recipe, or cannot be trained with."""
    given = recipe.deepspeed
    for key, place in OURS.items():
        if key in given:
            yield UserError(f"deepspeed.{key} is set by the recipe itself", todo=f"remove it and use {place}")
    for key in given:  # DeepSpeed itself passes over a mistyped key in silence
        near = difflib.get_close_matches(key, KNOWN, n=1, cutoff=0.8)
        if key not in KNOWN and near:
            yield UserError(f"deepspeed.{key}: unknown key; did you mean '{near[0]}'?")
    shapeless = [key for key in ("zero_optimization", "bf16", "fp16") if not isinstance(given.get(key, {}), dict)]
    if shapeless:
        key = shapeless[0]
        yield UserError(f"deepspeed.{key} is {given[key]!r}", expected="a mapping, such as {stage: 1}")
        return
    if zero_stage(recipe) not in (0, 1, 2, 3):
        yield UserError(f"deepspeed.zero_optimization.stage is {zero_stage(recipe)!r}", expected="0, 1, 2 or 3")
    for key, why in (("bf16", "parameters stay fp32 here"), ("fp16", "teachers' features overflow it")):
        if given.get(key, {}).get("enabled"):
            yield UserError(f"deepspeed.{key}: {why}", todo="remove it and use precision=bf16")
    if recipe.optim.name == "lamb" and zero_stage(recipe) in (1, 2, 3):
        yield UserError(
            f"optim.name=lamb with deepspeed.zero_optimization.stage={zero_stage(recipe)}: LAMB scales a step by the "
            "norm of each weight tensor, and this stage splits tensors over ranks",
            todo="use deepspeed.zero_optimization.stage=0, or optim.name=adamw",
        )


def zero_stage(recipe: Recipe) -> int:
    """How much ZeRO splits over the ranks: 0 nothing, 1 the optimiser, 2 gradients too, 3 parameters too."""
    return recipe.deepspeed.get("zero_optimization", {}).get("stage", 0)


def deepspeed_config(recipe: Recipe, precision: str) -> dict[str, Any]:
    """The recipe's `deepspeed` section, with what the recipe says elsewhere filled in."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # nominal: every stream brings its own, and losses are means
        # The most of any stage, for what DeepSpeed sets aside; where a step ends, `backward` says.
        "gradient_accumulation_steps": recipe.optim.accumulate
        * max(len(stage.streams or recipe.streams) for stage in recipe.stages),
        "gradient_clipping": recipe.optim.clip,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config | recipe.deepspeed


def start_engine(recipe: Recipe, model: nn.Module, groups: list[dict], precision: str, world: World) -> Any:
    """The engine that runs, reduces and steps `model`."""
    deepspeed = quiet_deepspeed()
    config = deepspeed_config(recipe, precision)
    optimizer = build_optimizer(recipe.optim, groups, world.device)
    try:
        engine, *_ = deepspeed.initialize(model=model.to(world.device), optimizer=optimizer, config=config)
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(f"DeepSpeed refuses the recipe's deepspeed section: {error}") from error
    if world.size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # it copies all gradients there and back, for nobody
    if recipe.compile:
        engine.compile()
    return engine


def backward(engine: Any, loss: torch.Tensor, *, last: bool) -> None:
    """Add the gradient of one micro-batch's loss, already weighed among those of its step; `last` ends the step.

    Stages of a recipe differ in micro-batches a step, and DeepSpeed's own count and scale are fixed when it starts.
    """
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(loss, scale_wrt_gas=False)


def optimizer_step(engine: Any) -> float:
    """Take the optimiser step; returns the norm of the reduced gradient, before clipping.

    Stage 0 has forgotten its gradients after the step; ZeRO learns their norm only in it.
    """
    norm, stage = None, engine.zero_optimization_stage()
    if stage == 0:
        for group in engine.optimizer.param_groups:
            for parameter in () if group["frozen"] else group["params"]:
                if parameter.grad is None:  # a head that no batch of this step asked: zero, as on several ranks
                    parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    engine.step()
    norm = engine.get_global_grad_norm() if norm is None else norm
    if stage == 3:
        # DeepSpeed overwrites a gradient in the first micro-batch of a step and adds to it in the others: a head that
        # the first one does not use, or a frozen trunk, would be stepped along the last step's gradient again.
        engine.optimizer.grad_partitions_flat_buffer.zero_()
    return float("nan") if norm is None else float(norm)


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another rank has ended: that rank knows why, this one does not."""
    if "EADDRINUSE" in str(error):  # of a port that somebody chose: no peer was there yet
        return False
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
