"""What a student begins from: a timm ViT or another student (released, exported, or a run's) → weights in a new one.

Taken are the blocks, the patch embedding and the positions, and of another student the registers and what belongs to
teachers of the same name; the rest stays as it is. Where the two differ in form only (whitening, patch size, table
size, a bias, layer scales), the weights are converted, exactly where that is possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from teachers.errors import UserError
from teachers.radio import RadioModel
from teachers.radio_layout import RENAMED, TRUNK, from_hub, spec_from_checkpoint
from teachers.radio_positions import resample_table
from teachers.radio_spec import RadioSpec, swiglu_hidden
from teachers.spectral import load_folded

TIMM = "timm:"
EMBEDDER, POSITIONS, TOKENS = (
    "patch_generator.embedder.", "patch_generator.positions.pos_embed", "patch_generator.tokens"
)  # fmt: skip
SCALED = {"ls1": "attn.proj", "ls2": "mlp.fc2"}  # a layer scale, and the layer it scales


def initialise(model: RadioModel, source: str) -> str:
    """Put the weights of `source` into `model`; returns what was taken and what stays fresh, for people.

    Args:
        source: `timm:NAME` (its published weights, as the catalogue finds them), `timm:NAME:WEIGHTS` (a file, hf:REPO,
            random), or the path of a RADIO checkpoint, an export, or a run folder.
    """
    spec, given = _from_timm(source) if source.startswith(TIMM) else _from_student(source)
    _check_same_trunk(source, spec, model.spec)
    state = model.baked()[1]
    taken, fresh = _trunk(spec, given, model.spec, state)
    for found, missing in (_tokens(spec, given, model.spec, state), _heads(spec, given, model.spec, state)):
        taken, fresh = taken + found, fresh + missing
    load_folded(model, state)
    return f"{source}: {', '.join(taken)}; fresh: {', '.join(fresh) or 'nothing'}"


def missing(source: str) -> str | None:
    """None where `initialise` would find its weights, else the text that says how to get them."""
    try:
        if source.startswith(TIMM):
            from teachers.timm_encoder import locate

            name, _, weights = source.removeprefix(TIMM).partition(":")
            if weights != "random":
                locate(name=source, model=name, weights=weights or None)
        else:
            from teachers.radio_files import find_student

            find_student(source)
    except UserError as error:
        return str(error)
    return None


def check(source: str, ours: RadioSpec) -> None:
    """Raise the `UserError` that `initialise` is sure to raise for a student of this form; no weights are read.

    What is not there cannot be checked: see `missing`.
    """
    if source.startswith(TIMM):
        theirs = _from_timm(source, meta=True)[0]
    elif missing(source):
        return
    else:
        from teachers.radio_files import read_spec

        theirs = read_spec(source)[0]
    _check_same_trunk(source, theirs, ours)


# Sources ----------------------------------------------------------------------------------------------------------


def _from_student(path: str) -> tuple[RadioSpec, dict[str, Tensor]]:
    from teachers.radio_files import read_student

    student = read_student(path)
    spec, weights = student.spec, student.weights
    if spec.spectral or spec.spectral_heads or spec.damp:
        live = RadioModel(spec)
        live.load_state_dict(weights)
        spec, weights = live.baked()
    return spec, weights


def _from_timm(source: str, meta: bool = False) -> tuple[RadioSpec, dict[str, Tensor]]:
    """Description and weights; on `meta` without weights, and whether they are at hand or not."""
    from teachers.timm_encoder import build

    name, _, weights = source.removeprefix(TIMM).partition(":")
    network = build(name=source, model=name, weights=weights or None, meta=meta).network
    try:
        with torch.device("meta") if meta else nullcontext():
            args, state = _as_hub(network)
            for name in ("norm_mean", "norm_std"):  # numbers that the description wants
                if meta:
                    values = torch.tensor(network.pretrained_cfg[name.removeprefix("norm_")], device="cpu")
                    state[f"input_conditioner.{name}"] = values.view(3, 1, 1)
        spec = spec_from_checkpoint(args, state)
        return spec, {} if meta else from_hub(spec, state)
    except UserError as error:
        raise UserError(
            f"{source} is no trunk of a student's form: {error.what}",
            expected="a plain ViT with learned positions (DeiT, AugReg, MAE, DINO, DINOv2, SigLIP, ...)",
        ) from None


def _as_hub(network: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A timm ViT as a student without teachers: its class token and registers, its positions without theirs."""
    own = network.state_dict()
    missing = {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} - own.keys()
    foreign = [key for key in own if key.startswith("norm_pre.")]
    if missing or foreign:
        what = f"has no {sorted(missing)[0]}" if missing else "norms its tokens before the first block"
        raise UserError(f"it {what}")
    width, patches = own["pos_embed"].shape[-1], network.patch_embed.num_patches
    places = own["pos_embed"]
    tokens = [own.get("cls_token", torch.zeros(1, 1, width)), own.get("reg_token", torch.zeros(1, 0, width))]
    tokens = torch.cat(tokens, dim=1)
    if places.shape[1] > patches:  # theirs have places of their own, and ours have none
        tokens = tokens + places[:, :-patches]
    kernel, dtype = own["patch_embed.proj.weight"], torch.float32
    cfg = network.pretrained_cfg
    state = {
        RENAMED[POSITIONS]: places[:, -patches:],
        RENAMED[TOKENS]: tokens[0],
        TRUNK + EMBEDDER + "weight": kernel.flatten(1),
        TRUNK + EMBEDDER + "bias": own.get("patch_embed.proj.bias", torch.zeros(len(kernel))),
        "input_conditioner.norm_mean": torch.tensor(cfg["mean"], dtype=dtype).view(3, 1, 1),
        "input_conditioner.norm_std": torch.tensor(cfg["std"], dtype=dtype).view(3, 1, 1),
    }
    for key, tensor in own.items():
        if key.startswith(("blocks.", "norm.")):
            state[TRUNK + key] = tensor
    for index, block in enumerate(network.blocks):
        if block.attn.qkv.bias is None:
            state[f"{TRUNK}blocks.{index}.attn.qkv.bias"] = torch.zeros(3 * width)
    heads = network.blocks[0].attn.num_heads
    return {"model_kwargs": {"num_heads": heads}, "cls_token_per_teacher": False}, state


