"""(seed, split, index) → a `Scene`: one picture of the tabletop with every label, exact at the centre of each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from eval.tabletop.kinds import KINDS, part_ids
from eval.tabletop.layout import Layout, draw
from eval.tabletop.shade import shade, shadows, stripe
from eval.tabletop.textures import to_srgb
from eval.tabletop.trace import WALL_ID, Camera, Hits, Thing, first_hits

# Where in a pixel an edge is sampled again: a rotated grid.
_SUBPIXELS = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture, `H×W`, and the truth about it. Things are numbered from 1 in the masks; thing 1 is the main one."""

    seed: int
    split: str
    index: int
    view: int
    image: ndarray  # H×W×3 uint8, sRGB
    label: int  # the class: the main thing's kind, an index into KINDS
    things: list[Thing]  # n; things[0] is the main one
    instances: ndarray  # H×W uint8: 0 = table or wall, i + 1 = things[i]
    semantic: ndarray  # H×W uint8, an index into SEMANTIC_NAMES: 0 table, 1 wall, 2.. kinds
    parts: ndarray  # H×W uint8, an index into PART_NAMES: 0 = background
    saliency: ndarray  # H×W bool: the main thing
    boundaries: ndarray  # H×W bool: the right or the lower neighbour belongs to something else
    depth: ndarray  # H×W float32, metres along the camera's axis (z, not the ray's length)
    normals: ndarray  # H×W×3 float32, unit, camera frame (x right, y down, z forward)
    coordinates: ndarray  # H×W×3 float32, in the thing's own frame (in its units; NaN on table and wall)
    boxes: ndarray  # n×4 int: x0, y0, x1, y1 of each thing, the last two exclusive (all 0 where nothing is seen)
    intrinsics: ndarray  # 3×3: pixels; the centre of row i, column j is at (j + 0.5, i + 0.5)
    rotation: ndarray  # 3×3 ┐ x_camera = rotation @ (x_world - position), metres
    position: ndarray  # 3   ┘
    captions: list[str]  # several; the first names every thing and how it looks
    questions: list[tuple[str, str]]  # (question, answer)

    @property
    def kind(self) -> str:
        """The class's name."""
        return KINDS[self.label]

    def points(self) -> ndarray:
        """World coordinates of what each pixel's centre shows, `H×W×3` metres, from the depth alone."""
        height, width = self.depth.shape
        y, x = np.mgrid[:height, :width] + 0.5
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(self.intrinsics.astype(np.float64)).T
        return (rays * self.depth[..., None]) @ self.rotation + self.position

    def project(self, points: ndarray) -> tuple[ndarray, ndarray]:
        """World points `...×3` → image points `...×2` (x, y in pixels) and depths `...` in metres, in this view."""
        local = (points - self.position) @ self.rotation.T
        image = local @ self.intrinsics.T.astype(np.float64)
        return image[..., :2] / image[..., 2:], local[..., 2]


def _edges(codes: ndarray) -> ndarray:
    """Pixels of `H×W` whose right or lower neighbour has another code."""
    edges = np.zeros(codes.shape, bool)
    edges[:, :-1] |= codes[:, :-1] != codes[:, 1:]
    edges[:-1] |= codes[:-1] != codes[1:]
    return edges


def _picture(layout: Layout, camera: Camera, rays: ndarray, hits: Hits, x: ndarray, y: ndarray, size) -> ndarray:
    """The picture: one sample a pixel, and four where something ends."""
    height, width = size
    focal = camera.focal * min(size)
    dark = shadows(layout, hits)
    codes = (hits.thing.astype(np.int32) * 64 + hits.solid.astype(np.int32) * 4 + stripe(hits) * 2 + dark).reshape(size)
    edges = _edges(codes)
    edges[:, 1:] |= codes[:, :-1] != codes[:, 1:]
    edges[1:] |= codes[:-1] != codes[1:]
    plain, fine = np.flatnonzero(~edges), np.flatnonzero(edges)
    colour = np.empty_like(rays)
    colour[:, plain] = shade(layout, hits.take(plain), rays.take(plain, 1), dark[plain], focal)
    if len(fine):
        xs = np.concatenate([x[fine] + np.float32(dx) for dx, _ in _SUBPIXELS])
        ys = np.concatenate([y[fine] + np.float32(dy) for _, dy in _SUBPIXELS])
        rays = camera.rays(xs, ys, height, width)
        again = first_hits(layout.things, camera.position, rays)
        light = shade(layout, again, rays, shadows(layout, again), focal)
        # Each sample is clipped before the mean, or a highlight's edge would stay jagged.
        colour[:, fine] = np.minimum(light, 1).reshape(3, len(_SUBPIXELS), -1).mean(1)
    return np.ascontiguousarray(to_srgb(colour).T).reshape(height, width, 3)


def _boxes(instances: ndarray, count: int) -> ndarray:
    boxes = np.zeros((count, 4), np.int64)
    for i in range(count):
        mine = instances == i + 1
        rows, columns = np.flatnonzero(mine.any(1)), np.flatnonzero(mine.any(0))
        if len(rows):
            boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def render(seed: int, split: str, index: int, size: int | tuple[int, int] = 128, view: int = 0) -> Scene:
    """The scene of that seed, split and index, the same on every machine.

    Args:
        size: side in pixels, or (height, width); the shorter side's field of view is always the same.
        view: 0, or the number of another camera on the same scene.
    """
    layout, camera = draw(seed, split, index, view)
    return render_layout(layout, camera, size, seed=seed, split=split, index=index, view=view)


def render_layout(layout: Layout, camera: Camera, size: int | tuple[int, int] = 128, **where) -> Scene:
    """A scene that was put together otherwise; `where` names it (seed, split, index, view)."""
    from eval.tabletop.captions import captions, questions

    height, width = size = (size, size) if isinstance(size, int) else tuple(size)
    things = layout.things
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32) + np.float32(0.5)
    rays = camera.rays(x, y, height, width)
    hits = first_hits(things, camera.position, rays)
    image = _picture(layout, camera, rays, hits, x, y, size)

    instances = np.maximum(hits.thing + 1, 0).astype(np.uint8).reshape(size)
    semantic_of = np.array([0] + [2 + KINDS.index(thing.kind) for thing in things], np.uint8)
    semantic = semantic_of[instances]
    semantic[hits.thing.reshape(size) == WALL_ID] = 1
    part_of = np.zeros((len(things) + 1, 8), np.uint8)
    for i, thing in enumerate(things):
        ids = part_ids(thing.shape)
        part_of[i + 1, : len(ids)] = ids
    local_normals = camera.rotation @ hits.normals
    depth = (camera.rotation[2] @ rays) * hits.distance
    scene_facts = (things, camera, size)
    return Scene(
        **where, image=image, label=KINDS.index(things[0].kind), things=things,
        instances=instances, semantic=semantic, parts=part_of[instances, hits.solid.reshape(size)],
        saliency=instances == 1, boundaries=_edges(hits.thing.reshape(size)),
        depth=depth.reshape(size), normals=np.ascontiguousarray(local_normals.T).reshape(height, width, 3),
        coordinates=np.ascontiguousarray(hits.own.T).reshape(height, width, 3),
        boxes=_boxes(instances, len(things)), intrinsics=camera.intrinsics(height, width),
        rotation=camera.rotation, position=camera.position,
        captions=captions(*scene_facts[:2]), questions=questions(*scene_facts[:2]),
    )  # fmt: skip
