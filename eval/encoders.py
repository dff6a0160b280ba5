"""Turns what the user typed for a model (`runs/a`, `teacher:NAME`, `sharpened:RUN`, `untrained:RUN`) into a `Model`."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import torch
import yaml
from torch import Tensor

from radio_distill import documents
from teachers.errors import UserError
from teachers.features import Encoder, Features, Size

FORMS = "[NAME=]RUN_OR_EXPORT, teacher:NAME[?weights=...&option=...], sharpened:RUN or untrained:RUN"
BACKBONE = "backbone"
MOST_TILES = 14  # the largest factor of a sharpener


@dataclass
class Model:
    """An encoder under test: its backbone, and the heads that answer in a teacher's space."""

    name: str  # in every table
    spec: str  # what the user typed
    encoder: Encoder
    replicate: int = 0  # models of one name are repetitions (training seeds) of one thing
    trained: int | None = None  # the seed of its training, where its run folder says it
    adaptors: dict[str, Encoder] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        return self.encoder.identity

    def text_head(self, wanted: str | None) -> tuple[str, Encoder] | None:
        """The head named `wanted`, or the first one, that shares a space with texts; None where there is none.

        A model without heads (a teacher) is asked itself, whatever is wanted.
        """
        if not self.adaptors:
            return (BACKBONE, self.encoder) if self.encoder.has_text else None
        able = {name: head for name, head in self.adaptors.items() if head.has_text}
        if wanted is not None and wanted not in self.adaptors:
            raise UserError(f"{self.name} has no head {wanted!r}", expected="one of " + ", ".join(self.adaptors))
        return next(((name, head) for name, head in able.items() if wanted in (None, name)), None)


