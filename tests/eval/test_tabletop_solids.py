"""The solids against an oracle: an inside test and many small steps along each ray."""

from __future__ import annotations

import numpy as np
import pytest

from eval.tabletop.kinds import KIND
from eval.tabletop.solids import Ellipsoid, Frustum, Polytope, Solid, Torus, box, dot

SOLIDS = {f"{kind.name}-{i}": part.solid for kind in KIND.values() for i, part in enumerate(kind.parts)}
SOLIDS["slanted cone"] = Frustum((0.1, -0.2, 0.3), 0.8, (0.3, 0.7), axis=1)


def inside(solid: Solid, p: np.ndarray) -> np.ndarray:
    if isinstance(solid, Ellipsoid):
        return (((p - np.array(solid.centre)[:, None]) / np.array(solid.radii)[:, None]) ** 2).sum(0) < 1
    if isinstance(solid, Torus):
        return (np.hypot(p[0], p[1]) - solid.ring) ** 2 + p[2] ** 2 < solid.tube**2
    if isinstance(solid, Polytope):
        return np.all([np.array(n) @ p < offset for n, offset in solid.faces], axis=0)
    q = np.delete(p - np.array(solid.centre)[:, None], solid.axis, axis=0)
    along = p[solid.axis] - solid.centre[solid.axis]
    radius = solid.radii[0] + (solid.radii[1] - solid.radii[0]) * along / solid.height
    return (along > 0) & (along < solid.height) & (np.hypot(*q) < radius)


def rays(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, count))
    start *= 3 / np.linalg.norm(start, axis=0)
    d = rng.uniform(-0.8, 0.8, (3, count)) - start
    return start.astype(np.float32), (d / np.linalg.norm(d, axis=0)).astype(np.float32)


@pytest.mark.parametrize("name", SOLIDS)
def test_a_ray_meets_a_solid_where_small_steps_first_enter_it(name):
    solid, (o, d) = SOLIDS[name], rays(400)
    steps = np.arange(1000) * 0.006
    entered = np.stack([inside(solid, o + t * d) for t in steps])
    t = solid.hit(o, d, 0.0)
    sure = entered.sum(0) > 3  # clearly through, rather than along an edge between two steps
    assert sure.sum() > 5
    np.testing.assert_allclose(t[sure], steps[entered.argmax(0)][sure], atol=0.0065)
    assert np.isinf(t[~entered.any(0)]).mean() > 0.9


@pytest.mark.parametrize("name", SOLIDS)
def test_normals_are_unit_and_point_out_of_the_solid(name):
    solid, (o, d) = SOLIDS[name], rays(400)
    t = solid.hit(o, d, 0.0)
    hit = np.isfinite(t)
    p = (o + np.where(hit, t, 0) * d)[:, hit]
    n = solid.normal(p)
    np.testing.assert_allclose(np.linalg.norm(n, axis=0), 1, atol=1e-4)
    assert (dot(n, d[:, hit]) < 0.02).all()
    assert not inside(solid, p + 0.02 * n).any()
    assert inside(solid, p - 0.005 * n).mean() > 0.95  # all but the points beside an edge


def test_nothing_before_near_counts():
    o, d = np.array([[0.0], [0.0], [3.0]], np.float32), np.array([[0.0], [0.0], [-1.0]], np.float32)
    solid = box((0, 0, 0), (1, 1, 1))
    assert solid.hit(o, d, 0.0)[0] == pytest.approx(2)
    assert np.isinf(solid.hit(o, d, 2.5)[0])
