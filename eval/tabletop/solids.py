"""Rays → where they meet four kinds of analytic solid, and the surface's outward normal there.

Shapes: everything is float32 with the three coordinates first, `3×N`; distances along rays are `N`, infinite on a miss.
(`x.take(i, 1)` stands where `x[:, i]` would: numpy is several times faster at it.)
Rays come in a solid's own frame with unit directions. `near` (scalar or N) is the distance before which nothing counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

Vector = tuple[float, float, float]


def dot(a: ndarray, b: ndarray) -> ndarray:
    """Inner products of the columns."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(a: ndarray) -> ndarray:
    """Columns scaled to length 1."""
    return a / np.sqrt(dot(a, a))


def column(values: Vector) -> ndarray:
    return np.asarray(values, np.float32)[:, None]


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with axes along x, y, z."""

    centre: Vector
    radii: Vector

    def hit(self, o: ndarray, d: ndarray, near: ndarray | float) -> ndarray:
        radii = column(self.radii)
        o, d = (o - column(self.centre)) / radii, d / radii
        a, b, c = dot(d, d), dot(o, d), dot(o, o) - 1
        discriminant = b * b - a * c
        t = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
        return np.where((discriminant > 0) & (t > near), t, np.inf)

    def normal(self, p: ndarray) -> ndarray:
        return unit((p - column(self.centre)) / column(self.radii) ** 2)


@dataclass(frozen=True)
class Frustum:
    """A capped cone between two discs on its axis (0 = x, 1 = y, 2 = z): a cylinder, a cone or what lies between."""

    centre: Vector  # of the first disc
    height: float
    radii: tuple[float, float]  # of the first and the last disc
    axis: int = 2

    def _upright(self, v: ndarray) -> ndarray:
        return v if self.axis == 2 else v[self._order()]

    def _order(self) -> list[int]:
        """The coordinates across the axis and then the one along it."""
        return [(self.axis + 1) % 3, (self.axis + 2) % 3, self.axis]

    def hit(self, o: ndarray, d: ndarray, near: ndarray | float) -> ndarray:
        o, d = self._upright(o - column(self.centre)), self._upright(d)
        first, last = self.radii
        slope = (last - first) / self.height
        wide = first + slope * o[2]
        a = d[0] ** 2 + d[1] ** 2 - (slope * d[2]) ** 2
        b = o[0] * d[0] + o[1] * d[1] - slope * d[2] * wide
        c = o[0] ** 2 + o[1] ** 2 - wide * wide
        root = np.sqrt(np.maximum(b * b - a * c, 0))
        a = np.where(np.abs(a) < 1e-6, np.float32(1e-6), a)
        best = np.full_like(a, np.inf)
        for t in ((-b - root) / a, (-b + root) / a):
            z = o[2] + t * d[2]
            good = (b * b > a * c) & (z >= 0) & (z <= self.height) & (t > near) & (t < best)
            best = np.where(good, t, best)
        flat = np.where(np.abs(d[2]) < 1e-9, np.float32(1e-9), d[2])
        for z, radius in ((0.0, first), (self.height, last)):
            t = (np.float32(z) - o[2]) / flat
            x, y = o[0] + t * d[0], o[1] + t * d[1]
            good = (x * x + y * y < radius * radius) & (t > near) & (t < best)
            best = np.where(good, t, best)
        return best

    def normal(self, p: ndarray) -> ndarray:
        p = self._upright(p - column(self.centre))
        first, last = self.radii
        slope = (last - first) / self.height
        reach = np.sqrt(p[0] ** 2 + p[1] ** 2)
        lean = np.sqrt(1 + slope * slope)
        side = np.stack([p[0], p[1], -slope * reach]) / np.maximum(reach * lean, 1e-9)
        # The surface that the point lies on is the one whose residual is smallest.
        gap = np.stack([np.abs(first + slope * p[2] - reach) / lean, np.abs(p[2]), np.abs(p[2] - self.height)])
        surface = np.argmin(gap, axis=0)
        n = np.where(surface == 0, side, 0).astype(np.float32)
        n[2] += (surface == 2).astype(np.float32) - (surface == 1)
        turned = np.empty_like(n)
        turned[self._order()] = n
        return turned


@dataclass(frozen=True)
class Polytope:
    """A convex polyhedron: all points with `normal · p ≤ offset` for each of its faces."""

    faces: tuple[tuple[Vector, float], ...]

    def _planes(self) -> tuple[ndarray, ndarray]:
        normals = np.array([n for n, _ in self.faces], np.float32)
        lengths = np.linalg.norm(normals, axis=1)
        return normals / lengths[:, None], np.array([o for _, o in self.faces], np.float32) / lengths

    def hit(self, o: ndarray, d: ndarray, near: ndarray | float) -> ndarray:
        normals, offsets = self._planes()
        speed = normals @ d
        t = (offsets[:, None] - normals @ o) / np.where(speed == 0, np.float32(1e-9), speed)
        enter = np.where(speed < 0, t, -np.inf).max(0)
        leave = np.where(speed < 0, np.inf, t).min(0)
        return np.where((enter < leave) & (enter > near), enter, np.inf)

    def normal(self, p: ndarray) -> ndarray:
        normals, offsets = self._planes()
        return normals.T.take(np.argmax(normals @ p - offsets[:, None], axis=0), 1)


def box(centre: Vector, half: Vector) -> Polytope:
    """An axis-aligned box."""
    faces = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            normal = tuple(sign if i == axis else 0.0 for i in range(3))
            faces.append((normal, sign * centre[axis] + half[axis]))
    return Polytope(tuple(faces))


@dataclass(frozen=True)
class Torus:
    """A torus around the z axis, found by sphere tracing (its distance is exact) and polished by two Newton steps."""

    ring: float  # radius of the centre line
    tube: float

    def _distance(self, p: ndarray) -> ndarray:
        around = np.sqrt(p[0] ** 2 + p[1] ** 2) - self.ring
        return np.sqrt(around * around + p[2] ** 2) - self.tube

    def hit(self, o: ndarray, d: ndarray, near: ndarray | float) -> ndarray:
        # Enter and leave the slab |z| ≤ tube and the enclosing sphere: all of the surface lies in both.
        reach = self.ring + self.tube
        b = dot(o, d)
        half = np.sqrt(np.maximum(b * b - dot(o, o) + reach * reach, 0))
        flat = np.where(np.abs(d[2]) < 1e-9, np.float32(1e-9), d[2])
        slab = np.sort(np.stack([(-self.tube - o[2]) / flat, (self.tube - o[2]) / flat]), axis=0)
        start = np.maximum(np.maximum(-b - half, slab[0]), near)
        stop = np.minimum(-b + half, slab[1])
        t = np.full_like(b, np.inf)
        live = np.flatnonzero(start < stop)
        step, o, d, stop = start[live], o.take(live, 1), d.take(live, 1), stop[live]
        for _ in range(32):  # a ray that grazes one side on its way to the other takes many steps
            for _ in range(4):  # a ray that has arrived stays where it is, so looking at every fourth step is enough
                gap = self._distance(o + step * d)
                step = step + gap
            done = gap < 1e-4
            t[live[done]] = step[done]
            keep = np.flatnonzero(~done & (step < stop))
            if not len(keep):
                break
            live, step, o, d, stop = live[keep], step[keep], o.take(keep, 1), d.take(keep, 1), stop[keep]
        return t

    def polish(self, o: ndarray, d: ndarray, t: ndarray) -> ndarray:
        """Distances that `hit` found, taken from within 1e-4 of the surface to within rounding of it."""
        for _ in range(2):
            p = o + t * d
            speed = dot(self.normal(p), d)
            t = t - np.where(speed < -0.05, self._distance(p) / np.minimum(speed, -0.05), 0)
        return t

    def normal(self, p: ndarray) -> ndarray:
        reach = np.maximum(np.sqrt(p[0] ** 2 + p[1] ** 2), 1e-9)
        pull = 1 - self.ring / reach
        return unit(np.stack([p[0] * pull, p[1] * pull, p[2]]))


Solid = Ellipsoid | Frustum | Polytope | Torus
