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

from eval.tabletop.kinds import COLOURS, KINDS
from eval.tabletop.towers import CONFIGS, CONTEXT, WORDS, build, measure, save, whiten
from teachers.seeding import numpy_rng
from teachers.words import WordTokenizer

WARM_UP = 100  # steps
DECAY = 0.1  # of weights with two or more dimensions


def crops(images: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """B×3×H×W uint8 → B×3×size×size in [0, 1]: a random half to all of each picture, its light varied a little."""
    side = images.shape[-1]
    out = torch.empty(len(images), 3, size, size)
    for i, image in enumerate(images):
        area, aspect = rng.uniform(0.5, 1.0), np.exp(rng.uniform(-0.2, 0.2))
        height, width = (int(min(side, round(side * math.sqrt(area * a)))) for a in (aspect, 1 / aspect))
        top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
        window = image[None, :, top : top + height, left : left + width].float()
        out[i] = F.interpolate(window, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 1, 1, 1)).astype(np.float32))
    return (out * gain / 255).clamp(0, 1)


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


def _of_another_kind(texts: LongTensor, kinds: LongTensor, rng: np.random.Generator) -> LongTensor:
    """The captions with their first kind (the main thing's) exchanged for another one."""
    wrong = texts.clone()
    is_kind = torch.isin(texts, kinds)
    rows, first = torch.arange(len(texts)), is_kind.int().argmax(1)
    now = torch.searchsorted(kinds, texts[rows, first])
    other = (now + torch.from_numpy(rng.integers(1, len(kinds), len(texts)))) % len(kinds)
    wrong[rows, first] = kinds[other]
    return wrong


def _contrast(model: nn.Module, loss_of: nn.Module, pictures: Tensor, texts: LongTensor, wrong: LongTensor) -> Tensor:
    """The contrastive loss of a batch, and the loss of taking a caption of another kind for the right one.

    Colours and counts tell the scenes of a batch apart, so a tower could leave kinds alone; a hard negative that differs
    in nothing else (as in NegCLIP, arXiv 2210.01936) asks for them. Towers run in bf16, similarities in fp32.
    """
    with torch.autocast("cpu", torch.bfloat16):
        seen, read = model.encode_image(pictures), model.encode_text(torch.cat([texts, wrong]))
    seen, read = F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1)
    right, false = read.chunk(2)
    extra = {} if model.logit_bias is None else {"logit_bias": model.logit_bias}
    scale = model.logit_scale.exp()
    mistaken = F.softplus(scale * (seen * (false - right)).sum(-1)).mean()
    return loss_of(seen, right, logit_scale=scale, **extra) + mistaken


def train(
    name: str, images: np.ndarray, truths: list[dict], *, steps: int, batch: int, lr: float, seed: int
) -> nn.Module:
    """Train one tower on N×H×W×3 uint8 pictures and their labels (`shards.labels`)."""
    from open_clip.loss import ClipLoss, SigLipLoss
    from rich.progress import Progress

    config = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config).train()
    read = WordTokenizer(WORDS, CONTEXT)
    tokens = [read(truth["captions"]) for truth in truths]
    kinds = read(list(KINDS))[:, 1].sort().values  # one word each, behind the start token
    loss_of = ClipLoss() if model.logit_bias is None else SigLipLoss()
    optimiser = _optimiser(model)
    size = config["preprocess_cfg"]["size"][0]
    mean_loss = math.nan
    with Progress() as progress:
        task = progress.add_task(name, total=steps)
        for step, (chosen, rng) in zip(range(steps), _batches(truths, batch, name, seed)):
            pictures = torch.from_numpy(np.array(images[chosen])).permute(0, 3, 1, 2)
            texts = _texts(tokens, chosen, rng)
            for group in optimiser.param_groups:
                warm, cosine = min(1, (step + 1) / WARM_UP), 0.5 + 0.5 * math.cos(math.pi * step / steps)
                group["lr"] = (lr * warm * cosine + 1e-6) * group["times"]
            wrong = _of_another_kind(texts, kinds, rng)
            loss = _contrast(model, loss_of, whiten(crops(pictures, size, rng), config), texts, wrong)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
