"""Turns an open_clip `Source` into open_clip's network with the weights of one of its parts: image tower or the rest.

A distillation never runs the text tower, which may be the larger part: its memory is not touched, its weights not read.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from teachers import weight_files
from teachers.errors import UserError
from teachers.open_clip_source import Source
from teachers.random_weights import fast_initialization

VISUAL = "visual."
# In published files beside the parameters: buffers that open_clip no longer keeps, and the sizes in OpenAI's files.
BUFFERS = ("position_ids", "attn_mask")
SIZES = ("input_resolution", "context_length", "vocab_size")


def image_tower(source: Source) -> nn.Module:
    """The image tower, on the CPU in fp32 (inside `torch.device("meta")` without weights)."""
    return _model(source, text=False).visual


def text_tower(source: Source) -> nn.Module:
    """The whole model but its image tower, for `encode_text`; on the CPU in fp32."""
    return _model(source, text=True)


def _model(source: Source, *, text: bool) -> nn.Module:
    """open_clip's model: with `text` its image tower is empty, else everything but the image tower is undefined."""
    tensors = None
    try:
        with fast_initialization("open_clip", source.seed) as initialization:
            model = _structure(source.model_cfg)
            initialization.keep(_part(model, text) if source.weights is None else None)
    except (RuntimeError, TypeError, KeyError, AssertionError) as error:
        raise UserError(f"{source.title} describes no model that open_clip can build: {error}") from error
    if source.weights is not None:
        tensors = _checked_tensors(model, source)
    if text:
        model.visual = nn.Identity()
    if tensors is not None and text:
        model.load_state_dict({key: value for key, value in tensors.items() if not key.startswith(VISUAL)})
    elif tensors is not None:
        visual = {key.removeprefix(VISUAL): value for key, value in tensors.items() if key.startswith(VISUAL)}
        model.visual.load_state_dict(visual)
    return model


def _structure(model_cfg: dict) -> nn.Module:
    import open_clip

    cfg = deepcopy(model_cfg)
    cfg["vision_cfg"]["timm_model_pretrained"] = False
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
    if cfg["vision_cfg"].get("timm_model_name", "").startswith("vit_tabletop"):
        import teachers.tabletop_trunk  # noqa: F401  (timm knows the trunk only once it is registered)
    kind = open_clip.CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return kind(**cfg)


def _part(model: nn.Module, text: bool) -> nn.Module:
    if not text:
        return model.visual
    model.visual = nn.Identity()
    return model


# Weights ----------------------------------------------------------------------------------------------------------


def _checked_tensors(model: nn.Module, source: Source) -> dict[str, Tensor]:
    """The tensors of the file, all of which are this model's, and all of whose are in the file; else `UserError`."""
    file, wanted = source.weights, model.state_dict()
    given = weight_files.read_tensors(file, of=source.title)
    try:
        tensors = as_current(model, given)
    except Exception as error:  # a foreign file: open_clip trips over whatever it looks for first
        weight_files.check_same_layout(given, wanted, path=file, architecture=source.title)
        raise UserError(f"{file}: open_clip cannot convert these weights for {source.title}: {error}") from error
    weight_files.check_same_layout(tensors, wanted, path=file, architecture=source.title)
    return tensors


def as_current(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors by the names and shapes of today's open_clip, at the size and context length of `model`."""
    from open_clip import factory

    tensors = factory.convert_state_dict(model, dict(tensors))
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = factory.convert_to_custom_text_state_dict(tensors)
    tensors = {key: value for key, value in tensors.items() if not key.endswith(BUFFERS) and key not in SIZES}
    for key in ("logit_scale", "logit_bias"):  # a number, or a vector of one
        own = getattr(model, key)
        if own is None:
            tensors.pop(key, None)
        elif key in tensors and tensors[key].numel() == own.numel():
            tensors[key] = tensors[key].reshape(own.shape)
        elif key == "logit_bias" and key not in tensors:  # a SigLIP that begins from a CLIP
            tensors[key] = torch.zeros_like(own)
    factory.resize_pos_embed(tensors, model)
    factory.resize_text_pos_embed(tensors, model)
    return tensors
