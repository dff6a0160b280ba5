"""Turns a YAML document and `key=value` overrides into a validated pydantic model, or into every mistake at once.

OmegaConf loads, merges and interpolates; pydantic validates with unknown keys forbidden; this file adds what neither
has: the document's path, the whole key path, a suggestion, and all mistakes in one message.
"""

from __future__ import annotations

import copy
import difflib
import importlib.resources
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from teachers.errors import UserError


class Mistakes(ValueError):
    """Several mistakes that a validator of a whole section found: (key path below the section, sentence) each."""

    def __init__(self, rows: Sequence[tuple[str, str]]):
        self.rows = list(rows)
        super().__init__("; ".join(f"{path}: {text}" for path, text in self.rows))


T = TypeVar("T", bound=pydantic.BaseModel)


def shipped_recipes() -> Path:
    """The folder of the recipes that this package ships."""
    return Path(str(importlib.resources.files("recipes")))


def find_document(path: str | Path) -> Path:
    """The file meant by `path`: as given, or one of the recipes that this package ships (`quickstart`)."""
    shipped = shipped_recipes()
    name = str(path)
    for candidate in (Path(name), shipped / name, shipped / f"{name}.yaml", shipped.parent / name):
        if candidate.is_file():
            return candidate
    known = sorted(str(p.relative_to(shipped)) for p in shipped.rglob("*.yaml"))
    near = difflib.get_close_matches(Path(name).name, [Path(k).name for k in known], n=1)
    alike = [f"recipes/{k}" for k in known if near and Path(k).name == near[0]]  # in several folders, perhaps
    raise UserError(
        f"no recipe at {name}",
        expected="a YAML file, or one of those that are shipped: " + ", ".join(known),
        todo=f"use {max(alike, key=lambda k: _likeness(k, name))}" if alike else None,
    )


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The document at `path` as a plain dict, after `overrides` (`a.b=1`, also into lists: `stages.0.steps=10`).

    An override sets its key: a mapping takes the place of the one that stood there.
    """
    try:
        document = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"cannot read the override {override!r}", expected="key=value, such as optim.lr=3e-4")
        try:
            # Unresolved, so that an override may refer to other keys: run=runs/seed${seed}
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]
            OmegaConf.update(document, key.lstrip("-"), value, merge=False, force_add=True)
        except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot apply the override {override!r} to {path}: {reason}") from None
    try:
        plain = OmegaConf.to_container(document, resolve=True)
    except OmegaConfBaseException as error:
        where = f"{path}: {error.full_key}" if error.full_key else str(path)
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path} holds a {type(plain).__name__}", expected="a mapping of keys to values")
    return plain


class Invalid(UserError):
    """A document that does not obey its schema.

    `rows` has every mistake by key path; `repaired` the model of what the document says otherwise, where one could be
    made (misspelt keys by their right names, unknown ones left out), so that further checks can look at it too.
    """

    def __init__(self, source: str, rows: dict[str, str], repaired: pydantic.BaseModel | None, hint: str | None):
        self.source, self.rows, self.repaired, self.hint = source, rows, repaired, hint
        width = max(map(len, rows))
        count = f"{len(rows)} mistake" + ("s" if len(rows) > 1 else "")
        lines = [f"  {path.ljust(width)}   {text}" for path, text in rows.items()]
        super().__init__("\n".join([f"{source}: {count}", *lines, "Nothing was started."]), todo=hint)


def validate(data: dict[str, Any], model: type[T], *, source: str, hint: str | None = None) -> T:
    """`data` as a `model`; `Invalid` lists every mistake with its key path and, where one is near, a suggestion."""
    rows: dict[str, str] = {}
    data = copy.deepcopy(data)
    while True:
        try:
            made = model.model_validate(data)
        except pydantic.ValidationError as error:
            found = _explain(error, model)
            rows = found | rows
            if not _repair(data, error, model):
                raise Invalid(source, rows, None, hint) from None
        else:
            if rows:
                raise Invalid(source, rows, made, hint)
            return made


def _repair(data: dict[str, Any], error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> bool:
    """Give misspelt keys their right names and drop unknown ones; False where that was not all that is wrong."""
    for mistake in error.errors():
        if mistake["type"] != "extra_forbidden":
            return False
    for mistake in error.errors():
        location = [part for part in mistake["loc"] if not _is_union_branch(part)]
        place: Any = data
        for part in location[:-1]:
            place = place[part]
        value, right = place.pop(location[-1], None), _nearest(model, location)
        if right is not None:
            place.setdefault(right, value)
    return True


def load(path: str | Path, model: type[T], overrides: Sequence[str] = (), hint: str | None = None) -> T:
    """`find_document`, `read` and `validate` in one."""
    found = find_document(path)
    return validate(read(found, overrides), model, source=str(found), hint=hint)


def keys(model: type[pydantic.BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every key of a document as (path, type, default, description), for `--help`."""
    for name, field in model.model_fields.items():
        inner = _section(field.annotation)
        shape = _shape(field.annotation)
        path = f"{prefix}{name}" + {"dict": ".NAME", "list": ".N", "": ""}[shape]
        if inner is None:
            default = "" if field.is_required() else repr(field.get_default(call_default_factory=True))
            kind = str(field.annotation).replace("typing.", "")
            kind = field.annotation.__name__ if isinstance(field.annotation, type) and "[" not in kind else kind
            yield path, kind, default, field.description or ""
        else:
            yield from keys(inner, path + ".")


