"""A student → the model as RADIO's users call it: (summary, features), adaptors by name, windows, intermediate maps.

`HubStudent` is what `torch.hub.load(..., "student" | "radio_model")` gives, and `HubStudent.from_pretrained(FOLDER)`
from a Hugging Face folder. Shapes: B images, h w grid, N = h·w patches, D width, C a teacher's width, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from teachers.errors import UserError
from teachers.features import Size
from teachers.radio import RadioModel, RadioOutput
from teachers.radio_encoder import AdaptorEncoder, RadioEncoder
from teachers.radio_heads import as_map

if TYPE_CHECKING:
    from teachers.open_clip_encoder import OpenClipEncoder

BACKBONE = "backbone"
Format = Literal["NLC", "NCHW"]
AGGREGATIONS, ALPHA_SCHEMES = ("sparse", "dense"), ("none", "pre-alpha", "post-alpha")


class HubStudent(nn.Module, PyTorchModelHubMixin, library_name="radio-distill", tags=["radio"]):
    """A student with RADIO's calling convention.

    `model(images)` → `(summary, features)`; with `adaptor_names`, a dict of such pairs with `backbone` among them.
    Images are B×3×H×W in [0, 1]; features are B×N×D (`feature_fmt="NLC"`) or B×D×h×w (`"NCHW"`).
    """

    def __init__(
        self, encoder: RadioEncoder, adaptor_names: Sequence[str] | str = (), vitdet_window_size: int | None = None
    ):
        super().__init__()
        names = (adaptor_names,) if isinstance(adaptor_names, str) else tuple(adaptor_names or ())
        self.encoder, self.adaptor_names, self.window_size = encoder, names, vitdet_window_size or None
        self.adaptors = {name: HubAdaptor(encoder.adaptor(name)) for name in names}
        self._frames = 1
        spec = encoder.model.spec
        self.patch_size, self.max_resolution = spec.patch, spec.cpe_max
        self.min_resolution_step = spec.patch * (self.window_size or 1)
        self.preferred_resolution = encoder.native_size
        self.embed_dim, self.summary_dim = spec.width, encoder.model.summary_width
        self.num_cls_tokens = spec.summary_tokens
        self.num_summary_tokens = spec.summary_tokens + spec.registers
        if self.window_size:
            _ = spec.window_period  # raises where no block would be windowed

    @property
    def model(self) -> RadioModel:
        return self.encoder.model

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.blocks

    def get_nearest_supported_resolution(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size that `forward` takes, at least one patch (in windowed mode: one window)."""
        step = self.min_resolution_step
        largest = self.max_resolution // step * step
        return tuple(min(max(round(side / step), 1) * step, largest) for side in (height, width))

    def make_preprocessor_external(self) -> Callable[[Tensor], Tensor]:
        """The input conditioner, (x − mean) / std, for the caller to apply: from now on `forward` does without."""
        external = self.model.input_conditioner
        self.model.input_conditioner = nn.Identity()
        return external

    def switch_to_deploy(self) -> None:
        """Fold what only training needs (spectral reparametrisation) into plain weights; the answers stay."""
        spec, weights = self.model.baked()
        if spec == self.model.spec:
            return
        with torch.device("meta"):
            plain = RadioModel(spec).eval().requires_grad_(False)
        plain.input_conditioner = self.model.input_conditioner  # it may be external
        plain.load_state_dict(weights, assign=True)
        self.encoder.model = plain

    @contextmanager
    def cpe_video_mode(self, t: int) -> Iterator[HubStudent]:
        """Inside, a batch holds clips of `t` frames one after another, and a clip's frames share their positions.

        It only matters to a student in training (`train()`), whose positions are cropped at random.
        """
        before, self._frames = self._frames, t
        try:
            yield self
        finally:
            self._frames = before

    def forward(self, images: Tensor, feature_fmt: Format = "NLC") -> RadioOutput | dict[str, RadioOutput]:
        self._check(images, feature_fmt)
        outputs = self.model(images, window=self.window_size, heads=self.adaptor_names, frames=self._frames)
        outputs = {name: RadioOutput(o.summary, _as(o.features, feature_fmt)) for name, o in outputs.items()}
        if not self.adaptor_names:
            return outputs[BACKBONE]
        return {name: outputs[name] for name in (BACKBONE, *self.adaptor_names)}

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Format = "NCHW",
        intermediates_only: bool = False,
        aggregation: Literal["sparse", "dense"] = "sparse",
        norm_alpha_scheme: Literal["none", "pre-alpha", "post-alpha"] = "post-alpha",
    ) -> list[Any] | tuple[RadioOutput, list[Any]]:
        """Maps between the blocks, as timm's ViTs give them.

        Args:
            indices: blocks (negative ones from the end), a number of last blocks, or None for all.
            return_prefix_tokens: each item is then `RadioOutput(summary=B×P×D summary tokens and registers, features)`.
            norm: put every map through the student's last norm, where it has one (RADIO's have none).
            stop_early: run no block after the last one asked for; the final output is then that of this block.
            output_fmt: B×D×h×w or B×N×D.
            intermediates_only: return the list alone, without the backbone's output before it.
            aggregation: `sparse` = the block itself; `dense` = the mean over it and all blocks since the one before.
            norm_alpha_scheme: RADIO's, for checkpoints with statistics of every block; without them all are the same.
        """
        for given, known in ((aggregation, AGGREGATIONS), (norm_alpha_scheme, ALPHA_SCHEMES)):
            if given not in known:
                raise UserError(f"unknown option {given!r} of forward_intermediates", expected=" or ".join(known))
        self._check(images, output_fmt)
        depth = len(self.blocks)
        wanted = _block_numbers(indices, depth)
        needed = range(max(wanted) + 1) if aggregation == "dense" else sorted(set(wanted))
        last = max(wanted) if stop_early or intermediates_only else depth - 1
        blocks = [*needed, last]
        tokens = self.model.intermediates(images, blocks, window=self.window_size, frames=self._frames, stop_early=True)
        seen, grid, after = dict(zip(blocks, tokens)), self.model.grid(images), self.model.norm
        items = []
        for number in wanted:
            group = [number]
            if aggregation == "dense":
                group = range(max((other for other in wanted if other < number), default=-1) + 1, number + 1)
            mean = torch.stack([after(seen[block]) if norm else seen[block] for block in group]).mean(0)
            features = self._features(mean, output_fmt, grid)
            items.append(RadioOutput(mean[:, : self.model.first_patch], features) if return_prefix_tokens else features)
        if intermediates_only:
            return items
        final = after(seen[last])
        summary = final[:, self.model.summary_slots].flatten(1)
        return RadioOutput(summary, self._features(final, output_fmt, grid)), items

    def _features(self, tokens: Tensor, feature_fmt: Format, grid: Size) -> Tensor:
        """All tokens → the patches' as a sequence or a map."""
        patches = tokens[:, self.model.first_patch :]
        return patches if feature_fmt == "NLC" else as_map(patches, grid)

    def _check(self, images: Tensor, feature_fmt: str) -> None:
        if feature_fmt not in ("NLC", "NCHW"):
            raise UserError(f"unknown feature_fmt {feature_fmt!r}", expected="NLC or NCHW")
        self.encoder.check(images)
        height, width = images.shape[2:]
        if height % self.min_resolution_step or width % self.min_resolution_step:
            raise UserError(
                f"{self.encoder.name} cannot take images of {height}×{width} in windows of {self.window_size} patches",
                expected=f"multiples of {self.min_resolution_step} in both directions",
                todo=f"model.get_nearest_supported_resolution({height}, {width})",
            )

    # Hugging Face ------------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path) -> None:
        from teachers.radio_released import write_folder

        write_folder(save_directory, self.encoder, self.adaptor_names)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to Hugging Face; what is uploaded names no adaptors, so its users choose their own."""
        names, self.adaptor_names = self.adaptor_names, ()
        try:
            return super().push_to_hub(repo_id, **options)
        finally:
            self.adaptor_names = names

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str = "cpu",
        adaptor_names: Sequence[str] = (),
        vitdet_window_size: int | None = None,
    ) -> HubStudent:
        """From a folder, or a repository on Hugging Face (its config.json, model.safetensors and README.md)."""
        folder = model_id
        if not Path(model_id).is_dir():
            from huggingface_hub import snapshot_download

            folder = snapshot_download(
                model_id, revision=revision, cache_dir=cache_dir, force_download=force_download, token=token,
                local_files_only=local_files_only, allow_patterns=["config.json", "model.safetensors", "README.md"],
            )  # fmt: skip
        return cls(RadioEncoder.load(folder, map_location), adaptor_names, vitdet_window_size)


class HubAdaptor:
    """One head as RADIO's users know it; a text-aligned teacher's has `tokenizer` and `encode_text`."""

    def __init__(self, encoder: AdaptorEncoder):
        self._encoder, self.name = encoder, encoder.head

    @property
    def head_idx(self) -> int:
        """The summary token that the head reads."""
        return self._encoder.student.model.spec.token_of[self.name]

    @property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts → tokens `N×context`; the teacher's weights must be at hand."""
        return self._text_tower().tokenizer

    def encode_text(self, text: Tensor | Sequence[str], normalize: bool = False) -> Tensor:
        """Tokens (or texts) → N×C in the space of the head's summary, of unit length if `normalize`."""
        tower = self._text_tower()
        tokens = text if isinstance(text, Tensor) else tower.tokenizer(list(text))
        embedded = tower.encode_tokens(tokens)
        return F.normalize(embedded, dim=-1) if normalize else embedded

    def _text_tower(self) -> OpenClipEncoder:
        if not self._encoder.has_text:
            self._encoder.encode_text([])  # says so
        return self._encoder.teacher()


def _as(maps: Tensor, feature_fmt: Format) -> Tensor:
    """B×D×h×w → B×N×D if asked for."""
    return maps.flatten(2).mT if feature_fmt == "NLC" else maps


def _block_numbers(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """timm's ways of naming blocks → their numbers, in the order asked for."""
    if indices is None:
        return list(range(depth))
    if isinstance(indices, int):
        indices = range(depth - indices, depth)
    wrong = [index for index in indices if not -depth <= index < depth]
    if wrong or not len(indices):
        raise UserError(
            f"forward_intermediates cannot give block {wrong[0] if wrong else 'of none'}",
            expected=f"blocks from 0 to {depth - 1} (or -1 to -{depth}), or how many of the last ones",
        )
    return [index % depth for index in indices]
