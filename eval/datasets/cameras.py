"""Turns depth and a pinhole camera into points of the world, and points into surface normals.

Camera frames are OpenCV's: x right, y down, z forward; x_camera = rotation @ (x_world − position), metres. The centre
of row i, column j lies at x = j + 0.5, y = i + 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera."""

    intrinsics: Tensor  # 3×3 float64, pixels
    rotation: Tensor  # 3×3 float64, world → camera
    position: Tensor  # 3 float64, metres

    @classmethod
    def of(cls, intrinsics: np.ndarray, rotation: np.ndarray, position: np.ndarray) -> Camera:
        """From arrays of any float type."""
        return cls(*(torch.from_numpy(np.asarray(part, np.float64)) for part in (intrinsics, rotation, position)))

    def local(self, depth: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Depth H×W (metres along z) at the image points x (W) and y (H), pixels → 3×H×W in the camera's frame."""
        y, x = torch.meshgrid(y.double(), x.double(), indexing="ij")
        rays = torch.linalg.inv(self.intrinsics) @ torch.stack([x, y, torch.ones_like(x)]).flatten(1)
        return (rays * depth.double().flatten()).unflatten(1, depth.shape)

    def world(self, local: Tensor) -> Tensor:
        """Points 3×... of the camera's frame → world."""
        return (self.rotation.T @ local.flatten(1) + self.position[:, None]).unflatten(1, local.shape[1:])

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points ...×3 → image points ...×2 (x, y in pixels) and depths ..., metres."""
        local = (points.double() - self.position) @ self.rotation.T
        image = local @ self.intrinsics.T
        return image[..., :2] / image[..., 2:], local[..., 2]


def world_points(depth: Tensor, camera: Camera) -> Tensor:
    """Depth H×W of a whole picture → world coordinates of each pixel's centre, 3×H×W float32."""
    y, x = (torch.arange(side) + 0.5 for side in depth.shape)
    return camera.world(camera.local(depth, x, y)).float()


def turn_between(first: Tensor, second: Tensor) -> float:
    """Degrees of the turn that takes one camera's axes (3×3) to another's: the angle of a pair of views."""
    cosine = (float((first @ second.T).trace()) - 1) / 2
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))


def normals_of(points: Tensor) -> Tensor:
    """Points of the camera's frame 3×H×W → unit normals 3×H×W that face the camera, NaN where one is unknown.

    The chords between a pixel's neighbours span its surface; where one of the four is unknown, or a chord is no
    longer than a point (of a map enlarged from fewer pixels), so is the normal.
    """
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    normals = torch.linalg.cross(down, across, dim=0)
    length = normals.norm(dim=0)
    normals = (normals / length).masked_fill(length == 0, torch.nan)
    away = (normals * points[:, 1:-1, 1:-1]).sum(dim=0) > 0
    normals = torch.where(away, -normals, normals)
    return F.pad(normals, (1, 1, 1, 1), value=torch.nan)
