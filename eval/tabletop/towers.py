"""The two tiny open_clip teachers (a CLIP and a SigLIP): their configurations, files and scores on held-out scenes.

Each stands in a folder as `open_clip_config.json` (open_clip's hub layout, plus the words of its tokenizer, its licence
and its scores) beside `model.safetensors` (fp16). `training` makes them.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.tabletop.captions import class_prompts, vocabulary
from eval.tabletop.kinds import KINDS
from teachers.words import WordTokenizer

CONTEXT = 24
WORDS = vocabulary()
_TEXT = {"context_length": CONTEXT, "vocab_size": len(WORDS) + 4, "width": 128, "heads": 4, "layers": 2}

CONFIGS = {
    "tabletop_clip": {
        "model_cfg": {
            "embed_dim": 128,
            "custom_text": True,
            "vision_cfg": {
                "image_size": 64, "timm_model_name": "vit_tabletop_patch8_64", "timm_model_pretrained": False,
                "timm_pool": "token", "timm_proj": "",  # projected by the trunk's own last layer
            },
            "text_cfg": _TEXT,
        },
        "preprocess_cfg": {
            "size": [64, 64],
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    },
    "tabletop_siglip": {
        "model_cfg": {
            "embed_dim": 128,
            "init_logit_bias": -10,
            "init_logit_scale": math.log(10),
            "custom_text": True,
            "vision_cfg": {
                "image_size": 96, "timm_model_name": "vit_tabletop_patch12_96", "timm_model_pretrained": False,
                "timm_pool": "map", "timm_proj": "none",
            },
            "text_cfg": {
                **_TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
            },
        },
        "preprocess_cfg": {
            "size": [96, 96],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    },
}  # fmt: skip


def build(config: dict) -> nn.Module:
    """An untrained open_clip model of that config."""
    from open_clip.model import CLIP, CustomTextCLIP

    import teachers.tabletop_trunk  # noqa: F401  (registers the timm trunk)

    shape = dict(config["model_cfg"])
    return (CustomTextCLIP if shape.pop("custom_text", False) else CLIP)(**shape)


def load(folder: Path) -> tuple[nn.Module, dict]:
    """A saved tower in fp32, ready to encode, and its config."""
    from safetensors.torch import load_file

    config = json.loads((folder / "open_clip_config.json").read_text())
    model = build(config)
    model.load_state_dict({key: value.float() for key, value in load_file(folder / "model.safetensors").items()})
    return model.eval(), config


def save(model: nn.Module, config: dict, folder: Path) -> None:
    """Write a tower (fp16) and its config, each whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors.part")
    (folder / "open_clip_config.json.part").write_text(json.dumps(config, indent=1) + "\n")
    for name in ("model.safetensors", "open_clip_config.json"):
        os.replace(folder / f"{name}.part", folder / name)


def whiten(images: Tensor, config: dict) -> Tensor:
    """B×3×H×W in [0, 1] → as the tower wants it."""
    mean, std = (torch.tensor(config["preprocess_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


@torch.inference_mode()
def embed_images(model: nn.Module, config: dict, images: np.ndarray) -> Tensor:
    """Whole pictures `N×H×W×3` uint8, resized antialiased → unit embeddings `N×D`."""
    size = config["preprocess_cfg"]["size"]
    out = []
    for start in range(0, len(images), 200):
        pictures = torch.from_numpy(np.array(images[start : start + 200])).permute(0, 3, 1, 2).float() / 255
        pictures = F.interpolate(pictures, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        out.append(model.encode_image(whiten(pictures, config), normalize=True))
    return torch.cat(out)


@torch.inference_mode()
def embed_texts(model: nn.Module, config: dict, texts: list[str]) -> Tensor:
    """Texts → unit embeddings `N×D`."""
    tokenize = WordTokenizer(config["words"], config["model_cfg"]["text_cfg"]["context_length"])
    return model.encode_text(tokenize(texts), normalize=True)


def zero_shot(model: nn.Module, config: dict, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures whose main thing's kind is the best of KINDS by its prompts' mean embedding."""
    prompts = class_prompts()
    means = [embed_texts(model, config, prompts[kind]).mean(0) for kind in KINDS]
    guess = (embed_images(model, config, images) @ F.normalize(torch.stack(means), dim=-1).T).argmax(1)
    return float((guess.numpy() == labels).mean())


def recall_at_1(model: nn.Module, config: dict, images: np.ndarray, captions: list[str]) -> tuple[float, float]:
    """Image → text and text → image R@1, caption i belonging to picture i."""
    scores = embed_images(model, config, images) @ embed_texts(model, config, captions).T
    own = torch.arange(len(scores))
    return tuple(float((scores.argmax(axis) == own).float().mean()) for axis in (1, 0))


def measure(
    folder: Path, seed: int, scenes: int, retrieval: int, workers: int, keep_in: Path | None = None
) -> dict:
    """The saved tower's scores on held-out scenes: zero-shot kind accuracy over all, R@1 over the first `retrieval`."""
    from eval.tabletop.shards import collect

    model, config = load(folder)
    images, truths = collect(seed, "held-out", scenes, workers=workers, keep_in=keep_in)
    labels = np.array([truth["class"] for truth in truths])
    first = [truth["captions"][0] for truth in truths[:retrieval]]
    to_text, to_image = recall_at_1(model, config, images[:retrieval], first)
    return {
        "zero_shot_kind_accuracy": round(zero_shot(model, config, images, labels), 4),
        "zero_shot_scenes": scenes,
        "zero_shot_chance": 1 / len(KINDS),
        "image_to_text_recall_at_1": round(to_text, 4),
        "text_to_image_recall_at_1": round(to_image, 4),
        "retrieval_captions": retrieval,
        "retrieval_chance": 1 / retrieval,
        "split": "held-out",
        "seed": seed,
    }
