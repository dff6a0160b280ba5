"""Trained sharpeners → pictures of what they do to a teacher's maps, and of the position noise they have learned."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featsharp import sharpener
from featsharp.runs import Run
from featsharp.tiles import shrink
from featsharp.upsamplers.base import enlarge
from teachers.features import Encoder, Size

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

CELL, ACROSS = 220, 8  # pixels of a picture in the panel, most pictures side by side


def maps_panel(
    runs: Sequence[Run], encoder: Encoder, shown: Callable[[Size], Tensor], device: torch.device | str
) -> Image:
    """A block an image, as figure 1 of FeatSharp (arXiv 2502.16025): the image, the teacher's map of it, the teacher's
    map of the enlarged image where it can take one, bilinear, each run's. One PCA basis for all, so equal colours mean
    equal features.

    Args:
        shown: a size → the same pictures at that size, B×3×H×W in [0, 1].
    """
    from teachers.pictures import PcaBasis, panel

    most = max(run.config.factor for run in runs)
    images = shown((encoder.native_size[0] * most, encoder.native_size[1] * most))
    columns = list(_columns(runs, encoder, images.to(device), device))
    basis = PcaBasis.fit([maps for _, maps in columns])
    rows = []
    for i, image in enumerate(images):
        pictures = [("image", image), *((title, basis.to_rgb(maps[i])) for title, maps in columns)]
        across = -(-len(pictures) // -(-len(pictures) // ACROSS))  # rows of about the same length
        rows += [pictures[start : start + across] for start in range(0, len(pictures), across)]
    return panel(rows, cell=CELL)


@torch.no_grad()
def _columns(
    runs: Sequence[Run], encoder: Encoder, images: Tensor, device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    """A title and B×C×h×w on the CPU for each map of the same images."""
    low = encoder(shrink(images, encoder.native_size)).spatial.cpu()
    height, width = encoder.native_size
    yield f"{encoder.name}, {height}×{width} px", low
    most = images.shape[-2] // height
    if encoder.resolution_flexible and most > 1:
        yield f"{encoder.name}, {most * height}×{most * width} px", encoder(images).spatial.cpu()
    plain = {f"bilinear {factor}x": factor for factor in sorted({run.config.factor for run in runs}) if factor > 1}
    for title, factor in plain.items():
        yield title, enlarge(low, factor)
    kinds = [kind(run) for run in runs]
    for run in runs:
        sharp = sharpener.load(run.export, encoder).to(device)
        title = f"{kind(run)}, trained" if kind(run) in plain else kind(run)
        title = title if kinds.count(kind(run)) == 1 else run.label
        yield title, sharp(shrink(images, sharp.native_size)).spatial.cpu()


def kind(run: Run) -> str:
    """What a run trained, in two words."""
    return f"{run.config.upsampler} {run.config.factor}x"


def bias_picture(runs: Sequence[Run], encoder: Encoder) -> Image | None:
    """The learned position biases, as figure 11 of FeatSharp: their PCA, and their norm a cell.

    None where no run has a bias. The norm is the root of the mean square over channels, in standard deviations of the
    teacher's features.
    """
    from matplotlib.figure import Figure

    from teachers.pictures import PcaBasis

    tables = {run.label: _bias_of(run, encoder) for run in runs}
    tables = {label: table for label, table in tables.items() if table is not None}
    if not tables:
        return None
    norms = {label: table.square().mean(0).sqrt() for label, table in tables.items()}
    most = max(norm.max().item() for norm in norms.values())
    _, height, width = next(iter(tables.values())).shape
    high = min(4.0, 0.4 + 2.6 * height / width)  # inches a run
    figure = Figure(figsize=(6.4, 0.3 + high * len(tables)), layout="constrained")
    figure.suptitle(f"Position bias learned for {encoder.name}", fontsize=10)
    for (label, table), (left, right) in zip(tables.items(), figure.subplots(len(tables), 2, squeeze=False)):
        left.imshow(PcaBasis.fit([table]).to_rgb(table))
        left.set_title(f"{label}: PCA", fontsize=9)
        norm = right.imshow(norms[label], cmap="viridis", vmin=0, vmax=max(most, 1e-6))
        right.set_title("norm", fontsize=9)
        bar = figure.colorbar(norm, ax=right, fraction=0.05)
        bar.set_label("RMS, in σ of the features", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        for axes in (left, right):
            axes.set_xticks([]), axes.set_yticks([])
    return as_picture(figure)


def _bias_of(run: Run, encoder: Encoder) -> Tensor | None:
    """C×h×w in PHI-S space, mean 0 a channel."""
    bias = sharpener.load(run.export, encoder).adapter.bias
    if bias is None:
        return None
    table = bias.table.detach()[0].float().cpu()
    return table - table.mean((1, 2), keepdim=True)


def as_picture(figure: Figure) -> Image:
    """A figure, drawn."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return Image.open(buffer).convert("RGB")
