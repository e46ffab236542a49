"""The base of everything that a recipe can hold: sections, and the settings of a method, a source or a reward."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

__all__ = ["Section"]


class Section(BaseModel):
    """A frozen set of documented fields; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def known_fields(cls) -> Mapping[str, FieldInfo]:
        """Return every key that may stand here; more than `model_fields` where registries bring keys."""
        return cls.model_fields
