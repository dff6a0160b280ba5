"""(seed, split, index) → the things on one table, their surroundings, and a camera for each view.

The main thing comes first. That it covers the largest part of the picture, and that every thing can be seen, is
measured on a coarse picture of its own, and what does not pass is drawn again: so the size rendered plays no part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from eval.tabletop.kinds import COLOURS, KIND, KINDS, MATERIALS, SIZES
from eval.tabletop.textures import PHOTOS
from eval.tabletop.trace import Camera, Thing, camera_towards, first_hits
from teachers.seeding import numpy_rng

MAX_THINGS = 4
_COUNT_ODDS = (0.2, 0.3, 0.3, 0.2)  # of 1, 2, 3, 4 things
_COARSE = 40  # side of the picture on which areas are measured
_MAIN_SHARE = 0.04  # of the picture, at least
_MAIN_LEAD = 1.25  # times the next largest, at least
_VISIBLE = 8  # coarse pixels that every thing shows, at least
_ATTEMPTS = 60


@dataclass(frozen=True)
class Surface:
    """A plane's look: a photograph laid on it with a turn, an offset and a scale (metres a photograph), tinted."""

    photo: str
    turn: float
    offset: tuple[float, float]
    span: float
    contrast: float
    tint: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Layout:
    """Everything about a scene but the camera. `things[0]` is the main one."""

    things: list[Thing]
    table: Surface
    wall: Surface
    light: ndarray  # 3, unit, towards the key light
    key: ndarray  # 3, its linear RGB
    ambient: ndarray  # 3


def _draw_thing(rng: np.random.Generator, largest: str = "large") -> Thing:
    """A thing in the middle of the table, of a size up to `largest`."""
    sizes = list(SIZES)
    kind, size = KIND[KINDS[rng.integers(len(KINDS))]], sizes[rng.integers(sizes.index(largest) + 1)]
    colour, material = (list(words)[rng.integers(len(words))] for words in (COLOURS, MATERIALS))
    scale = float(SIZES[size] * rng.uniform(0.95, 1.05))
    x, y = rng.uniform(-0.05, 0.05, 2)
    position = np.array([x, y, -kind.bottom * scale], np.float32)
    return Thing(kind.name, colour, material, size, scale, position, float(rng.uniform(0, 2 * np.pi)))


def _apart(first: Thing, second: Thing) -> bool:
    (x1, y1, _), (x2, y2, _) = first.position, second.position
    room = first.shape.footprint * first.scale + second.shape.footprint * second.scale
    return math.hypot(x1 - x2, y1 - y2) > room + 0.01


def _draw_others(main: Thing, count: int, rng: np.random.Generator) -> list[Thing]:
    """Up to `count` things around the main one, more of them behind it than before it, none inside another."""
    things = [main]
    for _ in range(count):
        other = _draw_thing(rng, main.size)
        for _ in range(12):
            other.position[:2] = rng.uniform((-0.36, -0.08), (0.36, 0.5))
            if all(_apart(other, thing) for thing in things):
                things.append(other)
                break
    return things


def _draw_surface(rng: np.random.Generator, contrast: tuple[float, float]) -> Surface:
    hue = rng.uniform(0, 2 * np.pi)
    tint = rng.uniform(0.22, 0.6) * (1 + 0.25 * np.cos(hue + np.array([0, 2.1, 4.2])))
    return Surface(
        photo=PHOTOS[rng.integers(len(PHOTOS))],
        turn=float(rng.uniform(0, 2 * np.pi)),
        offset=(float(rng.uniform(0, 2)), float(rng.uniform(0, 2))),
        span=float(rng.uniform(0.5, 1.1)),
        contrast=float(rng.uniform(*contrast)),
        tint=tuple(float(c) for c in tint),
    )


def _draw_camera(things: list[Thing], rng: np.random.Generator) -> Camera:
    middle = np.mean([thing.position for thing in things], axis=0)
    target = 0.7 * things[0].position + 0.3 * middle + rng.normal(0, 0.02, 3)
    azimuth, elevation = np.radians(rng.uniform(-32, 32)), np.radians(rng.uniform(17, 45))
    return camera_towards(target, azimuth, elevation, rng.uniform(0.6, 0.8), np.radians(rng.normal(0, 2)), 1.25)


def _areas(things: list[Thing], camera: Camera) -> ndarray:
    y, x = np.mgrid[:_COARSE, :_COARSE].reshape(2, -1).astype(np.float32) + np.float32(0.5)
    seen = first_hits(things, camera.position, camera.rays(x, y, _COARSE, _COARSE), surface=False).thing
    return np.bincount(seen[seen >= 0], minlength=len(things))


def _fair(areas: ndarray) -> bool:
    main, rest = areas[0], areas[1:].max(initial=0)
    return main >= _MAIN_SHARE * _COARSE**2 and main >= _MAIN_LEAD * rest and areas.min() >= _VISIBLE


def main_thing(seed: int, split: str, index: int) -> Thing:
    """The main thing of a scene, without the rest: to look for scenes of a kind or a colour."""
    return _draw_thing(numpy_rng("tabletop", seed, split, index, "main"))


def draw(seed: int, split: str, index: int, view: int = 0) -> tuple[Layout, Camera]:
    """The scene of that seed, split and index, and the camera of its `view` (0 is the one it was composed for)."""
    where = ("tabletop", seed, split, index)
    rng = numpy_rng(*where, "main")
    main, others = _draw_thing(rng), int(rng.choice(MAX_THINGS, p=_COUNT_ODDS))
    for attempt in range(_ATTEMPTS):
        rng = numpy_rng(*where, "layout", attempt)
        things = _draw_others(main, others, rng)
        first = _draw_camera(things, rng)
        if _fair(_areas(things, first)):
            break
    else:
        things = [main]  # alone, it is the largest
    rng = numpy_rng(*where, "surroundings")
    side, height = np.radians(rng.uniform(-70, 70)), np.radians(rng.uniform(35, 70))
    light = np.array([np.sin(side) * np.cos(height), -np.cos(side) * np.cos(height), np.sin(height)], np.float32)
    warmth = rng.uniform(-0.06, 0.06)
    layout = Layout(
        things,
        table=_draw_surface(rng, (0.25, 0.6)),
        wall=_draw_surface(rng, (0.15, 0.45)),
        light=light,
        key=(rng.uniform(0.75, 1.05) * np.array([1 + warmth, 1, 1 - warmth])).astype(np.float32),
        ambient=(rng.uniform(0.3, 0.45) * np.array([1 - warmth, 1, 1 + warmth])).astype(np.float32),
    )
    if view == 0:
        return layout, first
    for attempt in range(_ATTEMPTS):
        camera = _draw_camera(things, numpy_rng(*where, "view", view, attempt))
        if _fair(_areas(things, camera)):
            return layout, camera
    return layout, first
