"""The base of everything that a recipe can hold: sections, and the settings of a method, a figure or a reward."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

__all__ = ["Described", "Section", "first_mistake"]

_A_PATH = re.compile(r"(^|_)(path|root|folder)$")


class Described(typing.NamedTuple):
    """A key of a section, as YAML with comments shows it."""

    name: str
    description: str
    value: Any


class Section(BaseModel):
    """A frozen set of documented fields; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def known_fields(cls) -> Mapping[str, FieldInfo]:
        """Return every key that may stand here; more than `model_fields` where registries bring keys."""
        return cls.model_fields

    def described(self) -> Iterator[Described]:
        """Yield every key with its description and value."""
        for name, field in self.known_fields().items():
            yield Described(name, " ".join((field.description or "").split()), getattr(self, name))

    @field_validator("*", mode="before")
    @classmethod
    def _what_yaml_reads_otherwise(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields.get(info.field_name or "")
        kinds: set[Any] = set() if field is None else {field.annotation, *typing.get_args(field.annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise PydanticCustomError("number", "must be a number; YAML reads yes, no, on and off as true and false")
        if isinstance(value, bool | int | float | date) and str in kinds and not kinds & {bool, int, float}:
            raise PydanticCustomError("text", "must be a text, and YAML reads this as something else; quote it")
        if isinstance(value, str) and not value.strip() and _A_PATH.search(info.field_name or ""):
            raise PydanticCustomError("empty", "is empty (which is the current folder); give a path or leave it out")
        return value


def first_mistake(error: ValidationError, key: str = "") -> str:
    """Return the first mistake of a validation as a phrase: key, value, rule.

    Args:
        error: What pydantic found.
        key: Stands for the place that pydantic gives; with a dot at its end before it ("stage2.").
    """
    first = error.errors()[0]
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return rule
    key += ".".join(str(part) for part in first["loc"]) if not key or key.endswith(".") else ""
    return f"`{key}` = {first['input']!r}: {rule[0].lower()}{rule[1:]}"
