"""Scenes → a contact sheet: a row a scene, its labels side by side, its first caption below."""

from __future__ import annotations

import io

import numpy as np
from numpy import ndarray
from PIL import Image

from eval.tabletop.render import Scene, render

_TITLES = ("image", "boxes", "instances", "kinds", "parts", "main, edges", "depth", "normals", "own frame", "view 1")


def _panels(scene: Scene, other: Scene) -> list[ndarray]:
    """The pictures of one row, each H×W×3 or H×W with the colour map's limits taken from the data."""
    from matplotlib import colormaps

    def labels(mask: ndarray) -> ndarray:
        return colormaps["tab20"](mask % 20)[..., :3]

    boundaries = 0.35 * scene.image / 255.0
    boundaries[scene.saliency] += (0.25, 0.1, 0.0)
    boundaries[scene.boundaries] = 1
    near, far = scene.depth.min(), scene.depth.max()
    depth = colormaps["viridis"]((scene.depth - near) / (far - near))[..., :3]
    own = np.nan_to_num(scene.coordinates / 2.4 + 0.5)
    views = (scene.image, scene.image, labels(scene.instances), labels(scene.semantic), labels(scene.parts))
    return [*views, boundaries, depth, scene.normals / 2 + 0.5, own.clip(0, 1), other.image]


def sheet(seed: int, split: str, scenes: int, size: int = 128) -> Image.Image:
    """Scenes 0 to `scenes` of that seed and split, with every label."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(1.5 * len(_TITLES), 1.7 * scenes + 0.3))
    room = {"left": 0.005, "right": 0.995, "bottom": 0.01, "top": 1 - 0.45 / (1.7 * scenes + 0.3)}
    grid = figure.subplots(scenes, len(_TITLES), squeeze=False, gridspec_kw={**room, "wspace": 0.03, "hspace": 0.16})
    for row in range(scenes):
        scene = render(seed, split, row, size)
        for axes, panel in zip(grid[row], _panels(scene, render(seed, split, row, size, view=1))):
            axes.imshow(panel, interpolation="nearest")
            axes.set_axis_off()
        for thing, (x0, y0, x1, y1) in zip(scene.things, scene.boxes):
            grid[row, 1].add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color="white", lw=1))
            grid[row, 1].text(x0, y0 - 2, thing.kind, color="white", fontsize=6, clip_on=True)
        grid[row, 0].set_title(scene.captions[0], fontsize=8, loc="left")
    for axes, title in zip(grid[0], _TITLES):
        axes.text(0.5, 1.15, title, transform=axes.transAxes, ha="center", fontsize=8, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return Image.open(buffer).convert("RGB")
