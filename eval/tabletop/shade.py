"""What rays met → linear RGB: textured planes, three materials, a key light with shadows, occluded ambient light."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from eval.tabletop.kinds import COLOURS
from eval.tabletop.layout import Layout, Surface
from eval.tabletop.solids import dot, unit
from eval.tabletop.textures import SIDE, look_up, to_linear
from eval.tabletop.trace import TABLE_ID, WALL_ID, Hits, blocked

_STRIPES = 2.6  # bands a unit of a thing's own height
_STRIPE_TINT = {"black": 0.13, "white": -0.5}  # the second colour of a striped thing: this far towards white (> 0) or
_STRIPE_TINT_ELSE = -0.7  # black (< 0); a black thing stays black and a white one white


def _tinted(colour: ndarray, tint: float) -> ndarray:
    return colour + (0.85 - colour) * tint if tint > 0 else colour * (1 + tint)


def stripe(hits: Hits) -> ndarray:
    """Which of two bands each point on a thing lies in (N booleans; False off the things)."""
    height = np.nan_to_num(hits.own[2])
    return (np.floor(height * 2 * _STRIPES).astype(np.int32) & 1).astype(bool)


def _plane_albedo(surface: Surface, u: ndarray, v: ndarray, pixel: float) -> ndarray:
    """Albedo `3×N` of a textured plane at `u`, `v` metres on it, where a pixel covers about `pixel` metres."""
    texel = surface.span / SIDE
    level = int(np.clip(np.round(np.log2(1.5 * pixel / texel)), 0, 4))
    c, s = np.cos(surface.turn) / surface.span, np.sin(surface.turn) / surface.span
    c, s = np.float32(c), np.float32(s)
    x = c * u - s * v + np.float32(surface.offset[0])
    y = s * u + c * v + np.float32(surface.offset[1])
    texture = look_up(surface.photo, level, x, y)
    tint = np.array(surface.tint, np.float32)[:, None]
    contrast = np.float32(surface.contrast)
    return np.clip(tint * (1 + contrast * (texture / np.float32(0.4) - 1)), 0.01, 0.95)


def _thing_albedo(layout: Layout, hits: Hits, albedo: ndarray) -> None:
    bands = stripe(hits)
    for index, thing in enumerate(layout.things):
        base = to_linear(np.array(COLOURS[thing.colour]))
        second = _tinted(base, _STRIPE_TINT.get(thing.colour, _STRIPE_TINT_ELSE))
        for number, part in enumerate(thing.shape.parts):
            mine = (hits.thing == index) & (hits.solid == number)
            np.copyto(albedo, _tinted(base, part.tint)[:, None], where=mine)
            if thing.material == "striped":
                np.copyto(albedo, _tinted(second, part.tint)[:, None], where=mine & bands)


def shadows(layout: Layout, hits: Hits) -> ndarray:
    """Which points the key light does not reach (N booleans)."""
    light = layout.light[:, None]
    dark = dot(hits.normals, light) <= 0
    lit = np.flatnonzero(~dark)
    start = hits.points.take(lit, 1) + np.float32(1e-3) * hits.normals.take(lit, 1)
    shaded = np.zeros(len(lit), bool)
    for thing in layout.things:
        shaded |= blocked(thing, start, light)
    dark[lit] = shaded
    return dark


def _openness(layout: Layout, hits: Hits) -> ndarray:
    """The share of ambient light that reaches each point: every other thing hides about what its sphere would."""
    share = np.ones_like(hits.distance)
    for index, thing in enumerate(layout.things):
        to = thing.position[:, None] - hits.points
        distance2 = np.maximum(dot(to, to), 1e-6)
        radius = np.float32(0.75 * thing.scale)
        facing = np.maximum(dot(to, hits.normals), 0) / np.sqrt(distance2)
        hidden = facing * np.minimum(radius * radius / distance2, 1)
        hidden[hits.thing == index] = 0
        share *= 1 - np.float32(0.85) * hidden
    below = np.where(hits.thing >= 0, 1 - hits.normals[2], 0)  # of a thing: less light comes from below
    return share * (1 - np.float32(0.25) * below)


def shade(layout: Layout, hits: Hits, directions: ndarray, dark: ndarray, focal: float) -> ndarray:
    """Linear RGB `3×N` of what the rays met. `dark` is `shadows`' answer; `focal` in pixels."""
    albedo = np.empty_like(hits.points)
    for code, surface, axes in ((TABLE_ID, layout.table, (0, 1)), (WALL_ID, layout.wall, (0, 2))):
        mine = np.flatnonzero(hits.thing == code)
        if len(mine):
            u, v = (hits.points[axis].take(mine) for axis in axes)
            albedo[:, mine] = _plane_albedo(surface, u, v, 1.0 / focal)  # about a metre away
    _thing_albedo(layout, hits, albedo)
    light = layout.light[:, None]
    direct = np.where(dark, 0, np.maximum(dot(hits.normals, light), 0))
    colour = albedo * (layout.ambient[:, None] * _openness(layout, hits) + layout.key[:, None] * direct)
    shiny = [index for index, thing in enumerate(layout.things) if thing.material == "shiny"]
    points = np.flatnonzero(np.isin(hits.thing, shiny)) if shiny else []
    if len(points):
        normals, rays = hits.normals.take(points, 1), directions.take(points, 1)
        cosine = np.maximum(-dot(normals, rays), 0)
        mirror = rays + 2 * cosine * normals
        glint = np.maximum(dot(unit(light - rays), normals), 0) ** 48 * ~dark[points]
        sky = np.clip(mirror[2] * 0.6 + 0.4, 0.05, 1)  # bright above, the dim table below
        colour[:, points] += 0.9 * glint * layout.key[:, None] + (0.06 + 0.5 * (1 - cosine) ** 5) * sky
    return colour
