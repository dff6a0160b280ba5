"""The things in a view → captions, questions with answers, and the closed vocabulary of all of them.

A caption names the main thing first. Every word stands in a template or a list below, so `vocabulary()` is complete.
"""

from __future__ import annotations

import re

from eval.tabletop.kinds import COLOURS, KINDS, MATERIALS, SIZES
from eval.tabletop.trace import Camera, Thing

_COUNTS = ("one", "two", "three", "four")
_RELATIONS = ("left of", "right of", "behind", "in front of", "next to")
_ALONE = (
    "{full} alone on the table",
    "a photo of {look}",
    "{made} on a table",
    "one thing: {short}",
    "a picture of {plain}",
)
_TOGETHER = (
    "{full} {relation} {other_full}{rest}",
    "a photo of {look}",
    "{made} on a table",
    "{short} {relation} {other_short}",
    "{count} things: {list}",
    "a picture of {plain}",
    "{plain} and {other_plain}",
)
_PROMPTS = ("a photo of {}", "a picture of {}", "{} on a table", "{} alone on the table")
_QUESTIONS = {
    "kind": "what is the largest thing in the picture?",
    "count": "how many things are on the table?",
    "colour": "what colour is the {}?",
    "material": "is the {} matte, shiny or striped?",
    "exists": "is there {} in the picture?",
    "relation": "is the {} left of the {}?",
}
_GLUE = ("a", "an", "and", "with", "yes", "no")


def a(words: str) -> str:
    """`words` behind their indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _short(thing: Thing) -> str:
    return a(f"{thing.colour} {thing.kind}")


def _full(thing: Thing) -> str:
    return a(f"{thing.size} {thing.material} {thing.colour} {thing.kind}")


def _series(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _seen(thing: Thing, camera: Camera) -> tuple[float, float]:
    """Where a thing's middle lies in the view: how far right (in image widths), how far away (metres)."""
    x, _, z = camera.rotation @ (thing.position - camera.position)
    return float(camera.focal * x / z), float(z)


def relation(first: Thing, second: Thing, camera: Camera) -> str:
    """How `first` stands to `second` as this camera sees them: the clearer of sideways and in depth."""
    (x1, z1), (x2, z2) = _seen(first, camera), _seen(second, camera)
    if abs(x1 - x2) > 0.12:
        return "left of" if x1 < x2 else "right of"
    if abs(z1 - z2) > 0.12:
        return "in front of" if z1 < z2 else "behind"
    return "next to"


def captions(things: list[Thing], camera: Camera) -> list[str]:
    """Several captions of one view; the first says most, some name only the main thing."""
    main, others = things[0], things[1:]
    words = {
        "full": _full(main),
        "look": a(f"{main.size} {main.colour} {main.kind}"),
        "made": a(f"{main.material} {main.colour} {main.kind}"),
        "short": _short(main),
        "plain": a(main.kind),
    }
    if not others:
        return [template.format(**words) for template in _ALONE]
    other = others[0]
    words |= {
        "relation": relation(main, other, camera),
        "other_full": _full(other),
        "other_short": _short(other),
        "other_plain": a(other.kind),
        "rest": f", with {_series([_short(thing) for thing in others[1:]])}" if others[1:] else "",
        "count": _COUNTS[len(things) - 1],
        "list": _series([_short(thing) for thing in things]),
    }
    return [template.format(**words) for template in _TOGETHER]


def questions(things: list[Thing], camera: Camera) -> list[tuple[str, str]]:
    """Questions that the picture answers without doubt, each with its answer (one word)."""
    main = things[0]
    names = [thing.kind for thing in things]
    absent = next(kind for kind in KINDS[KINDS.index(main.kind) :] + KINDS if kind not in names)
    pairs = [
        (_QUESTIONS["kind"], main.kind),
        (_QUESTIONS["count"], _COUNTS[len(things) - 1]),
        (_QUESTIONS["exists"].format(a(names[-1])), "yes"),
        (_QUESTIONS["exists"].format(a(absent)), "no"),
    ]
    unique = [thing for thing in things if names.count(thing.kind) == 1]
    for thing in unique:
        pairs.append((_QUESTIONS["colour"].format(thing.kind), thing.colour))
        pairs.append((_QUESTIONS["material"].format(thing.kind), thing.material))
    for first, second in zip(unique, unique[1:]):
        side = relation(first, second, camera)
        if side in ("left of", "right of"):
            pairs.append((_QUESTIONS["relation"].format(first.kind, second.kind), "yes" if side == "left of" else "no"))
    return pairs


def class_prompts() -> dict[str, list[str]]:
    """Kind → its prompts for zero-shot classification, in the towers' vocabulary, in the order of KINDS."""
    return {kind: [prompt.format(a(kind)) for prompt in _PROMPTS] for kind in KINDS}


def vocabulary() -> list[str]:
    """Every word that a caption, a prompt, a question or an answer can hold, sorted."""
    templates = (*_ALONE, *_TOGETHER, *_PROMPTS, *_QUESTIONS.values())
    phrases = (*(re.sub(r"\{\w*\}", " ", t) for t in templates), *_COUNTS, *_RELATIONS, *_GLUE)
    return sorted({*re.findall(r"[a-z]+", " ".join(phrases)), *KINDS, *COLOURS, *MATERIALS, *SIZES})
