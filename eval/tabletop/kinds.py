"""The kinds of thing that stand on the table, as parts made of solids, and the words for how they look.

A kind's own frame has z up; its size 1 is about the radius of the sphere around it. Rocket, mushroom, dumbbell and
snowman are compounds: their parts are labelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from eval.tabletop.solids import Ellipsoid, Frustum, Polytope, Solid, Torus, box


@dataclass(frozen=True)
class Part:
    """One named part: its solid, and how far its colour is drawn towards white (> 0) or black (< 0)."""

    name: str
    solid: Solid
    tint: float = 0.0


@dataclass(frozen=True)
class Kind:
    """A kind of thing. `bottom` is the z of its base, `reach` bounds it in three dimensions, `footprint` in two."""

    name: str
    parts: tuple[Part, ...]
    bottom: float
    reach: float
    footprint: float
    round: bool = False  # looks the same whatever its yaw: its correspondences cannot be told apart


def _pyramid(half: float, low: float, high: float) -> Polytope:
    tall = high - low
    slopes = ((tall, 0.0, half), (-tall, 0.0, half), (0.0, tall, half), (0.0, -tall, half))
    return Polytope((*((slope, half * high) for slope in slopes), ((0.0, 0.0, -1.0), -low)))


_ALL = (
    Kind("ball", (Part("ball", Ellipsoid((0, 0, 0), (0.9, 0.9, 0.9))),), -0.9, 0.9, 0.9, round=True),
    Kind("cube", (Part("cube", box((0, 0, 0), (0.68, 0.68, 0.68))),), -0.68, 1.18, 0.97),
    Kind("cylinder", (Part("cylinder", Frustum((0, 0, -0.95), 1.9, (0.6, 0.6))),), -0.95, 1.13, 0.6, round=True),
    Kind("cone", (Part("cone", Frustum((0, 0, -0.85), 1.9, (0.8, 0.0))),), -0.85, 1.17, 0.8, round=True),
    Kind("doughnut", (Part("doughnut", Torus(0.78, 0.32)),), -0.32, 1.1, 1.1, round=True),
    Kind("pyramid", (Part("pyramid", _pyramid(0.8, -0.65, 0.95)),), -0.65, 1.31, 1.14),
    Kind(
        "mushroom",
        (
            Part("cap", Ellipsoid((0, 0, 0.45), (1.0, 1.0, 0.5))),
            Part("stem", Frustum((0, 0, -0.95), 1.3, (0.42, 0.3)), 0.75),
        ),
        -0.95, 1.15, 1.0, round=True,
    ),
    Kind(
        "dumbbell",
        (
            Part("weight", Ellipsoid((-0.78, 0, 0), (0.56, 0.56, 0.56))),
            Part("weight", Ellipsoid((0.78, 0, 0), (0.56, 0.56, 0.56))),
            Part("bar", Frustum((-0.78, 0, 0), 1.56, (0.2, 0.2), axis=0), 0.6),
        ),
        -0.56, 1.35, 1.35,
    ),
    Kind(
        "snowman",
        (
            Part("body", Ellipsoid((0, 0, -0.45), (0.7, 0.7, 0.6))),
            Part("head", Ellipsoid((0, 0, 0.4), (0.46, 0.46, 0.46))),
            Part("hat", Frustum((0, 0, 0.76), 0.42, (0.32, 0.32)), -0.8),
            Part("nose", Frustum((0.4, 0, 0.42), 0.45, (0.13, 0.0), axis=0), 0.8),
        ),
        -1.05, 1.25, 0.86,
    ),
    Kind(
        "rocket",
        (
            Part("body", Frustum((0, 0, -0.75), 1.2, (0.44, 0.44))),
            Part("nose", Frustum((0, 0, 0.45), 0.85, (0.44, 0.0)), 0.65),
            Part("fin", box((0, 0, -0.77), (0.9, 0.08, 0.33)), -0.6),
            Part("fin", box((0, 0, -0.77), (0.08, 0.9, 0.33)), -0.6),
        ),
        -1.1, 1.43, 0.91,
    ),
)  # fmt: skip

KIND = {kind.name: kind for kind in _ALL}
KINDS = tuple(KIND)

COLOURS = {  # sRGB
    "red": (214, 40, 40),
    "orange": (243, 130, 22),
    "yellow": (246, 214, 40),
    "green": (40, 158, 66),
    "blue": (38, 88, 212),
    "purple": (132, 50, 168),
    "white": (240, 240, 236),
    "black": (34, 34, 38),
}
MATERIALS = ("matte", "shiny", "striped")
SIZES = {"small": 0.09, "medium": 0.118, "large": 0.15}  # metres a unit of the kind's own frame

SEMANTIC_NAMES = ("table", "wall", *KINDS)
PART_NAMES = ("background",) + tuple(
    dict.fromkeys(k.name if len(k.parts) == 1 else f"{k.name} {p.name}" for k in _ALL for p in k.parts)
)


def part_ids(kind: Kind) -> list[int]:
    """The label in the part mask of each of a kind's solids."""
    names = [kind.name if len(kind.parts) == 1 else f"{kind.name} {part.name}" for part in kind.parts]
    return [PART_NAMES.index(name) for name in names]
