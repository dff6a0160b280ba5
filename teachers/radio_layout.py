"""A checkpoint in the layout of the public RADIO hub ↔ a `RadioSpec` and the state of a `RadioModel`.

The layout: `base_model.*` (a timm ViT with a `patch_generator`), `input_conditioner.norm_{mean,std}`, and for every
teacher `_heads.NAME.*` (summary) and `_feature_projections.NAME.*` (features), NAME being its name or its index.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.radio_spec import CLIP_MEAN, CLIP_STD, HeadSpec, MlpSpec, RadioSpec

TRUNK = "base_model."
HUB_HEADS = {"summary": "_heads", "spatial": "_feature_projections"}
RENAMED = {  # ours → the hub's, in this order; the rest of the trunk has timm's names in both
    "patch_generator.positions.pos_embed": TRUNK + "patch_generator.pos_embed",
    "patch_generator.tokens": TRUNK + "patch_generator.cls_token.token",
    "input_conditioner.mean": "input_conditioner.norm_mean",
    "input_conditioner.std": "input_conditioner.norm_std",
}
HUBS = {hub: ours for ours, hub in RENAMED.items()}
LEFT_OUT = ("_intermediate_feature_normalizer.",)  # only intermediate maps pass through it, no answer does
TIMM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 24}  # by width
GIANT_DEPTH, GIANT_GLOBAL_BLOCKS = 40, 8  # RADIO's windowed mode: 8 global blocks in a ViT-g, 4 elsewhere
UNSCALED = 1e-5  # the layer scale's first value: it only matters to training from nothing


def spec_from_checkpoint(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> RadioSpec:
    """What `state` (hub layout) holds. Sizes and versions are read off the tensors, routing off `args`.

    Args:
        args: the checkpoint's `args` as a dict (`vars(namespace)`).
    """
    _refuse_reparametrised(state)
    embedder = _tensor(state, TRUNK + "patch_generator.embedder.weight")
    width, patch = len(embedder), math.isqrt(embedder.shape[1] // 3)
    tokens = len(_tensor(state, RENAMED["patch_generator.tokens"]))
    positions = _tensor(state, RENAMED["patch_generator.positions.pos_embed"]).shape[1]
    cells = math.isqrt(positions)
    if 3 * patch**2 != embedder.shape[1] or cells**2 != positions:
        raise UserError(
            f"its patch embedding takes {embedder.shape[1]} values and its table has {positions} positions",
            expected="square patches of three colours, and a square table",
        )
    per_teacher = bool(args.get("cls_token_per_teacher", True))
    heads = _heads(args, state)
    depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith(TRUNK + "blocks."))
    trunk = _trunk_options(state, width)
    return RadioSpec(
        patch=patch,
        width=width,
        depth=depth,
        num_heads=_num_heads(args, width),
        cpe_max=cells * patch,
        registers=tokens - (len(heads) if per_teacher else 1),
        heads=heads,
        patch_bias=TRUNK + "patch_generator.embedder.bias" in state,
        token_per_teacher=per_teacher,
        drop_path=float(args.get("drop_path") or 0.0),
        global_blocks=GIANT_GLOBAL_BLOCKS if depth >= GIANT_DEPTH else RadioSpec.global_blocks,
        final_norm=TRUNK + "norm.weight" in state,
        mean=_colours(state, "input_conditioner.norm_mean", CLIP_MEAN),
        std=_colours(state, "input_conditioner.norm_std", CLIP_STD),
        **trunk,
    )


def from_hub(spec: RadioSpec, state: Mapping[str, Tensor], names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Tensors of the hub layout under our names; fp32 or whatever they are. A key that has no place here is an error.

    Args:
        names: the teachers in the order of the checkpoint's list, where its heads are numbered; `spec`'s by default.
    """
    _refuse_reparametrised(state)
    names = list(spec.heads) if names is None else list(names)
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(LEFT_OUT):
            continue
        out[_ours(key, spec, names)] = tensor
    if spec.mlp == "swiglu":
        out = {re.sub(r"^(blocks\.\d+\.mlp)\.fc1", r"\1.w12", key): tensor for key, tensor in out.items()}
        out = {re.sub(r"^(blocks\.\d+\.mlp)\.fc2", r"\1.w3", key): tensor for key, tensor in out.items()}
    for key, value in {"mean": spec.mean, "std": spec.std}.items():
        out.setdefault(f"input_conditioner.{key}", torch.tensor(value).view(3, 1, 1))
    return out


