"""Tiny towers in open_clip's hub layout, with random weights, for the tests of encoders (no tests here)."""

import json
from copy import deepcopy
from pathlib import Path

from timm.models import VisionTransformer, register_model

from teachers.seeding import seeded

WORDS = ["a", "red", "ball", "on", "the", "table"]
_TEXT = {"context_length": 12, "vocab_size": len(WORDS) + 4, "width": 32, "heads": 2, "layers": 1}
NATIVE = {  # a CLIP: class token, projected
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "patch_size": 8, "head_width": 24},
    "text_cfg": _TEXT,
}
TIMM = {  # a SigLIP: a timm trunk without class token, pooled by attention
    "embed_dim": 128,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 56,
        "timm_model_name": "vit_test_patch7_56",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {**_TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@register_model
def vit_test_patch7_56(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """A small trunk that timm knows by name, since open_clip builds trunks by name alone."""
    unused = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    kwargs = {key: value for key, value in kwargs.items() if key not in unused}
    shape = {"img_size": 56, "patch_size": 7, "embed_dim": 128, "depth": 2, "num_heads": 4}
    return VisionTransformer(**{**shape, "class_token": False, "global_pool": "map", **kwargs})


def tower(model_cfg: dict, seed: int = 0):
    """The open_clip model of a configuration, as open_clip itself makes it."""
    import open_clip

    cfg = deepcopy(model_cfg)
    kind = open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP
    with seeded("tower", seed):
        return kind(**cfg).eval()


def write_tower(folder: Path, model_cfg: dict, seed: int = 0, **more) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    document = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS, "words": WORDS, **more}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(tower(model_cfg, seed).state_dict(), folder / "model.safetensors")
    return folder