# Conversion -------------------------------------------------------------------------------------------------------


def _check_same_trunk(source: str, theirs: RadioSpec, ours: RadioSpec) -> None:
    def shape(spec: RadioSpec) -> str:
        hidden = swiglu_hidden if spec.mlp == "swiglu" else lambda width, ratio: round(width * ratio)
        mlp = f"{spec.mlp} MLPs of {hidden(spec.width, spec.mlp_ratio)}"
        return f"width {spec.width}, depth {spec.depth}, {spec.num_heads} attention heads, {mlp}"

    if shape(theirs) != shape(ours):
        raise UserError(
            f"{source} has {shape(theirs)}; the student has {shape(ours)}",
            expected="the same trunk in both",
            todo="change student.arch (or student.width, depth, num_heads, mlp), or student.init",
        )


def _trunk(
    theirs: RadioSpec, given: Mapping[str, Tensor], ours: RadioSpec, state: dict[str, Tensor]
) -> tuple[list[str], list[str]]:
    """Blocks, last norm, patch embedding and positions into `state`."""
    blocks = _with_layer_scale({k: t for k, t in given.items() if k.startswith("blocks.")}, theirs, ours)
    wanted = {key for key in state if key.startswith("blocks.")}
    if blocks.keys() != wanted:
        odd = sorted(blocks.keys() ^ wanted)[0]
        raise UserError(f"the blocks differ: {odd} is in one only", expected="timm's plain transformer blocks")
    state.update(blocks)
    taken, fresh = [f"{ours.depth} blocks"], []
    if ours.final_norm:
        (taken if theirs.final_norm else fresh).append("last norm")
        state.update({key: given[key] for key in ("norm.weight", "norm.bias") if key in given})
    state[POSITIONS] = resample_table(given[POSITIONS], ours.cpe_max // ours.patch)
    before, after = (spec.cpe_max // spec.patch for spec in (theirs, ours))
    taken.append("positions" if before == after else f"positions ({before}×{before} → {after}×{after})")
    if (theirs.stem, ours.stem) == ("linear", "linear"):
        kernel, bias = _embedder(theirs, given, ours)
        state[EMBEDDER + "weight"] = kernel.flatten(1)
        if ours.patch_bias:
            state[EMBEDDER + "bias"] = bias
        else:
            state[POSITIONS] = state[POSITIONS] + bias  # every patch has one position: the same sum
        resampled = "" if theirs.patch == ours.patch else f" ({theirs.patch} → {ours.patch} pixels)"
        taken.append(f"patch embedding{resampled}")
    elif (theirs.stem, theirs.patch, theirs.mean, theirs.std) == (ours.stem, ours.patch, ours.mean, ours.std):
        state.update({key: tensor for key, tensor in given.items() if key.startswith(EMBEDDER)})
        taken.append("patch embedding")
    else:
        fresh.append("patch embedding")
    return taken, fresh


def _embedder(theirs: RadioSpec, given: Mapping[str, Tensor], ours: RadioSpec) -> tuple[Tensor, Tensor]:
    """Their patch embedding for our whitening and patch size, as D×3×p×p and D; exact but for the patch size.

    A patch size is changed as FlexiViT does (arXiv 2212.08013): resized patches give the same answer.
    """
    from timm.layers import resample_patch_embed

    mean, std, our_mean, our_std = (
        torch.tensor(values, dtype=torch.float64) for values in (theirs.mean, theirs.std, ours.mean, ours.std)
    )
    kernel = given[EMBEDDER + "weight"].double().unflatten(1, (3, theirs.patch, theirs.patch))
    bias = given.get(EMBEDDER + "bias", torch.zeros(len(kernel))).double()
    bias = bias + torch.einsum("dcyx,c->d", kernel, (our_mean - mean) / std)
    kernel = kernel * (our_std / std)[:, None, None]
    return resample_patch_embed(kernel.float(), [ours.patch, ours.patch]), bias.float()


def _with_layer_scale(blocks: dict[str, Tensor], theirs: RadioSpec, ours: RadioSpec) -> dict[str, Tensor]:
    """Folds layer scales that we have no place for into the layers before them; adds scales of 1 where we have them."""
    if (theirs.layer_scale is None) == (ours.layer_scale is None):
        return blocks
    scaled = {**SCALED, "ls2": "mlp.w3"} if theirs.mlp == "swiglu" else SCALED
    out = dict(blocks)
    for index in range(theirs.depth):
        for scale, layer in scaled.items():
            gamma, start = f"blocks.{index}.{scale}.gamma", f"blocks.{index}.{layer}."
            if ours.layer_scale is not None:
                out[gamma] = torch.ones(theirs.width)
                continue
            factor = out.pop(gamma)
            out[start + "weight"] = factor[:, None] * out[start + "weight"]
            out[start + "bias"] = factor * out[start + "bias"]
    return out


# What belongs to teachers -----------------------------------------------------------------------------------------


def _tokens(
    theirs: RadioSpec, given: Mapping[str, Tensor], ours: RadioSpec, state: dict[str, Tensor]
) -> tuple[list[str], list[str]]:
    """Summary tokens by their teachers' names, registers by their place."""
    tokens, source = state[TOKENS].clone(), given[TOKENS]
    known = dict.fromkeys(range(ours.summary_tokens))  # our token → theirs
    if ours.token_per_teacher and theirs.token_per_teacher:
        known |= {ours.token_of[name]: theirs.token_of[name] for name in ours.heads if name in theirs.heads}
    elif not ours.token_per_teacher and not theirs.token_per_teacher and source[0].any():
        known[0] = 0
    # else: one token that stood for all has no heir, and many have no sum
    known |= {
        ours.summary_tokens + place: theirs.summary_tokens + place if place < theirs.registers else None
        for place in range(ours.registers)
    }
    for mine, their in known.items():
        if their is not None:
            tokens[mine] = source[their]
    state[TOKENS] = tokens
    return _told(ours, known, taken=True), _told(ours, known, taken=False)


def _told(ours: RadioSpec, known: Mapping[int, int | None], taken: bool) -> list[str]:
    """The tokens that were taken (or were not), in words."""
    chosen = [mine for mine, their in known.items() if (their is not None) == taken]
    registers = sum(mine >= ours.summary_tokens for mine in chosen)
    if ours.token_per_teacher:
        names = [name for name, mine in ours.token_of.items() if mine in chosen]
    else:
        names = ["all teachers"] if 0 in chosen else []
    counted = f"{registers} register{'s' if registers > 1 else ''}"
    return [f"summary token of {name}" for name in names] + ([counted] if registers else [])


def _heads(
    theirs: RadioSpec, given: Mapping[str, Tensor], ours: RadioSpec, state: dict[str, Tensor]
) -> tuple[list[str], list[str]]:
    """Heads of the same teacher, where they are of the same version and size."""
    taken, fresh = [], []
    for name, head in ours.heads.items():
        for kind, what in {"spatial": "features", "summary": "summary"}.items():
            start = f"heads.{name}.{kind}."
            wanted = {key: tensor.shape for key, tensor in state.items() if key.startswith(start)}
            found = {key: tensor for key, tensor in given.items() if key.startswith(start)}
            same = name in theirs.heads and theirs.heads[name].up == head.up
            same = same and wanted == {key: tensor.shape for key, tensor in found.items()}
            if same:
                state.update(found)
            if wanted:
                (taken if same else fresh).append(f"{what} head of {name}")
    return taken, fresh