def type_name(kind: str) -> str:
    """An annotation as `--help` shows it: the outer type alone where it is long."""
    kind = re.sub(r"^Optional\[Annotated\[([^,]+),.*", r"\1 | None", kind, flags=re.DOTALL)
    kind = re.sub(r"^Optional\[(Literal\[.*\])\]$", r"\1 | None", kind)
    return kind.split("[Annotated")[0].split(" [")[0].replace("Literal[", "").replace("']", "'").replace("Union[", "")


def _explain(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> dict[str, str]:
    """Every mistake by its key path."""
    # A union reports one error a branch: each key path is said once, and a branch that got further down says more.
    rows: dict[str, str] = {}
    for mistake in error.errors():
        found = mistake.get("ctx", {}).get("error")
        if isinstance(found, Mistakes):
            prefix = "".join(f"{part}." for part in mistake["loc"])
            for path, text in found.rows:
                rows[f"{prefix}{path}"] = f"{rows[path]}; {text}" if path in rows else text
            continue
        location = [part for part in mistake["loc"] if not _is_union_branch(part)]
        path = ".".join(map(str, location)) or "(the document)"
        rows.setdefault(path, _sentence(mistake, location, model))
    return {path: text for path, text in rows.items() if not any(other.startswith(f"{path}.") for other in rows)}


def _is_union_branch(part: object) -> bool:
    return isinstance(part, str) and (part in {"str", "int", "float", "bool", "function-after"} or "[" in part)


def _sentence(mistake: dict[str, Any], location: list[Any], model: type[pydantic.BaseModel]) -> str:
    given = mistake.get("input")
    wanted = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text"}
    wanted |= {"dict": "a mapping", "list": "a list", "model": "a mapping", "tuple": "a list"}
    kind = mistake["type"]
    if kind == "extra_forbidden":
        near = _nearest(model, location)
        return "unknown key" + (f"; did you mean '{near}'?" if near else "")
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(mistake["ctx"]["error"])
    for name, text in wanted.items():
        if kind.startswith(name):
            return f"expected {text}, got {given!r}"
    return mistake["msg"][0].lower() + mistake["msg"][1:] + f", got {given!r}"


def _nearest(model: type[pydantic.BaseModel], location: Sequence[Any]) -> str | None:
    """The key that a misspelt one was probably meant to be."""
    near = difflib.get_close_matches(str(location[-1]), _names_at(model, location[:-1]), n=1, cutoff=0.5)
    return near[0] if near else None


def _names_at(model: type[pydantic.BaseModel] | None, location: Sequence[Any]) -> list[str]:
    """The keys that are allowed at `location` (which steps through dicts and lists by name and index)."""
    steps = list(location)
    while steps and model is not None:
        field = model.model_fields.get(str(steps.pop(0)))
        if field is None:
            return []
        if _shape(field.annotation) and steps:
            steps.pop(0)
        model = _section(field.annotation)
    return list(model.model_fields) if model is not None else []


def _shape(annotation: Any) -> str:
    """ "dict" or "list" where the annotation is (or allows) a container of sections, else ""."""
    for part in _options(annotation):
        origin = typing.get_origin(part)
        if origin in (dict, list) and _section(part) is not None:
            return origin.__name__
    return ""


def _section(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The pydantic model inside an annotation such as `X`, `X | None`, `dict[str, X]`, `list[X]`."""
    for part in _options(annotation):
        if isinstance(part, type) and typing.get_origin(part) is None and issubclass(part, pydantic.BaseModel):
            return part
        if typing.get_origin(part) in (dict, list):
            inner = _section(typing.get_args(part)[-1])
            if inner is not None:
                return inner
    return None


def _options(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)
