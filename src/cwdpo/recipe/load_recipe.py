"""Recipes as files: reading, overriding, explaining what is wrong."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cwdpo.errors import RecipeError, one_line
from cwdpo.recipe.recipe import Recipe
from cwdpo.safe_yaml import parse_yaml
from cwdpo.section import Section, first_mistake

__all__ = ["load_recipe", "load_section", "recipe_differences"]

S = TypeVar("S", bound=BaseModel)

_DATA = (".csv", ".jsonl", ".parquet", ".tar", ".tsv")
"""Endings of files that users give where a recipe belongs."""


def load_recipe(
    path: Path | None = None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe from a YAML file (or from `base`) and apply `section.key=value` overrides.

    Raises:
        RecipeError: The file cannot be read or is empty, a key is unknown, or a value breaks its rule.
    """
    where = str(path) if path is not None else "recipe"
    values: Any = dict(base or {}) if path is None else _read(path)
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of sections, this is a {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, where)) from None


def _read(path: Path) -> Any:
    """Return what a YAML file says."""
    if path.is_dir():
        raise RecipeError(
            f"{path}: a recipe is a YAML file, this is a folder; give the file in it, or write a recipe for a folder "
            f"of data with `cwdpo init --data {path}`"
        )
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe file; write one with `cwdpo init`")
    if path.suffix in _DATA:
        raise RecipeError(
            f"{path}: is data, and a recipe is a YAML file; `cwdpo init --data {path}` writes one that takes it"
        )
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {one_line(error)}; fix it, or write one with `cwdpo init`") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {one_line(error)}") from None
    if values is None:
        raise RecipeError(f"{path}: is empty; `cwdpo init` writes a recipe, and {{}} is the one with all defaults")
    return values


def load_section(model: type[S], overrides: Sequence[str], where: str) -> S:
    """Make one section from `key=value` settings alone.

    Args:
        model: The section.
        overrides: As for `load_recipe`, without the section's name.
        where: What an error calls the section.

    Raises:
        RecipeError: A key is unknown, or a value breaks its rule.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        _apply_override(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, where, model)) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    shown = one_line(override, 200)
    if not equals or not all(part.strip() for part in key.split(".")):
        raise RecipeError(f"--set {shown}: expected section.key=value, for instance stage2.beta=0.2")
    try:
        value = parse_yaml(raw)
    except yaml.YAMLError as error:
        why = one_line(getattr(error, "problem", None) or error)
        raise RecipeError(f"--set {shown}: the value cannot be read: {why}; quote it if it is a text") from None
    *sections, last = re.split(r"\.(?!py:)", key.strip())  # `my_file.py:Name` is one key
    node: Any = values
    for name in sections:
        below: Any = {} if node.get(name) is None else node[name]
        if not isinstance(below, dict):
            raise RecipeError(f"--set {shown}: {name} is a value, not a section")
        node[name] = dict(below)  # of its own: a YAML alias gives two sections one object
        node = node[name]
    node[last] = value


def _explain(error: ValidationError, where: str, root: type[BaseModel] = Recipe) -> str:
    """Return the first mistake as one line: where, key, value, rule, remedy."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = list(_fields_at(location[:-1], root))
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(known)}"
        return one_line(f"{where}: unknown key `{'.'.join(location)}`; {hint}{more}", 600)
    key = ".".join(_known_part(location, root)) or "recipe"
    return one_line(f"{where}: {first_mistake(error, key)}{more}", 600)


def _known_part(location: Sequence[str], root: type[BaseModel]) -> Sequence[str]:
    """Return a location up to its last field: what follows is the item of a list, or a member of a union."""
    for end in range(len(location), 0, -1):
        section = _section_at(location[: end - 1], root)
        open_ended = section is not None and section.model_config.get("extra") == "allow"
        if section is not None and (open_ended or location[end - 1] in _fields(section)):
            return location[:end]
    return location


def _fields_at(location: Sequence[str], root: type[BaseModel]) -> Mapping[str, Any]:
    section = _section_at(location, root)
    return {} if section is None else _fields(section)


def _section_at(location: Sequence[str], root: type[BaseModel]) -> type[BaseModel] | None:
    model = root
    for name in location:
        if name.isdigit():
            continue  # an item of a list
        field = _fields(model).get(name)
        if field is None:
            return None
        options = [field.annotation, *typing.get_args(field.annotation)]
        found = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not found:
            return None
        model = found[0]
    return model


def _fields(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Return every key that may stand in a section."""
    return model.known_fields() if issubclass(model, Section) else model.model_fields


def recipe_differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two dumped recipes, each with both values."""
    found: list[str] = []
    for key in [*before, *(k for k in after if k not in before)]:
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += recipe_differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} (was {old!r}, now {new!r})")
    return found
