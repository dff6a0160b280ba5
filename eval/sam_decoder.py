"""A map as it enters SAM's neck, and boxes → masks: SAM (Kirillov et al. 2023) without its image encoder.

Shapes: D width of the map, h w grid, n boxes, m side of SAM's low-resolution masks. A frame is the square that a
picture is put into, its aspect kept, in the top left corner.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.datasets.split import weights_identity
from eval.feature_cache import placed
from teachers.errors import UserError
from teachers.features import Size

if TYPE_CHECKING:
    from transformers import SamConfig

BLOCK = 32  # boxes at once: their masks are as large as the picture


class SamDecoder(nn.Module):
    """SAM's neck, prompt encoder and mask decoder (`load` builds it); `identity` changes with its files."""

    def __init__(self, sam: nn.Module, identity: str):
        super().__init__()
        vision = sam.config.vision_config
        self.width, self.frame, self.grid = (
            vision.hidden_size,
            vision.image_size,
            vision.image_size // vision.patch_size,
        )
        self.identity = identity
        self.sam = sam.eval().requires_grad_(False)
        self.sam.vision_encoder.layers = nn.ModuleList()  # the model under test stands in their place

    @torch.no_grad()
    def forward(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """One map D×h×w, and boxes n×4 in pixels of SAM's own frame → logits n×m×m.

        A map of another grid than SAM's is resized to it: bilinear, antialiased where it shrinks. Of each box SAM is
        asked for one mask, as its authors advise for prompts that leave no doubt which thing is meant.
        """
        maps = maps[None]
        if tuple(maps.shape[2:]) != (self.grid, self.grid):
            maps = F.interpolate(maps, (self.grid, self.grid), mode="bilinear", antialias=True, align_corners=False)
        seen = self.sam.vision_encoder.neck(maps.permute(0, 2, 3, 1))
        answers = [
            self.sam(image_embeddings=seen, input_boxes=block[None], multimask_output=False).pred_masks[0, :, 0]
            for block in boxes.split(BLOCK)
        ]
        return torch.cat(answers)

    def masks(self, maps: Tensor, boxes: Tensor, picture: Size, frame: int) -> Tensor:
        """Boxes n×4 in pixels of a picture H×W, and the map of the picture in a frame → n×H×W bool.

        Args:
            frame: the side of the frame that the model was shown, in pixels; boxes are put where it saw them.
        """
        from transformers import SamImageProcessor

        inside = placed(picture, (frame, frame))
        share = boxes.new_tensor([inside[1] / picture[1], inside[0] / picture[0]]).repeat(2)
        logits = self(maps, boxes * share * (self.frame / frame))
        enlarge, pad = SamImageProcessor().post_process_masks, {"height": frame, "width": frame}
        blocks = [enlarge([block[:, None]], [picture], [inside], pad_size=pad)[0] for block in logits.split(BLOCK)]
        return torch.cat(blocks)[:, 0]


def config_of(folder: Path) -> SamConfig:
    """SAM's configuration; `UserError` for a folder of something else, or where transformers is not installed."""
    try:
        from transformers import SamConfig
    except ImportError as error:
        todo = "pip install 'radio-distill[language]'"
        raise UserError(f"SAM's decoder needs transformers ({error})", todo=todo) from None
    expected = "a folder that SamModel.save_pretrained wrote, or `hf download facebook/sam-vit-huge`"
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder} has no readable config.json: {error}", expected=expected) from None
    if kind != "sam":
        raise UserError(f"{folder} holds a model of type {kind!r}", expected=expected)
    return SamConfig.from_pretrained(folder, local_files_only=True)


@lru_cache(maxsize=1)
def load(folder: Path) -> SamDecoder:
    """The decoder of a SAM in Hugging Face's layout; kept, for every model and task asks for the same one."""
    config_of(folder)
    from transformers import SamModel

    try:
        sam, report = SamModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:  # absent, cut short, shapes that differ: transformers and safetensors raise their own
        raise UserError(f"the SAM in {folder} cannot be read: {error}", todo="fetch or copy the files again") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"the SAM in {folder} lacks weights, such as {missing}", expected="a complete SamModel")
    return SamDecoder(sam, identity(folder))


def identity(folder: Path) -> str:
    """Changes with the files: hashing the gigabytes in them would take longer than the question is worth."""
    return weights_identity(folder)
