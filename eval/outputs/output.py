"""What is predicted of every pixel, and how: the contract between a head with several answers and each of them.

Shapes: N pictures, B of a step, C channels of an output, L×L label grid, H×W a test picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.split import WORDS, Split
from eval.probes import ProbeSettings
from eval.scores import MetricScore
from teachers.errors import UserError


class DenseSettings(ProbeSettings):
    """What outputs can be told."""

    boundary_weight: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="of boundary pixels in their loss; others 1 − it (published: 0.95, on NYUDv2 also 0.8)"
    )
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.0075, description="of boundaries, share of the diagonal (published: 0.0075, on NYUDv2 0.011)"
    )
    thresholds: Annotated[int, Field(ge=1)] = Field(
        15, description="at which boundaries are cut out (BSDS: 99, which takes six times as long)"
    )


class Output(ABC):
    """One quantity, learnt from `train` and scored on `val`; raises `UserError` where either lacks it."""

    kind: ClassVar[str]  # of truth
    metric: ClassVar[str]  # its name in the report
    channels = 1

    def __init__(self, train: Split, val: Split, settings: DenseSettings):
        train.truth(self.kind)
        self.val, self.settings, self.truth = val, settings, val.truth(self.kind)

    @abstractmethod
    def loss(self, answer: Tensor, chosen: Tensor) -> Tensor:
        """Of answers B×C×L×L against the training pictures numbered `chosen`; a scalar."""

    @abstractmethod
    def judge(self, index: int, answer: Tensor) -> np.ndarray:
        """What test picture `index` contributes to the score, by its answer C×L×L."""

    @abstractmethod
    def score(self, contributions: np.ndarray) -> MetricScore:
        """The figure, of N×... contributions."""

    @abstractmethod
    def paint(self, index: int, answer: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(truth, answer) of a test picture, each H×W×3 uint8."""

    def facts(self, contributions: np.ndarray) -> dict[str, Any]:
        """What else is worth knowing."""
        return {}

    def _compared(self, index: int, answer: Tensor) -> tuple[Tensor, Tensor]:
        """The truth of a test picture, and the answer enlarged to its size."""
        truth = self.truth(index).to(answer.device)
        return truth, enlarged(answer, truth.shape[-2:])

    def _missing(self, split: Split, what: str) -> UserError:
        return UserError(f"no {what} in the {WORDS[self.kind]} of {split}", expected="some in its pictures")


def enlarged(answer: Tensor, size: Sequence[int]) -> Tensor:
    """(B×)C×L×L → (B×)C×size, bilinearly."""
    batch = answer if answer.ndim == 4 else answer[None]
    large = F.interpolate(batch, tuple(size), mode="bilinear", align_corners=False)
    return large if answer.ndim == 4 else large[0]