def device_of(encoder: Encoder) -> torch.device:
    """Where the weights are."""
    weight = next(encoder.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def device_name(encoder: Encoder) -> str:
    """The device in words, for a score: `cpu`, or `cuda: ` and the card's name."""
    device = device_of(encoder)
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def everything(encoder: Encoder, images: Tensor) -> dict[str, Features]:
    """One forward pass → the backbone's features, and every head's where there are heads."""
    if hasattr(encoder, "everything"):
        return encoder.everything(images)
    with torch.no_grad():
        return {BACKBONE: encoder(images)}


def nearest_size(encoder: Encoder, wanted: Size | None, smaller: bool = False) -> Size:
    """The size that `encoder` takes nearest to `wanted` (None: its native one).

    Where all near ones are too large: `UserError`, or with `smaller` the largest of that aspect that it takes. A score
    at another size would pass for one at the size that the recipe names, so that is for rehearsals.
    """
    if wanted is None or not encoder.resolution_flexible:
        return encoder.native_size
    refusal = None
    for size in _sizes_near(encoder.patch_size, wanted, smaller):
        try:
            encoder.check_size(size)
        except UserError as error:
            refusal = refusal or error
        else:
            return size
    raise refusal


def _sizes_near(patch: int, wanted: Size, smaller: bool) -> Iterator[Size]:
    """Multiples of a patch, the nearest first, then of several (a sharpened encoder's); then ever smaller ones."""
    longest, factors = max(wanted), range(1, MOST_TILES + 1)
    shares = [side / longest for side in range(longest - 1, 0, -1) if side % patch == 0] if smaller else []
    for factor, share in [*((factor, 1.0) for factor in factors), *itertools.product(factors, shares)]:
        step = patch * factor
        yield tuple(max(round(side * share / step), 1) * step for side in wanted)


def open_models(specs: Sequence[str], device: torch.device | str = "cpu") -> list[Model]:
    """Every model that the user named; those that were given one name become repetitions of one."""
    models = [open_model(spec, device) for spec in specs]
    shared = Counter(model.name for model in models)
    for model in models:
        if shared[model.name] > 1 and split_name(model.spec)[0] is None:
            model.name = model.spec  # only names that were given can make repetitions
    seen: Counter[str] = Counter()
    for model in models:
        model.replicate = seen[model.name]
        seen[model.name] += 1
    for model in models:
        twin = next(other for other in models if other.identity == model.identity)
        if twin is not model and twin.name == model.name:
            raise UserError(
                f"{twin.spec} and {model.spec} are the same model", expected="repetitions are trained from other seeds"
            )
    return models


def open_model(spec: str, device: torch.device | str = "cpu") -> Model:
    """One model, loaded; raises `UserError` for a form that is not known, or what the loader finds wrong."""
    name, source = split_name(spec)
    kind, separator, rest = source.partition(":")
    if not separator:
        kind, rest = "run", source
    if kind not in OPENERS or not rest:
        raise UserError(f"cannot read the model {spec!r}", expected=FORMS)
    encoder = OPENERS[kind](rest, device)
    heads = {head: encoder.adaptor(head) for head in encoder.adaptor_names} if hasattr(encoder, "adaptor_names") else {}
    trained = _training_seed(Path(rest.partition("?")[0]).expanduser()) if kind in TRAINED else None
    return Model(name=name or encoder.name, spec=spec, encoder=encoder, trained=trained, adaptors=heads)


def split_name(spec: str) -> tuple[str | None, str]:
    """`NAME=SPEC` → (NAME, SPEC); an `=` behind a colon, slash or question mark belongs to SPEC."""
    head, separator, rest = spec.partition("=")
    if separator and not set(head) & set(":/?\\"):
        return head, rest
    return None, spec


def _open_run(path: str, device: torch.device | str) -> Encoder:
    from teachers.radio_encoder import RadioEncoder

    return RadioEncoder.load(path, device=device)


def _open_untrained(path: str, device: torch.device | str) -> Encoder:
    from teachers.radio_encoder import RadioEncoder

    return RadioEncoder.untrained(path, seed=0, device=device)


def _open_teacher(text: str, device: torch.device | str) -> Encoder:
    from teachers.catalogue import build

    name, _, query = text.partition("?")
    given = parse_qsl(query, keep_blank_values=True)
    try:
        options = {key: yaml.safe_load(value) for key, value in given}
    except yaml.YAMLError:
        raise UserError(f"teacher:{text}: an option is no YAML", expected="values such as 8 or [32, 48]") from None
    weights = options.pop("weights", None)
    return build(name, weights=None if weights is None else str(weights), device=device, **options)


def _open_sharpened(text: str, device: torch.device | str) -> Encoder:
    """A run, whose recipe names the teacher; or `bilinear?teacher=NAME&factor=2`, `tile?...`, `FOLDER?teacher=NAME`."""
    from featsharp.sharpener import build

    spec, _, query = text.partition("?")
    given = dict(parse_qsl(query))
    factor = given.pop("factor", "2")
    if not factor.isdecimal():
        raise UserError(f"sharpened:{text}: factor is {factor!r}", expected="a whole number, such as factor=2")
    teacher = given.pop("teacher", None)
    teacher = f"{teacher}?{urlencode(given)}" if teacher else _teacher_of(Path(spec).expanduser())
    return build(spec, _open_teacher(teacher, device), factor=int(factor), device=device)


def _teacher_of(run: Path) -> str:
    """The teacher that a sharpener's run was trained for, in the form that `teacher:` takes."""
    recipe = _recipe_of(run)
    if recipe is None:
        raise UserError(
            f"{run} does not say which teacher it sharpens (there is no recipe.yaml)",
            expected="the run folder of a `task: sharpen`",
            todo=f"name the teacher: 'sharpened:{run}?teacher=NAME'",
        )
    teachers = documents.read(recipe).get("teachers")
    found = list(teachers.values()) if isinstance(teachers, dict) else []
    if len(found) != 1 or not isinstance(found[0], dict) or "encoder" not in found[0]:
        raise UserError(
            f"{run} is no run of a sharpener: its recipe.yaml names {len(found)} teachers",
            expected="the run folder of a `task: sharpen`, which has one teacher, with its encoder",
            todo=f"a student's run is a MODEL as it is: {run}",
        )
    teacher = found[0]
    options = {key: json.dumps(value) for key, value in (teacher.get("options") or {}).items()}
    if teacher.get("weights"):
        options["weights"] = teacher["weights"]
    return f"{teacher['encoder']}?{urlencode(options)}"


def _training_seed(run: Path) -> int | None:
    """What the recipe in a run folder (or above its export) says; None where there is no such recipe."""
    recipe = _recipe_of(run)
    try:
        seed = documents.read(recipe).get("seed") if recipe else None
    except UserError:  # whatever it is, the model itself could be opened
        return None
    return seed if isinstance(seed, int) else None


def _recipe_of(run: Path) -> Path | None:
    """The recipe in a run folder, or above its export."""
    return next((file for folder in (run, run.parent) if (file := folder / "recipe.yaml").is_file()), None)


TRAINED = ("run", "sharpened")  # kinds whose folder holds the recipe of a training
OPENERS = {"run": _open_run, "untrained": _open_untrained, "teacher": _open_teacher, "sharpened": _open_sharpened}
