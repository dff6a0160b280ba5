"""A ZeRO checkpoint of one number of ranks → the weights and moments of an engine that has another.

ZeRO lays the tensors of a parameter group end to end and gives every rank a stretch of the row (stages 1 and 2), or
gives every rank a stretch of every tensor (stage 3). Every file of the checkpoint is read, each tensor's stretches are
joined again, and this rank takes what is now its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# What the optimiser holds of a parameter, by name: a flat tensor in stretches, one after the other, or a counter.
State = dict[str, list[Tensor]]


class Stretch(NamedTuple):
    """Where a part of a parameter lies: in a rank's flat tensor, and in the parameter."""

    name: str
    place: int  # first element in the flat tensor
    start: int  # first element in the parameter
    count: int


def restore(folder: Path, ranks: int, weights: Mapping[str, Tensor], engine: Any) -> None:
    """Give `engine` the module's `weights` and the optimiser's state that `ranks` ranks left in DeepSpeed's `folder`.

    All of the present ranks call it.
    """
    from radio_distill.checkpoint import whole_parameters

    stage = engine.zero_optimization_stage()
    with whole_parameters(engine, changed=True):
        engine.module.load_state_dict(weights)
    states = read(folder, ranks, stage)
    inner = engine.optimizer.optimizer
    for group, flat, stretches in _own(engine, stage):
        kept: dict[str, Tensor] = {}
        for part in stretches:
            piece = slice(part.start, part.start + part.count)
            flat.data[part.place : part.place + part.count].copy_(weights[part.name].flatten()[piece])
            for key, stretched in states.get(part.name, {}).items():
                value = stretched[0] if stretched[0].ndim == 0 else torch.cat(stretched)
                if value.ndim == 0:
                    on_device = group.get("fused") or group.get("capturable")
                    kept.setdefault(key, value.to(flat.device if on_device else "cpu"))
                else:
                    whole = kept.setdefault(key, torch.zeros_like(flat.data))
                    whole[part.place : part.place + part.count].copy_(value[piece])
        if kept:
            inner.state[flat] = kept


def read(folder: Path, ranks: int, stage: int) -> dict[str, State]:
    """The optimiser's state of every parameter that has been stepped, from the files of all ranks; they are mapped."""
    states: dict[str, State] = {}
    for rank, file in enumerate(_by_rank(folder, "optim_states", ranks)):
        saved = torch.load(file, map_location="cpu", mmap=True, weights_only=True)["optimizer_state_dict"]
        rows = _rows_3(folder, rank, ranks) if stage == 3 else _rows(saved)
        groups = saved["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]["state"]
        for number, stretches in enumerate(rows):
            for key, value in groups.get(number, {}).items():
                value = torch.as_tensor(value)
                for part in stretches:
                    piece = value if value.ndim == 0 else value[part.place : part.place + part.count]
                    states.setdefault(part.name, {}).setdefault(key, []).append(piece)
    return states


def _rows(saved: Mapping[str, Any]) -> Iterator[list[Stretch]]:
    """Stages 1 and 2 write down what lies where; the ranks' stretches of a tensor follow each other."""
    for mapping in saved["param_slice_mappings"]:
        yield [Stretch(name, address.start, 0, address.numel) for name, address in mapping.items()]


def _rows_3(folder: Path, rank: int, ranks: int) -> Iterator[list[Stretch]]:
    """Stage 3 gives every rank an equal share of every tensor, the last of them filled up."""
    model = _by_rank(folder, "model_states", ranks)[rank]
    for shapes in torch.load(model, map_location="cpu", mmap=True, weights_only=True)["param_shapes"]:
        place, row = 0, []
        for name, shape in shapes.items():
            share = math.ceil(shape.numel() / ranks)
            row.append(Stretch(name, place, rank * share, _left(shape.numel(), rank * share, share)))
            place += share
        yield row


def _own(engine: Any, stage: int) -> Iterator[tuple[dict, nn.Parameter, list[Stretch]]]:
    """The flat tensors that this rank steps, with the group of each and what lies in it."""
    optimizer = engine.optimizer
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    if stage < 3:
        for number, flat in enumerate(optimizer.single_partition_of_fp32_groups):
            row = []
            for parameter in optimizer.bit16_groups[number]:
                if parameter._hp_mapping is not None:
                    here, there = parameter._hp_mapping.hp_fragment_address, parameter._hp_mapping.lp_fragment_address
                    row.append(Stretch(names[id(parameter)], here.start, there.start, here.numel))
            yield optimizer.optimizer.param_groups[number], flat, row
        return
    rank = torch.distributed.get_rank()
    for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        place, row = 0, []
        for parameter in optimizer.fp16_groups[number]:
            share = parameter.partition_numel()
            count = _left(parameter.ds_numel, rank * share, share)
            row.append(Stretch(names[id(parameter)], place, rank * share, count))
            place += share
        yield optimizer.optimizer.param_groups[optimizer.sub_group_to_group_id[number]], flat, row


def _left(whole: int, start: int, share: int) -> int:
    """How much of a share lies inside the tensor."""
    return max(0, min(share, whole - start))


def _by_rank(folder: Path, kind: str, ranks: int) -> list[Path]:
    found = {int(re.search(r"zero_pp_rank_(\d+)_", f.name)[1]): f for f in folder.glob(f"*zero_pp_rank_*_{kind}.pt")}
    if sorted(found) != list(range(ranks)):
        raise OSError(f"{folder} holds the {kind} of {len(found)} rank{'s' * (len(found) != 1)}, not of {ranks}")
    return [found[rank] for rank in range(ranks)]
