"""Turns what a user calls an open_clip model (a name, a tag, a folder, a file) into what decides its output."""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from teachers import weight_files
from teachers.errors import UserError

CONFIG = "open_clip_config.json"
HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FILE_NAMES = (*HUB_NAMES, "model.safetensors")  # in a local folder; beside the others it may be transformers' layout
UNKNOWN_LICENCE = "the weights' own"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

# What open_clip assumes where neither a configuration nor a published tag says otherwise.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Source:
    """Everything that decides what an open_clip model computes."""

    title: str  # what errors call the architecture
    model_cfg: dict  # open_clip's: embed_dim, vision_cfg, text_cfg, ...
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Path | None  # None: a random initialisation from `seed`
    words: list[str] | None  # the vocabulary of a WordTokenizer
    licence: str
    seed: int


def resolve(
    name: str,
    *,
    weights: str | None,
    model: str | None,
    tag: str | None,
    config: str | None,
    meta: bool = False,
    seed: int = 0,
) -> Source:
    """The source meant by `build`'s arguments of these names; raises `UserError` where it cannot be found."""
    import open_clip

    is_file = weights is not None and weight_files.is_file_like(weights)
    if is_file and model is None and (config is None or _describes_itself(name, weights)):
        config = weights
    if config is not None:
        path, document = _read_config(name, config)
        title, model_cfg, published = str(path), document["model_cfg"], document.get("preprocess_cfg", {})
        words, licence = document.get("words"), document.get("licence") or UNKNOWN_LICENCE
        weights = weights or str(path.parent)
    else:
        words, licence = None, UNKNOWN_LICENCE
        title, model_cfg = f"open_clip {model}", _known_model(name, model)
        tags = open_clip.list_pretrained_tags_by_model(model)
        if weights is not None and weights != "random" and not is_file:
            tag, weights = weights, None
        if tag is not None and tag not in tags:
            raise UserError(f"{name}: open_clip {model} has no weights called '{tag}'", expected=_one_of(tags))
        tag = tag or (tags[0] if tags else None)
        published = open_clip.get_pretrained_cfg(model, tag) if tag else {}
        if weights is None and not meta:
            weights = _published_at(name, model, model_cfg, tag, published)
    file = None if meta or weights == "random" else weights_file(name, weights)
    if "hf_model_name" in model_cfg["text_cfg"] and importlib.util.find_spec("transformers") is None:
        raise UserError(f"{name}: the text tower of {title} needs transformers", todo="pip install transformers")
    return Source(
        title=title,
        model_cfg=model_cfg,
        mean=tuple(published.get("mean") or CLIP_MEAN),
        std=tuple(published.get("std") or CLIP_STD),
        weights=file,
        words=words,
        licence=licence,
        seed=seed,
    )


def _known_model(name: str, model: str | None) -> dict:
    import open_clip

    if model is None:
        raise UserError(
            f"{name} needs to know which model it is",
            expected="model=NAME (as open_clip names it), or weights=FOLDER with an " + CONFIG,
            todo="python -c 'import open_clip; print(*open_clip.list_models())'",
        )
    model_cfg = open_clip.get_model_config(model)
    if model_cfg is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), 5, 0.4)
        raise UserError(f"{name}: open_clip knows no model '{model}'", expected=_one_of(close))
    return model_cfg


def _published_at(name: str, model: str, model_cfg: dict, tag: str | None, published: dict) -> str:
    """Where the weights of a tag are kept, as `weight_files.find` reads it."""
    if tag is None:
        raise UserError(f"{name}: no weights are published for open_clip {model}", todo="give weights=FILE")
    if bool(published.get("quick_gelu")) != bool(model_cfg.get("quick_gelu")):
        other = model.removesuffix("-quickgelu") if model_cfg.get("quick_gelu") else f"{model}-quickgelu"
        raise UserError(
            f"{name}: the weights '{tag}' were not trained with the activation of open_clip {model}",
            expected=f"model={other} (it differs in quick_gelu only)",
        )
    repo = published.get("hf_hub", "").rpartition("/")[0]
    if not repo:
        raise UserError(
            f"{name}: the weights '{tag}' of open_clip {model} are not in a Hugging Face repository",
            todo=f"fetch {published.get('url')} and give weights=FILE",
        )
    return f"hf:{repo}"


def _describes_itself(name: str, weights: str) -> bool:
    return (weight_files.find(weights, of=name, names=HUB_NAMES) / CONFIG).is_file()


def _read_config(name: str, config: str) -> tuple[Path, dict]:
    path = weight_files.find(config, of=name, names=(CONFIG,))
    path = path / CONFIG if path.is_dir() else path
    try:
        document = json.loads(path.read_text())
        if {"embed_dim", "vision_cfg", "text_cfg"} <= set(document["model_cfg"]):
            return path, document
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(
        f"{name}: no configuration of an open_clip model in {path}",
        expected='{"model_cfg": {"embed_dim", "vision_cfg", "text_cfg", ...}, "preprocess_cfg": {"mean", "std"}}',
        todo="give weights=FOLDER with that file and model.safetensors, or model=NAME beside weights=FILE",
    )


def weights_file(name: str, weights: str) -> Path:
    """The file that `weights` means, in the folder if it means one."""
    path = weight_files.find(weights, of=name, names=HUB_NAMES)
    if path.is_dir():
        found = [path / file for file in FILE_NAMES if (path / file).is_file()]
        if not found:
            raise UserError(f"the weights of {name} are not in {path}", expected=" or ".join(FILE_NAMES))
        return found[0]
    return path


def _one_of(names: Sequence[str]) -> str:
    return "one of " + ", ".join(names) if names else "another name"


def tokenizer(source: Source, name: str) -> Callable[[list[str]], Tensor]:
    """Texts → tokens `N×context` for the model of `source`; nothing is fetched."""
    import open_clip

    text_cfg = source.model_cfg["text_cfg"]
    context = text_cfg.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    if source.words is not None:
        from teachers.words import WordTokenizer

        return WordTokenizer(source.words, context)
    kwargs = text_cfg.get("tokenizer_kwargs", {})
    repo = text_cfg.get("hf_tokenizer_name")
    if not repo:
        return open_clip.SimpleTokenizer(context_length=context, **kwargs)
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            f"the tokenizer of {name} needs the package 'transformers', which is not installed",
            todo=f"pip install transformers sentencepiece && hf download {repo}",
        )
    vocabulary = weight_files.find(f"hf:{repo}", of=f"{name}'s tokenizer", names=TOKENIZER_NAMES)
    mode = text_cfg.get("tokenizer_mode")
    return open_clip.tokenizer.HFTokenizer(
        str(vocabulary.parent), context_length=context, tokenizer_mode=mode, **kwargs
    )
