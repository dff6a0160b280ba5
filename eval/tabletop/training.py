"""Rendered scenes and their captions → trained towers, with open_clip's model classes and open_clip's losses."""

from __future__ import annotations

import math
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import LongTensor, Tensor, nn
from torch.nn import functional as F

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


def _texts(tokens: list[LongTensor], chosen: np.ndarray, rng: np.random.Generator) -> LongTensor:
    """One caption of each chosen scene; half of them the first, which tells the scenes apart best."""
    picks = [0 if rng.random() < 0.5 else int(rng.integers(len(tokens[i]))) for i in chosen]
    return torch.stack([tokens[i][pick] for i, pick in zip(chosen, picks)])


def _optimiser(model: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def _contrast(model: nn.Module, loss_of: nn.Module, pictures: Tensor, texts: LongTensor) -> Tensor:
    """The contrastive loss of a batch; the towers run in bf16, the similarities in fp32."""
    with torch.autocast("cpu", torch.bfloat16):
        seen, read = model.encode_image(pictures), model.encode_text(texts)
    seen, read = F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1)
    extra = {} if model.logit_bias is None else {"logit_bias": model.logit_bias}
    return loss_of(seen, read, logit_scale=model.logit_scale.exp(), **extra)


def train(
    name: str, images: np.ndarray, captions: list[list[str]], *, steps: int, batch: int, lr: float, seed: int
) -> nn.Module:
    """Train one tower on N×H×W×3 uint8 pictures and the captions of each."""
    from open_clip.loss import ClipLoss, SigLipLoss
    from rich.progress import Progress

    config = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config).train()
    tokens = [WordTokenizer(WORDS, CONTEXT)(texts) for texts in captions]
    loss_of = ClipLoss() if model.logit_bias is None else SigLipLoss()
    optimiser = _optimiser(model)
    size = config["preprocess_cfg"]["size"][0]
    order, mean_loss = np.empty(0, np.int64), math.nan
    with Progress() as progress:
        task = progress.add_task(name, total=steps)
        for step in range(steps):
            rng = numpy_rng("tabletop towers", name, seed, step)
            if len(order) < batch:
                order = rng.permutation(len(images))
            chosen, order = np.sort(order[:batch]), order[batch:]
            pictures = torch.from_numpy(np.array(images[chosen])).permute(0, 3, 1, 2)
            texts = _texts(tokens, chosen, rng)
            for group in optimiser.param_groups:
                warm, cosine = min(1, (step + 1) / WARM_UP), 0.5 + 0.5 * math.cos(math.pi * step / steps)
                group["lr"] = lr * warm * cosine + 1e-6
            loss = _contrast(model, loss_of, whiten(crops(pictures, size, rng), config), texts)
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

    images, captions, _ = collect(seed, "train", scenes, workers=workers, keep_in=keep_in)
    results = {}
    for name in names:
        start = time.perf_counter()
        model = train(name, images, captions, steps=steps, batch=batch, lr=lr, seed=seed)
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
