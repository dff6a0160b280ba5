"""Turns any open_clip model (native ViT or timm tower: CLIP, DFN, SigLIP, SigLIP2, ...) into an encoder with text.

`Features.summary` is the pooled image embedding in the text space (a CLIP's projected token, a SigLIP's attention
pool); `Features.spatial` the patch tokens after the tower's last norm and before any projection.

A model is named as open_clip names it, or described by a configuration in open_clip's hub layout: a folder with
open_clip_config.json `{"model_cfg", "preprocess_cfg"}` and model.safetensors. Where that file has a list `"words"`,
texts are read by `teachers.words.WordTokenizer` rather than by open_clip's tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers import weight_files
from teachers.errors import UserError
from teachers.features import Dims, Size, Whiten
from teachers.frozen import FrozenEncoder, as_dtype, as_size, on_meta
from teachers.open_clip_model import image_tower, text_tower
from teachers.open_clip_source import Source, resolve, tokenizer, weights_file

TEXTS_AT_ONCE = 256


class OpenClipEncoder(FrozenEncoder):
    """The image tower of an open_clip model; its text tower is built on the first `encode_text`, from the same weights.

    So a distillation, which only looks at images, does not hold the text tower in memory.
    """

    def __init__(self, source: Source, *, name: str, licence: str, image_size: int | list[int] | None, dtype):
        super().__init__()
        self.source = source
        self.dtype = as_dtype(dtype)
        self.network = image_tower(source)
        spatial, patch, size = _geometry(self.network)
        size = as_size(image_size) if image_size is not None else (size[0] // patch * patch, size[1] // patch * patch)
        if size[0] % patch or size[1] % patch:
            raise UserError(f"{name}: image_size {size[0]}×{size[1]} is no multiple of its patch size {patch}")
        _set_image_size(self.network, size, patch)
        self.network.to(self.dtype)
        self.whiten = Whiten(source.mean, source.std)
        self.text: nn.Module | None = None
        self._tokenizer: Callable[[list[str]], Tensor] | None = None
        self.declare(
            name=name,
            licence=licence,
            patch_size=patch,
            native_size=size,
            resolution_flexible=False,
            dims=Dims(source.model_cfg["embed_dim"], spatial),
            notes=(size,),
        )

    def encode(self, whitened: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network.forward_intermediates(
            whitened, indices=[-1], normalize_intermediates=_norm_is_on_tokens(self.network)
        )
        return out["image_features"], out["image_intermediates"][0]

    @property
    def has_text(self) -> bool:
        return True

    @property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts → tokens `N×context`, as the text tower was trained to read them."""
        if self._tokenizer is None:
            self._tokenizer = tokenizer(self.source, self.name)
        return self._tokenizer

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens `N×context` → `N×D_s` fp32 in the space of `Features.summary`, of whatever length."""
        here = self.whiten.mean.device
        if here.type == "meta":
            raise UserError(f"{self.name} was built without weights: it cannot embed texts")
        if self.text is None:
            self.text = text_tower(self.source).to(self.dtype).eval().requires_grad_(False)
        self.text.to(here)
        return torch.cat([self.text.encode_text(chunk).float() for chunk in tokens.to(here).split(TEXTS_AT_ONCE)])

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts → `N×D_s` fp32 of unit length, in the space of `Features.summary`."""
        return F.normalize(self.encode_tokens(self.tokenizer(list(texts))), dim=-1)


def build(
    *,
    name: str = "open_clip",
    licence: str | None = None,
    weights: str | None = None,
    meta: bool = False,
    device: torch.device | str = "cpu",
    model: str | None = None,
    tag: str | None = None,
    config: str | None = None,
    image_size: int | list[int] | None = None,
    dtype: str | torch.dtype = "fp32",
    seed: int = 0,
) -> OpenClipEncoder:
    """The encoder of an open_clip `model` (or of a `config`, a folder or file).

    Args:
        weights: a file, a folder with a configuration in it, a published tag, "random", or None: those of `tag`.
        tag: the published weights whose preprocessing is meant where `weights` is a file; the model's first by default.
        image_size: another size than the model's; the position embedding is resampled (bicubic, antialiased).
        seed: of a random initialisation.
    """
    source = resolve(name, weights=weights, model=model, tag=tag, config=config, meta=meta, seed=seed)
    with on_meta(meta):
        licence = licence or source.licence
        encoder = OpenClipEncoder(source, name=name, licence=licence, image_size=image_size, dtype=dtype)
    return encoder if meta else encoder.to(device)


def locate(
    *,
    name: str,
    weights: str | None = None,
    model: str | None = None,
    tag: str | None = None,
    config: str | None = None,
    **_: object,
) -> Path:
    """The weights file that `build` would load; raises its `UserError` where there is none."""
    if weights is not None and weight_files.is_file_like(weights):
        return weights_file(name, weights)
    return resolve(name, weights=weights, model=model, tag=tag, config=config).weights


# The network ------------------------------------------------------------------------------------------------------


def _geometry(tower: nn.Module) -> tuple[int, int, Size]:
    """Width of the patch tokens, pixels a token covers, image size of an image tower."""
    if hasattr(tower, "trunk"):
        last = tower.trunk.feature_info[-1]
        return last["num_chs"], last["reduction"], as_size(tower.image_size)
    if not hasattr(tower, "transformer"):
        raise UserError("only ViT and timm image towers can be encoders, this open_clip model has a ResNet of its own")
    return tower.conv1.out_channels, tower.patch_size[0], as_size(tower.image_size)


def _norm_is_on_tokens(tower: nn.Module) -> bool:
    """Whether the last norm sees the patch tokens; else (pooling comes first) they are taken before it."""
    return hasattr(tower, "trunk") or (tower.attn_pool is None and not tower.final_ln_after_pool)


@torch.no_grad()
def _set_image_size(tower: nn.Module, size: Size, patch: int) -> None:
    """Resample the position embedding for images of `size`."""
    if size == as_size(tower.image_size):
        return
    if hasattr(tower, "trunk"):
        tower.set_input_size(size)
        return
    grid = (size[0] // patch, size[1] // patch)
    table = tower.positional_embedding
    cells = table[1:].T.reshape(1, -1, *tower.grid_size)
    cells = F.interpolate(cells, grid, mode="bicubic", antialias=True, align_corners=False)
    tower.positional_embedding = nn.Parameter(torch.cat([table[:1], cells.flatten(2)[0].T]))
    tower.grid_size, tower.image_size = grid, size
