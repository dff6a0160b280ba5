"""Registers with timm the trunks of the tabletop's two towers: small ViTs whose patches are cut by a few convolutions.

open_clip builds a timm trunk by name alone, and no published name is this small. Import this module before open_clip
builds a model whose `timm_model_name` begins with `vit_tabletop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers import PatchEmbed
from timm.models import VisionTransformer, register_model
from torch import nn

from teachers.stem import conv_stem

WIDTH = 128
SHAPE = {"embed_dim": WIDTH, "depth": 4, "num_heads": 4, "mlp_ratio": 3.5}  # both towers have an 8×8 grid
_UNUSED = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # timm passes them to every builder


class ConvStem(PatchEmbed):
    """Images → tokens by 3×3 convolutions of `strides`, whose product is the patch size."""

    def __init__(self, *args, strides: Sequence[int], embed_dim: int, **kwargs):
        super().__init__(*args, embed_dim=embed_dim, **kwargs)
        # 3×3 throughout, as the shipped weights were trained: at stride 3 the last row of pixels goes unseen
        self.proj = conv_stem(strides, embed_dim, nn.BatchNorm2d, kernels=[3] * len(strides))


def _build(options: dict, **shape) -> VisionTransformer:
    options = {key: value for key, value in options.items() if key not in _UNUSED}
    return VisionTransformer(**{**SHAPE, **shape, **options})


@register_model
def vit_tabletop_patch8_64(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """The CLIP's: 64 pixels, patch 8, a class token."""
    stem = partial(ConvStem, strides=(2, 2, 2))
    return _build(kwargs, img_size=64, patch_size=8, embed_layer=stem, global_pool="token")


@register_model
def vit_tabletop_patch12_96(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """The SigLIP's: 96 pixels, patch 12, attention pooling and no class token."""
    stem = partial(ConvStem, strides=(2, 2, 3))
    return _build(kwargs, img_size=96, patch_size=12, embed_layer=stem, class_token=False, global_pool="map")
