"""Registers with timm the trunk of the tabletop's SigLIP: a ViT for 56-pixel images with attention pooling.

open_clip builds a timm trunk by name alone, and no published name is this small. Import this module before open_clip
builds a model whose `timm_model_name` is `vit_tabletop_patch7_56`.
"""

from __future__ import annotations

from timm.models import VisionTransformer, register_model

_UNUSED = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # timm passes them to every builder


@register_model
def vit_tabletop_patch7_56(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Width 128, depth 4, patch 7: an 8×8 grid of tokens, no class token, as SigLIP's trunks."""
    shape = {"img_size": 56, "patch_size": 7, "embed_dim": 128, "depth": 4, "num_heads": 4, "mlp_ratio": 3.5}
    options = {key: value for key, value in kwargs.items() if key not in _UNUSED}
    return VisionTransformer(**{**shape, "class_token": False, "global_pool": "map", **options})
