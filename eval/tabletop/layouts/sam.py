"""A seed → SAM-H's neck, prompt encoder and mask decoder of random weights, in the layout of Hugging Face's SamModel.

SAM's own weights cannot be shipped. The parts that the task uses have their published shapes; the image encoder, in
whose place the model under test stands, has no layers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from eval.tabletop.layouts.common import Item, Plan
from teachers.seeding import seeded

FOLDER = "sam_random"


def items(plan: Plan) -> list[Item]:
    """Nothing where transformers is not installed: the task needs it, too."""
    return [Item("decoder", 0)] if importlib.util.find_spec("transformers") else []


def render(root: Path, plan: Plan, item: Item) -> None:
    from transformers import SamConfig, SamModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    vision = {"hidden_size": 1280, "num_attention_heads": 16, "mlp_dim": 5120, "num_hidden_layers": 0}
    with seeded("layout sam", plan.seed):
        model = SamModel(SamConfig(vision_config=vision | {"global_attn_indexes": []}))
    model.save_pretrained(root)


def finish(root: Path, plan: Plan, made: list[tuple[Item, None]]) -> None:
    """Nothing."""
