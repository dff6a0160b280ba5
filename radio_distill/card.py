"""An exported student's config and journal → its model card (`README.md` beside the weights)."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from radio_distill import checkpoint, journal
from radio_distill.recipe import Recipe

if TYPE_CHECKING:
    from teachers.radio_encoder import RadioEncoder

TEMPLATE = """\
---
library_name: radio-distill
pipeline_tag: image-feature-extraction
license: other
tags: [vision, distillation, radio]
---

# {name}

A ViT student ({width} wide, {depth} blocks, patch {patch}, {parameters:.1f} M parameters) that was distilled from
{count} teachers by [radio-distill]. It answers with its own summary and patch features, and through a head a teacher
with what that teacher would have said.

## Use

```python
{use}
summary, features = out["backbone"]         # B×{summary}, B×(H/{patch}·W/{patch})×{width}
```

It is at home at {size} pixels.

## Teachers

| head | encoder | weights | sharpened by | licence of the weights |
|---|---|---|---|---|
{teachers}

A distilled student inherits what its teachers' licences ask.

## Training

{steps} optimiser steps of {images} images, recipe `{task}`, seed {seed}, radio-distill at commit {commit}.
The run's `recipe.yaml` holds every option, its `journal.jsonl` every loss.

## Measured

{figures}

## Limits

It knows what its teachers knew about pictures like those it was trained on ({shards}); nothing here has been checked
for fairness, nor for safety-critical use.
"""


USES = {
    "folder": """\
import torch
student = torch.hub.load("PATH/TO/radio-distill", "student", "{place}", source="local", adaptor_names={adaptors})
out = student(images)                       # B×3×H×W in [0, 1]; H and W multiples of {patch}, at most {largest}""",
    "hf": """\
from teachers.radio_hub import HubStudent   # pip install radio-distill
student = HubStudent.from_pretrained("{place}", adaptor_names={adaptors})
out = student(images)                       # B×3×H×W in [0, 1]; H and W multiples of {patch}, at most {largest}""",
}


def card_of(encoder: RadioEncoder, recipe: Recipe, place: Path, use: str = "folder") -> str:
    """The text of the card of a student that will lie at `place`; `use`: one of `USES`."""
    from radio_distill.run_folder import commit

    spec, config = encoder.model.spec, encoder.config
    rows = [
        f"| {name} | {t['encoder']} | {t['weights'] or 'the catalogue’s'} | {t['sharpen']} | {t['licence']} |"
        for name, t in config["teachers"].items()
    ]
    steps, ranks = _progress(recipe)
    batch = sum(stream.batch for stream in recipe.streams_at(max(steps - 1, 0)).values())
    sizes = {"patch": spec.patch, "largest": spec.cpe_max}
    text = USES[use].format(place=place, adaptors=list(config["teachers"]), **sizes)
    return TEMPLATE.format(
        name=recipe.folder.name, use=text, count=len(rows), width=spec.width, depth=spec.depth, **sizes,
        parameters=sum(p.numel() for p in encoder.model.parameters()) / 1e6, summary=encoder.model.summary_width,
        size="×".join(map(str, config["preferred_size"])), teachers="\n".join(rows), steps=steps,
        images=ranks * recipe.optim.accumulate * batch, task=recipe.task, seed=recipe.seed, commit=commit(),
        figures=_figures(recipe), shards="; ".join(str(stream.shards) for stream in recipe.streams.values()),
    )  # fmt: skip


def _progress(recipe: Recipe) -> tuple[int, int]:
    """Finished steps and ranks, of the newest checkpoint: a run may be exported before its end."""
    for path in reversed(checkpoint.whole(recipe.folder)):
        with suppress(OSError, ValueError, KeyError):  # a damaged one
            facts = json.loads((path / checkpoint.STATE).read_text())
            return facts["step"], facts["world"]
    return 0, 1


def _figures(recipe: Recipe) -> str:
    """The last held-out figures of the run, as a table."""
    records = [record for record in journal.read(recipe.folder) if record["kind"] == "heldout"]
    if not records or not recipe.heldout:
        return "No held-out pictures were named in the recipe."
    last = records[-1]
    rows = [f"| {key} | {value:.4f} |" for key, value in last.items() if "/" in key]
    head = f"On {recipe.heldout.samples} held-out pictures (`{recipe.heldout.shards}`) after {last['step']} steps.\n"
    meaning = "`feature_error` is the squared error of the features relative to the best constant, which scores 1.0;\n"
    return "\n".join(
        [
            head + meaning + "`summary_error` is 1 − cos.",
            "",
            "| stream / teacher / figure | value |",
            "|---|---|",
            *rows,
        ]
    )
