"""What a sharp map can be asked for besides agreeing with views: to be smooth, to follow the image, to look like the
teacher's features. All are off by default.

Shapes: B images, C channels, h w the teacher's grid, f factor, H = f·h, W = f·w, N points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Fully connected CRF (Krähenbühl & Koltun, arXiv 1210.5644) as FeatUp weighs it: variances of place (in sides) and
# colour for neighbours that look alike, of place alone for close ones, and the weights of both.
ALIKE_PLACE, ALIKE_COLOUR, CLOSE_PLACE = 0.1, 0.15, 0.005
ALIKE_WEIGHT, CLOSE_WEIGHT = 10.0, 3.0
POINTS = 1000  # that an image's pairs are made of
MOST = 4000  # features of either kind that distributions are compared by


def total_variation(x: Tensor) -> Tensor:
    """Mean smooth-L1 of the differences between neighbouring cells of B×C×H×W, along both axes."""
    axes = [dim for dim in (-2, -1) if x.shape[dim] > 1]
    return sum((F.smooth_l1_loss(*_neighbours(x, dim)) for dim in axes), x.new_zeros(()))


def _neighbours(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return x.narrow(dim, 1, x.shape[dim] - 1), x.narrow(dim, 0, x.shape[dim] - 1)


def draw_points(batch: int, generator: torch.Generator) -> Tensor:
    """Random places in images, B×N×2: (x, y) in −1 … 1."""
    return 2 * torch.rand(batch, POINTS, 2, generator=generator) - 1


def crf(sharp: Tensor, image: Tensor, points: Tensor) -> Tensor:
    """How different features are at places that look alike or are close: 0 where all point the same way.

    Mean over pairs of likeness · (1 − cosine) / (sum of weights) (after STEGO, arXiv 2203.08414).

    Args:
        sharp: B×C×H×W.
        image: B×3×any size, in [0, 1].
        points: B×N×2, see `draw_points`.
    """
    points = points.to(sharp)
    features, colours = (
        F.grid_sample(x.to(sharp.dtype), points[:, None], padding_mode="border", align_corners=False)[:, :, 0].mT
        for x in (sharp, image)
    )
    away = _distances(points / 2)
    alike = (-away / (2 * ALIKE_PLACE) - _distances(colours) / (2 * ALIKE_COLOUR)).exp()
    likeness = (ALIKE_WEIGHT * alike + CLOSE_WEIGHT * (-away / (2 * CLOSE_PLACE)).exp()) / (ALIKE_WEIGHT + CLOSE_WEIGHT)
    features = F.normalize(features, dim=-1)
    return (likeness * (1 - features @ features.mT)).mean()


def mmd(sharp: Tensor, low: Tensor) -> Tensor:
    """How unlike the teacher's features B×C×h×w those of the sharp map B×C×H×W are, as two clouds of points.

    Of each coarse cell the sharp feature nearest to the teacher's counts. Unbiased squared maximum mean discrepancy
    (Gretton et al. 2012, lemma 6) with a Gaussian kernel as wide as the median distance; about 0 for equal
    distributions, and sometimes below.
    """
    x, y = (_thinned(m.movedim(1, -1).flatten(0, 2)) for m in (nearest_cells(sharp, low), low))
    with torch.no_grad():
        both = torch.cat([x[:: 1 + len(x) // 500], y[:: 1 + len(y) // 500]])
        median = _distances(both)[~torch.eye(len(both), dtype=torch.bool, device=both.device)].median().clamp(min=1e-12)

    def alike(a: Tensor, b: Tensor) -> Tensor:
        return (-_distances(a, b) / (2 * median)).exp()

    def of_others(a: Tensor) -> Tensor:
        k = alike(a, a)
        return (k.sum() - k.diagonal().sum()) / max(1, len(a) * (len(a) - 1))

    return of_others(x) + of_others(y) - 2 * alike(x, y).mean()


def nearest_cells(sharp: Tensor, low: Tensor) -> Tensor:
    """B×C×H×W, B×C×h×w → B×C×h×w: of the f² sharp features in each coarse cell the one nearest to the coarse one."""
    factor = sharp.shape[-1] // low.shape[-1]
    cells = F.pixel_unshuffle(sharp, factor).unflatten(1, (sharp.shape[1], -1))  # B×C×f²×h×w
    nearest = (cells - low[:, :, None]).square().sum(1, keepdim=True).argmin(2, keepdim=True)
    return cells.gather(2, nearest.expand(-1, cells.shape[1], -1, -1, -1)).squeeze(2)


def _thinned(x: Tensor) -> Tensor:
    return x[:: -(-len(x) // MOST)]


def _distances(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Squared distances between the rows of …×N×C and …×M×C, without a tensor of N×M×C."""
    b = a if b is None else b
    squares = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    return (squares - 2 * a @ b.mT).clamp(min=0)
