"""A camera and the things on the table → what every ray meets first.

The world is right-handed and metric: z up, the table is z = 0, the wall the plane y = `WALL`. Camera frames are
OpenCV's: x right, y down, z forward; the centre of the pixel in row i, column j is at (j + 0.5, i + 0.5).
Shapes: coordinates first, `3×N`, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from eval.tabletop.kinds import KIND, Kind
from eval.tabletop.solids import Torus, dot

WALL = 0.95
TABLE_ID, WALL_ID = -1, -2  # what a ray meets where it meets no thing


@dataclass(frozen=True, eq=False)
class Thing:
    """One object: its words, and where it stands. `scale` is metres a unit of the kind's own frame."""

    kind: str
    colour: str
    material: str
    size: str
    scale: float
    position: ndarray  # 3, world, of the origin of its own frame
    yaw: float  # radians around z

    @property
    def shape(self) -> Kind:
        return KIND[self.kind]

    @property
    def rotation(self) -> ndarray:
        """3×3, own frame → world."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera. `rotation` (3×3) and `position` (3): x_camera = rotation @ (x_world - position)."""

    rotation: ndarray
    position: ndarray
    focal: float  # as a fraction of the image's shorter side

    def intrinsics(self, height: int, width: int) -> ndarray:
        """3×3, pixels."""
        f = self.focal * min(height, width)
        return np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], np.float32)

    def rays(self, x: ndarray, y: ndarray, height: int, width: int) -> ndarray:
        """Unit directions `3×N` in the world through image points (in pixels)."""
        f = np.float32(self.focal * min(height, width))
        local = np.stack([(x - width / 2) / f, (y - height / 2) / f, np.ones_like(x)]).astype(np.float32)
        world = self.rotation.T @ local
        return world / np.sqrt(dot(local, local))


@dataclass
class Hits:
    """What N rays met."""

    distance: ndarray  # N, metres along the ray
    thing: ndarray  # N, index of a thing, or TABLE_ID or WALL_ID
    solid: ndarray  # N, index among the thing's parts (0 off the things)
    points: ndarray  # 3×N, world
    normals: ndarray  # 3×N, world, unit
    own: ndarray  # 3×N, in the thing's own frame; NaN off the things

    def take(self, rays: ndarray) -> Hits:
        """Those of some rays (indices)."""
        return Hits(*(values.take(rays, -1) for values in vars(self).values()))


def near_rays(thing: Thing, origins: ndarray, directions: ndarray) -> tuple[ndarray, ndarray]:
    """Which rays come near a thing (`M` indices), and all rays' distance to the point closest to its middle (N)."""
    to = thing.position[:, None] - origins
    along = dot(to, directions)
    reach = np.float32(thing.shape.reach * thing.scale)
    close = (dot(to, to) - along * along < reach * reach) & (along > -reach)
    return np.flatnonzero(close), along


def _own_rays(thing: Thing, origins: ndarray, directions: ndarray, along: ndarray) -> tuple[ndarray, ndarray]:
    """Rays in the thing's own frame, begun at their point closest to its middle (which keeps float32 exact enough)."""
    turn = thing.rotation.T
    start = origins + along * directions - thing.position[:, None]
    return (turn @ start) / np.float32(thing.scale), turn @ directions


def blocked(thing: Thing, origins: ndarray, directions: ndarray, far: float = 1e-3) -> ndarray:
    """Whether each of N rays in one direction (3×1) meets the thing beyond `far` metres (for shadows)."""
    rays, along = near_rays(thing, origins, directions)
    along = along[rays]
    result = np.zeros(origins.shape[1], bool)
    o, d = _own_rays(thing, origins.take(rays, 1), directions, along)
    d = np.broadcast_to(d, o.shape)
    near = (np.float32(far) - along) / np.float32(thing.scale)
    for part in thing.shape.parts:
        result[rays] |= np.isfinite(part.solid.hit(o, d, near))
    return result


def _ground(origin: ndarray, directions: ndarray) -> tuple[ndarray, ndarray]:
    """Distance to the table or the wall (N), and which of the two."""
    up, deep = directions[2], directions[1]
    with np.errstate(divide="ignore"):
        table = np.where(up < 0, -origin[2] / up, np.inf)
        wall = np.where(deep > 0, (np.float32(WALL) - origin[1]) / deep, np.inf)
    return np.minimum(table, wall), np.where(table <= wall, TABLE_ID, WALL_ID).astype(np.int8)


def first_hits(things: list[Thing], origin: ndarray, directions: ndarray, surface: bool = True) -> Hits:
    """What rays from one point (3) in `directions` (3×N) meet first; `surface=False`: which thing, and no more."""
    origins = origin[:, None]
    distance, thing_of = _ground(origin, directions)
    solid_of = np.zeros(len(distance), np.int8)
    normals, own = np.zeros_like(directions), np.full_like(directions, np.nan)
    normals[2] = thing_of == TABLE_ID
    normals[1] = -(thing_of == WALL_ID).astype(np.float32)
    for index, thing in enumerate(things):
        rays, along = near_rays(thing, origins, directions)
        along = along[rays]
        o, d = _own_rays(thing, origins, directions.take(rays, 1), along)
        best, solid = _nearest_part(thing, o, d, -along / np.float32(thing.scale))
        seen = np.flatnonzero(best * np.float32(thing.scale) + along < distance[rays])
        rays, o, d, best, solid = rays[seen], o.take(seen, 1), d.take(seen, 1), best[seen], solid[seen]
        thing_of[rays], solid_of[rays] = index, solid
        if surface:
            best, points, local = _surface(thing, o, d, best, solid)
            # A thing in front of an earlier one overwrites it here; one behind was dropped above.
            own[:, rays], normals[:, rays] = points, thing.rotation @ local
        distance[rays] = best * np.float32(thing.scale) + along[seen]
    return Hits(distance, thing_of, solid_of, origins + distance * directions, normals, own)


def _nearest_part(thing: Thing, o: ndarray, d: ndarray, near: ndarray) -> tuple[ndarray, ndarray]:
    """Distance (in the thing's units) to its nearest solid, and that solid's number."""
    best, solid = np.full(o.shape[1], np.inf, np.float32), np.zeros(o.shape[1], np.int8)
    for number, part in enumerate(thing.shape.parts):
        t = part.solid.hit(o, d, near)
        closer = t < best
        best[closer], solid[closer] = t[closer], number
    return best, solid


def _surface(thing: Thing, o: ndarray, d: ndarray, t: ndarray, solid: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Distances (polished), points and normals in the thing's own frame."""
    local = np.empty_like(o)
    for number, part in enumerate(thing.shape.parts):
        mine = np.flatnonzero(solid == number)
        if isinstance(part.solid, Torus):
            t[mine] = part.solid.polish(o.take(mine, 1), d.take(mine, 1), t[mine])
        local[:, mine] = part.solid.normal(o.take(mine, 1) + t[mine] * d.take(mine, 1))
    return t, o + t * d, local


def _look_at(position: ndarray, target: ndarray, roll: float) -> ndarray:
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    return np.stack([c * right + s * down, c * down - s * right, forward])


def camera_towards(
    target: ndarray, azimuth: float, elevation: float, distance: float, roll: float, focal: float
) -> Camera:
    """A camera `distance` metres from `target`, `azimuth` to the side of straight before the wall (radians)."""
    away = np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)]
    )
    position = target + distance * away
    return Camera(_look_at(position, target, roll).astype(np.float32), position.astype(np.float32), float(focal))
