"""Rendered scenes and their captions → trained towers, with open_clip's model classes and open_clip's losses."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import LongTensor, Tensor, nn
from torch.nn import functional as F

from eval.tabletop.captions import class_prompts
from eval.tabletop.kinds import COLOURS, KINDS
from eval.tabletop.towers import CONFIGS, CONTEXT, WORDS, build, measure, save, whiten
from teachers.seeding import numpy_rng, seeded
from teachers.words import WordTokenizer

WARM_UP = 100  # steps
DECAY = 0.1  # of weights with two or more dimensions
LOCATED = 3.0  # weight of the boxes' term


def crops(images: Tensor, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """B×3×H×W uint8 → B×3×size×size in [0, 1]: a random half to all of each picture, its light varied a little.

    Beside them B×4: left, top, width and height of the crops, in pixels.
    """
    side = images.shape[-1]
    out, windows = torch.empty(len(images), 3, size, size), torch.empty(len(images), 4)
    for i, image in enumerate(images):
        area, aspect = rng.uniform(0.5, 1.0), np.exp(rng.uniform(-0.2, 0.2))
        height, width = (int(min(side, round(side * math.sqrt(area * a)))) for a in (aspect, 1 / aspect))
        top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
        window = image[None, :, top : top + height, left : left + width].float()
        out[i] = F.interpolate(window, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
        windows[i] = torch.tensor([left, top, width, height])
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 1, 1, 1)).astype(np.float32))
    return (out * gain / 255).clamp(0, 1), windows


def kinds_at(truths: list[dict], windows: Tensor, grid: int) -> Tensor:
    """B×kinds×grid×grid, 1 where the middle of a cell of the crop lies inside the box of a thing of that kind."""
    out = torch.zeros(len(truths), len(KINDS), grid, grid)
    middles = (torch.arange(grid) + 0.5) / grid
    for answer, truth, (left, top, width, height) in zip(out, truths, windows.tolist()):
        x, y = left + middles * width, top + middles * height
        for thing, (x0, y0, x1, y1) in zip(truth["things"], truth["boxes"]):
            inside = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
            answer[KINDS.index(thing["kind"])][inside] = 1
    return out


def _batches(truths: list[dict], batch: int, name: str, seed: int) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
    """Endless batches of scenes (indices), each with a generator for what else is drawn for it.

    In every other batch all main things have one colour: colours alone tell the scenes of a mixed batch apart so well
    that the kinds would hardly be learned.
    """
    colours = np.array([list(COLOURS).index(truth["things"][0]["colour"]) for truth in truths])
    groups = [np.arange(len(truths)), *(np.flatnonzero(colours == i) for i in np.unique(colours))]
    queues = [np.empty(0, np.int64)] * len(groups)
    for step in itertools.count():
        rng = numpy_rng("tabletop towers", name, seed, step)
        group = 0 if step % 2 == 0 else 1 + int(rng.integers(len(groups) - 1))
        if len(queues[group]) < batch:
            queues[group] = rng.permutation(groups[group])
        chosen, queues[group] = queues[group][:batch], queues[group][batch:]
        yield np.sort(chosen), rng


def _texts(tokens: list[LongTensor], chosen: np.ndarray, rng: np.random.Generator) -> LongTensor:
    """One caption of each chosen scene; a good part of them the first, which tells the scenes apart best."""
    picks = [0 if rng.random() < 0.3 else int(rng.integers(len(tokens[i]))) for i in chosen]
    return torch.stack([tokens[i][pick] for i, pick in zip(chosen, picks)])


def _optimiser(model: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim == 1]
    scalars = [p for p in model.parameters() if p.ndim == 0]  # the logits' scale and bias have a long way to go
    groups = [
        {"params": decayed, "weight_decay": DECAY, "times": 1},
        {"params": rest, "weight_decay": 0.0, "times": 1},
        {"params": scalars, "weight_decay": 0.0, "times": 5},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


class Objective(nn.Module):
    """A tower's loss: its captions', and two that point at kinds.

    Colours and counts tell the scenes of a batch apart, so captions alone leave kinds for last. Two terms hurry them:
    which kind's prompt suits the picture, and which kinds' boxes cover a patch (as SigLIP 2, arXiv 2502.14786, adds
    located captions), through a linear layer that is thrown away.
    """

    def __init__(self, model: nn.Module, width: int):
        super().__init__()
        from open_clip.loss import ClipLoss, SigLipLoss

        self.model = model
        self.contrast = ClipLoss() if model.logit_bias is None else SigLipLoss()
        self.locate = nn.Linear(width, len(KINDS))

    def forward(
        self, pictures: Tensor, texts: LongTensor, prompts: LongTensor, kind: LongTensor, where: Tensor
    ) -> Tensor:
        """Towers run in bf16, similarities in fp32."""
        with torch.autocast("cpu", torch.bfloat16):
            out = self.model.forward_intermediates(
                image=pictures, image_indices=[-1], normalize=False, normalize_intermediates=True
            )
            read = self.model.encode_text(torch.cat([texts, prompts]))
        seen, patches = F.normalize(out["image_features"].float(), dim=-1), out["image_intermediates"][0].float()
        captions, kinds = F.normalize(read.float(), dim=-1).split([len(texts), len(prompts)])
        scale = self.model.logit_scale.exp()
        extra = {} if self.model.logit_bias is None else {"logit_bias": self.model.logit_bias}
        told = self.contrast(seen, captions, logit_scale=scale, **extra)
        named = F.cross_entropy(scale * seen @ kinds.T, kind)
        found = self.locate(patches.movedim(1, -1)).movedim(-1, 1)
        located = F.binary_cross_entropy_with_logits(found, where, pos_weight=torch.tensor(4.0))
        return told + named + LOCATED * located


def train(
    name: str, images: np.ndarray, truths: list[dict], *, steps: int, batch: int, lr: float, seed: int
) -> nn.Module:
    """Train one tower on N×H×W×3 uint8 pictures and their labels (`shards.labels`)."""
    from rich.progress import Progress

    config = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config).train()
    read = WordTokenizer(WORDS, CONTEXT)
    tokens = [read(truth["captions"]) for truth in truths]
    prompts = torch.stack([read(texts) for texts in class_prompts().values()])  # kind, template, context
    size, grid = config["preprocess_cfg"]["size"][0], 8
    with seeded("tabletop towers", name, seed, "locate"):
        objective = Objective(model, 128)
    optimiser = _optimiser(objective)
    mean_loss = math.nan
    with Progress() as progress:
        task = progress.add_task(name, total=steps)
        for step, (chosen, rng) in zip(range(steps), _batches(truths, batch, name, seed)):
            pictures = torch.from_numpy(np.array(images[chosen])).permute(0, 3, 1, 2)
            texts = _texts(tokens, chosen, rng)
            for group in optimiser.param_groups:
                warm, cosine = min(1, (step + 1) / WARM_UP), 0.5 + 0.5 * math.cos(math.pi * step / steps)
                group["lr"] = (lr * warm * cosine + 1e-6) * group["times"]
            views, windows = crops(pictures, size, rng)
            some = [truths[i] for i in chosen]
            kind = torch.tensor([truth["class"] for truth in some])
            asked = prompts[:, rng.integers(prompts.shape[1])]
            loss = objective(whiten(views, config), texts, asked, kind, kinds_at(some, windows, grid))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimiser.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))  # as CLIP's authors do
            mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
            progress.update(task, advance=1, description=f"{name} loss {mean_loss:.3f}")
            if step % 100 == 99:
                progress.console.print(f"{name} step {step + 1}/{steps} loss {mean_loss:.3f}")
    return model


def make(
    out: Path,
    names: list[str],
    *,
    scenes: int,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    held_out: int,
    workers: int,
    keep_in: Path | None,
) -> dict[str, dict]:
    """Render, train, save and measure towers; returns name → scores (they also stand in each config)."""
    from eval.tabletop.shards import collect

    images, truths = collect(seed, "train", scenes, workers=workers, keep_in=keep_in)
    results = {}
    for name in names:
        start = time.perf_counter()
        model = train(name, images, truths, steps=steps, batch=batch, lr=lr, seed=seed)
        minutes = (time.perf_counter() - start) / 60
        config = {**CONFIGS[name], "words": WORDS, "licence": "Apache-2.0"}
        save(model, config, out / name)
        scores = measure(out / name, seed, held_out, min(200, held_out), workers, keep_in)
        short = name.removeprefix("tabletop_")
        scores["command"] = (
            f"python -m eval.tabletop teachers --only {short} --scenes {scenes} --steps {steps} --batch {batch}"
            f" --lr {lr:g} --seed {seed} --held-out {held_out}"
        )
        scores["date"] = date.today().isoformat()
        scores |= {"training_minutes": round(minutes, 1), "threads": torch.get_num_threads()}
        save(model, {**config, "scores": scores}, out / name)
        results[name] = scores
    return results
