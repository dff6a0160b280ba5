"""Test sets of the tabletop that differ by their seed alone → whether the standard error of PCK is what they differ by.

    python benchmarks/coverage.py            # 120 test sets of 120 scenes: 4 minutes on one core

Two made-up models (random 8×8 filters beside the place in the picture, which weighs 0.5 or 2) answer the keypoint task
on each set. Printed, for one model and for the difference of the two: the deviation between test sets, the standard
error that a set gives by itself (resampling pairs, and resampling the pictures that pairs share), and how many of the
95 % intervals miss the mean over all sets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.datasets import tabletop
from eval.datasets.split import Split
from eval.matching import sizes
from eval.resampling import ends, together
from eval.tasks import keypoints
from teachers.seeding import torch_rng

ALPHA, PLACES = 0.2, (0.5, 2.0)
WAYS = ("pairs", "pictures")


def maps(split: Split, place: float) -> Tensor:
    """N×14×16×16: what the filters see, and `place` × where a cell lies."""
    filters = 0.1 * torch.randn(12, 3, 8, 8, generator=torch_rng("coverage"))
    images = torch.stack([split.image(index) for index in range(split.count)]).float() / 255
    seen = F.conv2d(F.pad(images - 0.5, (2, 2, 2, 2), mode="replicate"), filters, stride=4)
    side = torch.linspace(-1, 1, seen.shape[-1])
    where = torch.stack(torch.meshgrid(side, side, indexing="ij"))
    return torch.cat([seen / seen.std(), place * where.expand(len(seen), -1, -1, -1)], dim=1)


def judged(split: Split) -> dict[str, list[np.ndarray]]:
    """Way of resampling → each model's PCK (first) and its resamples."""
    pairs, size_of = list(split.keypoint_pairs), sizes(split)
    drawn = {
        "pairs": together(split.identity, None, len(pairs)),
        "pictures": ends(split.identity, [(pair.first, pair.second) for pair in pairs]),
    }
    found: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for place in PLACES:
        features = maps(split, place)
        places = [keypoints.transfer(features[[pair.first, pair.second]], pair, size_of, 0.25) for pair in pairs]
        right = [keypoints.hits(own, pair, ALPHA) for own, pair in zip(places, pairs)]
        for way, draws in drawn.items():
            score = keypoints.figures(pairs, right, right, draws, ALPHA)[0][f"PCK@{ALPHA:.2f}"]
            found[way].append(np.array([score.value, *score.resamples]))
    return found


def line(title: str, found: dict[str, np.ndarray]) -> str:
    """Way → S×(1 + R) figures of S test sets, in words."""
    values = found["pairs"][:, 0]
    text = f"{title}: {np.std(values, ddof=1):.2f} between test sets"
    for way, rows in found.items():
        errors = rows[:, 1:].std(axis=1, ddof=1)
        missed = 100 * np.mean(abs(values - values.mean()) > 1.96 * errors)
        text += f"; resampling {way}: {np.sqrt(np.mean(errors**2)):.2f}, {missed:.0f} % of intervals miss"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=120, help="of test scenes [120]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, list[np.ndarray]]] = []
    for seed in range(200, 200 + options.sets):
        config = tabletop.Config(kind="tabletop", size=64, val=120, seed=seed)
        found.append(judged(tabletop.open_split("tabletop", config, Path(), "val")))
        tabletop._sample.cache_clear()  # or all scenes stay in memory
    print(line("one model", {way: np.stack([own[way][1] for own in found]) for way in WAYS}))
    print(line("difference of two", {way: np.stack([own[way][1] - own[way][0] for own in found]) for way in WAYS}))


if __name__ == "__main__":
    main()
