"""Measures what jittered views cost a sharpener's training step, part by part: our one backward beside one a view.

    python benchmarks/views.py                           # a table for 1 and for 5 views
    python benchmarks/views.py --width 384 --grid 16     # of the teacher's map; it is sharpened 2 times

`forward` is the sharpener's (JBU and fusion), `views` the comparison of its map with every view (warp, downsampler,
both ways), `own backward` the rest of the backward: through fusion and JBU. `plain` is what takes the place of `views`
and `own backward` where every view's loss is walked back on its own, as the published trainer does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

import featsharp.consistency
from featsharp.config import SharpenerConfig
from featsharp.consistency import Sight
from featsharp.task import SharpenObjective
from teachers.catalogue import build
from teachers.seeding import torch_rng

VIEWS = (1, 5)


def view_by_view(inputs, parameters, terms) -> list[torch.Tensor]:
    """The terms as they are: each with a backward of its own through the sharpener."""
    return [term(*inputs) for term in terms]


def parts(objective: SharpenObjective, sight: Sight, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of one training step, by part."""
    model = objective.model
    model.zero_grad()
    begun = clock()
    sharp = model.adapter(sight.low, sight.tiles, sight.image)
    forward = clock() - begun
    del sharp
    begun = clock()
    loss, _ = model(sight)
    compared = clock() - begun - forward
    begun = clock()
    loss.backward()
    own = clock() - begun
    begun = clock()
    stands, featsharp.consistency.one_backward = featsharp.consistency.one_backward, view_by_view
    try:
        losses, _ = model(sight)
    finally:
        featsharp.consistency.one_backward = stands
    for n, loss in enumerate(losses, 1):
        loss.backward(retain_graph=n < len(losses))
    return {"forward": forward, "views": compared, "own backward": own, "plain": clock() - begun - forward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    side = 16 * options.grid
    encoder = build("random", patch=16, width=options.width, depth=1, image_size=side)
    rows: dict[int, dict[str, list[float]]] = {}
    made = {}
    for views in VIEWS:
        config = SharpenerConfig.model_validate({"views": {"jitters": views}, "losses": {"uncertainty": False}})
        objective = SharpenObjective(encoder, config, say=lambda text: None)
        images = torch.rand(options.batch, 3, *objective.image_size, generator=torch_rng("views"))
        made[views] = objective, objective.see(images, torch_rng("views", 0), drop=True)
        rows[views] = {}
    for repeat in range(options.repeats + 1):  # in turn, so that both meet the same machine
        for views, (objective, sight) in made.items():
            for name, seconds in parts(objective, sight, time.process_time).items():
                if repeat:
                    rows[views].setdefault(name, []).append(seconds)
    print(f"width {options.width}, {options.grid}×{options.grid} → {2 * options.grid}×{2 * options.grid}, 1 CPU thread")
    names = list(rows[VIEWS[0]])
    print(f"{'ms (CPU time)':16s}" + "".join(f"{name:>14s}" for name in names))
    for views in VIEWS:
        print(f"{views:2d} view{'s' if views > 1 else ' '}        " + "".join(
            f"{1e3 * median(rows[views][name]):14.1f}" for name in names
        ))  # fmt: skip
    few, many = (rows[n] for n in VIEWS)
    ratios = [median(b / a for a, b in zip(few[name], many[name])) for name in names]
    print(f"{'× ' + str(VIEWS[1]) + ' over ' + str(VIEWS[0]):16s}" + "".join(f"{ratio:14.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