def to_hub(spec: RadioSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `RadioModel` (plain: see `RadioModel.baked`) in the hub layout, heads under their teachers' names.

    A SwiGLU gets timm's names (`fc1`, `fc2`), as the hub builds its trunk with timm.
    """
    _refuse_reparametrised(state)
    out = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if key in RENAMED:
            out[RENAMED[key]] = tensor
        elif parts[0] == "heads":
            name, kind = parts[1], parts[2]
            out[".".join([HUB_HEADS[kind], name, *parts[3:]])] = tensor
        elif spec.mlp == "swiglu" and ".mlp.w" in key:
            out[TRUNK + key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = tensor
        else:
            out[TRUNK + key] = tensor
    return out


# Reading ----------------------------------------------------------------------------------------------------------


def _ours(key: str, spec: RadioSpec, names: Sequence[str]) -> str:
    """Our name of one key of the hub layout."""
    if key in HUBS:
        return HUBS[key]
    for kind, prefix in HUB_HEADS.items():
        if key.startswith(f"{prefix}."):
            name, _, rest = key[len(prefix) + 1 :].partition(".")
            if name not in spec.heads and name.isdigit() and int(name) < len(names):
                name = names[int(name)]
            if name in spec.heads:
                return f"heads.{name}.{kind}.{_nested(rest)}"
    if key.startswith((TRUNK + "blocks.", TRUNK + "patch_generator.embedder.", TRUNK + "norm.")):
        return key.removeprefix(TRUNK)
    raise UserError(
        f"the checkpoint has a tensor that no part of a student corresponds to: {key}",
        expected="base_model.{patch_generator,blocks,norm}, input_conditioner, and heads of "
        + ", ".join(spec.heads or ["no teacher"]),
    )


def _nested(rest: str) -> str:
    """v1's inner layers may be one flat row of (Linear, LayerNorm, ReLU)s; ours are grouped by layer."""
    flat = re.fullmatch(r"inner\.(\d+)\.(weight|bias)", rest)
    if flat is None:
        return rest
    layer, part = divmod(int(flat[1]), 3)
    return f"inner.{layer}.{part}.{flat[2]}"


def _heads(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, HeadSpec]:
    """The teachers by name; one listed twice (in two partitions) counts where it stands first."""
    heads: dict[str, HeadSpec] = {}
    for index, teacher in enumerate(args.get("teachers") or []):
        name = teacher["name"]
        if name in heads:
            continue
        of = {kind: _part(state, prefix, (name, str(index))) for kind, prefix in HUB_HEADS.items()}
        if not of["spatial"]:
            raise UserError(f"the checkpoint has no feature head of teacher {name}", expected=f"{HUB_HEADS['spatial']}")
        up = int(teacher.get("fd_upsample_factor") or 1)
        spatial, spatial_mlp = _mlp(of["spatial"], f"{name}'s feature head")
        summary, summary_mlp = _mlp(of["summary"], f"{name}'s summary head") if of["summary"] else (None, None)
        heads[name] = HeadSpec(
            spatial=spatial // up**2,
            spatial_mlp=spatial_mlp,
            summary=summary,
            summary_mlp=summary_mlp,
            supervised=bool(teacher.get("use_summary", True)),
            token=teacher.get("token_slot"),
            up=up,
        )
    return heads


def _part(state: Mapping[str, Tensor], prefix: str, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of one head, which is known by its teacher's name or place."""
    for name in names:
        start = f"{prefix}.{name}."
        found = {_nested(key[len(start) :]): tensor for key, tensor in state.items() if key.startswith(start)}
        if found:
            return found
    return {}


def _mlp(tensors: Mapping[str, Tensor], what: str) -> tuple[int, MlpSpec]:
    """The output width and the description of a head, by the names of its tensors."""
    attention = "blocks.0.attn.qkv.weight" in tensors
    if attention:
        tensors = {key.removeprefix("mlp."): tensor for key, tensor in tensors.items() if key.startswith("mlp.")}
    last = {"final.2.weight": "v2", "fc2.weight": "v1"}
    found = [key for key in last if key in tensors]
    if not found or "fc1.weight" not in tensors:
        raise UserError(f"{what} is of an unknown kind", expected="RADIO's MLP v1 or v2, or its attention head")
    inner = {key.split(".")[1] for key in tensors if key.startswith(("blocks.", "inner."))}
    version = "attention" if attention else last[found[0]]
    return len(tensors[found[0]]), MlpSpec(len(tensors["fc1.weight"]), len(inner), version)


def _trunk_options(state: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    block = {key.split(".", 3)[3]: t for key, t in state.items() if key.startswith(TRUNK + "blocks.0.")}
    first = block.get("mlp.w12.weight", block.get("mlp.fc1.weight"))
    last = block.get("mlp.w3.weight", block.get("mlp.fc2.weight"))
    if first is None or last is None:
        raise UserError("its blocks have no MLP that is known here", expected="mlp.fc1 and mlp.fc2, or mlp.w12 and w3")
    hidden = last.shape[1]
    swiglu = len(first) == 2 * hidden
    return {
        "mlp": "swiglu" if swiglu else "gelu",
        "mlp_ratio": hidden * (1.5 if swiglu else 1) / width,
        "layer_scale": UNSCALED if "ls1.gamma" in block else None,
    }


def _num_heads(args: Mapping[str, Any], width: int) -> int:
    """Tensors do not tell it: what `args` says, or what timm's ViT of this width has."""
    stated = (args.get("model_kwargs") or {}).get("num_heads") or TIMM_HEADS.get(width)
    if stated is None:
        raise UserError(
            f"the checkpoint does not say how many attention heads its trunk of width {width} has",
            expected="args.model_kwargs['num_heads'], or a width of " + ", ".join(map(str, TIMM_HEADS)),
        )
    return int(stated)


def _tensor(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise UserError(f"the checkpoint has no {key}", expected="the layout of a released RADIO (a ViT with CPE)")
    return state[key]


def _colours(state: Mapping[str, Tensor], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    if key not in state or torch.equal(state[key].float().flatten(), torch.tensor(default)):
        return default  # in full digits
    return tuple(state[key].double().flatten().tolist())


def _refuse_reparametrised(state: Mapping[str, Tensor]) -> None:
    found = [key for key in state if "parametrizations" in key]
    if found:
        raise UserError(
            f"the weights are reparametrised ({found[0]})",
            expected="plain weights, such as a checkpoint's state_dict_ema",
            todo="bake them first: RadioModel.baked()",
        )
