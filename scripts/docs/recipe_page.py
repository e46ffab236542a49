"""Every field of a recipe as a page, read from the models that check recipes."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union

from cells import row
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cwdpo.methods import METHODS
from cwdpo.recipe import Recipe, StageSection
from cwdpo.section import Section

_RULES = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


def recipe_page() -> str:
    """Return the page: a table a section, a row a field."""
    lines = [
        "# Every recipe field",
        "",
        "A recipe is one YAML file. `cwdpo init` writes one with these descriptions as comments; "
        "`--set section.key=value` overrides any key on the command line. Unknown keys are refused. "
        "Inside a section a key stands under its last name: `path` under *model* is `model.path`. "
        "This page is made from the models that check recipes.",
        "",
    ]
    for path, model, note in sections():
        lines += [f"## {path} {{ #{anchor(path)} }}" if path else "## The whole", ""]
        lines += [" ".join((model.__doc__ or "").split()), ""]
        lines += [note, ""] if note else []
        lines += ["| field | type and rule | default | what it is |", "|---|---|---|---|"]
        for name, field in fields_of(model).items():
            key = f"{path}.{name}" if path else name
            kind, shown = type_of(field), f"`{name}`{{ #{anchor(key)} }}"
            if nested(field):  # its heading has the anchor
                kind, shown = kind.replace("section", f"[section](#{anchor(key)})"), f"`{name}`"
            lines.append(row((shown, kind, default_of(field), text_of(field))))
        for name, owners in settings_of(model).items():
            lines.append(_setting(f"{path}.{name}", name, owners))
        lines.append("")
    return "\n".join(lines)


def sections(model: type[BaseModel] = Recipe, path: str = "", note: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield every section with its dotted path and, where it can be left out, a remark."""
    yield path, model, note
    for name, field in fields_of(model).items():
        if below := nested(field):
            remark = "Left out by default; give it to switch it on." if field.default is None else ""
            remark = "An item of the list." if typing.get_origin(field.annotation) is list else remark
            yield from sections(below, f"{path}.{name}" if path else name, remark)


def keys() -> list[str]:
    """Return the dotted key of every field."""
    return [
        f"{path}.{name}" if path else name
        for path, model, _ in sections()
        for name in (*fields_of(model), *settings_of(model))
    ]


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields that are keys of a recipe: a stage's method and a mix's sources stand flat beside its own."""
    known = model.known_fields() if issubclass(model, Section) else model.model_fields
    return {name: field for name, field in known.items() if not field.exclude}


def settings_of(model: type[BaseModel]) -> dict[str, dict[str, FieldInfo]]:
    """Return the settings of all methods of a stage, by name and method; those of other sections are empty."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for method in METHODS.all().values() if issubclass(model, StageSection) else ():
        for name, field in method.model_fields.items() if method.stage == model.place else ():
            if name not in model.model_fields:
                found.setdefault(name, {})[method.name] = field
    return found


def _setting(key: str, name: str, owners: dict[str, FieldInfo]) -> str:
    """Return the row of a setting of some methods, whose defaults and words may differ."""
    first = next(iter(owners.values()))
    defaults = [default_of(first)]
    defaults += [f"{default_of(f)} ({m})" for m, f in owners.items() if default_of(f) != default_of(first)]
    kind = type_of(first)
    words = text_of(first) + f" ({', '.join(f'`{method}`' for method in owners)})"
    return row((f"`{name}`{{ #{anchor(key)} }}", kind, ", ".join(defaults), words))


def anchor(path: str) -> str:
    """Return the name under which a section or a field can be linked to."""
    return path.replace(".", "-")


def nested(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a field holds, if it holds one."""
    for option in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def text_of(field: FieldInfo) -> str:
    """Return a field's description on one line."""
    return " ".join((field.description or "").split())


def type_of(field: FieldInfo) -> str:
    """Return the type of a field and the rules that its value keeps."""
    rules = [
        f"{sign} {getattr(mark, name):,}".replace(",", "\u202f")
        for mark in field.metadata
        for name, sign in _RULES.items()
        if getattr(mark, name, None) is not None
    ]
    return ", ".join([_type(field.annotation), *rules])


def _type(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " · ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if option is type(None) else _type(option) for option in args)
    if origin in (list, tuple):
        return f"list of {_type(args[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", bool: "true · false", int: "integer", float: "number"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default_of(field: FieldInfo) -> str:
    """Return the default as it would stand in a recipe."""
    if field.default_factory is not None:
        return ""
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return ""
    return f"`{json.dumps(field.default, ensure_ascii=False)}`"
