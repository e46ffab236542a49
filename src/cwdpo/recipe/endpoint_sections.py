"""Servers that write negatives: OpenAI-compatible endpoints."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cwdpo.recipe.section import Section

__all__ = ["EditorSection", "EndpointSection", "GeneratorSection", "JudgeSection", "WriterSection"]

_ADDRESS = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")
_WAYS = ("key_variable", "timeout", "attempts", "concurrency", "requests_per_minute")


class EndpointSection(Section):
    """What every OpenAI-compatible endpoint is told and how it is treated."""

    place: ClassVar[str] = "negatives"
    """What an error calls this section."""

    model: str = ""
    """Name of the model, as the endpoint calls it."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; where it is not set none is sent. The key is never written
    anywhere."""
    attempts: int = Field(default=6, ge=1)
    """How often a request is sent while the server is busy, fails or does not answer, with growing pauses."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for an answer."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests under way at once."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Most requests begun in a minute; null sets no limit."""

    @field_validator("key_variable")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):  # the value may be a key: it is not repeated
            raise ValueError(
                f"{cls.place}.key_variable must be the name of an environment variable, in capitals, never the key"
            )
        return value


class WriterSection(EndpointSection):
    """One language model that is asked for JSON, and what it may cost."""

    base_url: str = ""
    """Address of the endpoint up to and with its version, for instance http://localhost:8000/v1."""
    images: bool = False
    """Show the picture to the model, for models that see."""
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    """What the endpoint is asked to hold the answer to. Whatever it sends is checked."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the answers."""
    max_tokens: int = Field(default=200, ge=16)
    """Longest answer, in tokens."""
    price_input: float = Field(default=0.0, ge=0)
    """Price of a million tokens that are sent."""
    price_output: float = Field(default=0.0, ge=0)
    """Price of a million tokens that come back."""
    max_cost: float | None = Field(default=None, gt=0)
    """Most that may be spent, in the currency of the prices. Nothing is asked where the estimate is above it, and no
    more once it is reached."""

    @staticmethod
    def ways() -> tuple[str, ...]:
        """Return the fields that say how to get answers and not which: they may change while a run is resumed."""
        return ("base_url", *_WAYS, "price_input", "price_output", "max_cost")

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not _ADDRESS.fullmatch(value):
            raise ValueError(
                f"{cls.place}.base_url must be like http://localhost:8000/v1, without user, password or query"
            )
        return value.rstrip("/")

    @model_validator(mode="after")
    def _priced(self) -> WriterSection:
        if self.max_cost is not None and not self.price_input + self.price_output:
            raise ValueError(f"{self.place}.max_cost needs price_input and price_output (per million tokens)")
        return self


class EditorSection(WriterSection):
    """The language model that writes the source `edit`, behind any OpenAI-compatible endpoint."""

    place: ClassVar[str] = "negatives.editor"
    max_changes: int = Field(default=6, ge=1)
    """Most words that an edit may insert, delete or exchange; half of the caption's where that is less (but 2)."""
    rewrites: int = Field(default=2, ge=0)
    """How often the model is told what is wrong with its answer and asked again."""


class JudgeSection(WriterSection):
    """The language model that says which of two captions is better, behind any OpenAI-compatible endpoint."""

    place: ClassVar[str] = "judge"
    temperature: float = Field(default=0.0, ge=0)
    """Temperature of the answers."""

    @model_validator(mode="after")
    def _named(self) -> JudgeSection:
        if not (self.base_url and self.model):
            raise ValueError("judge needs base_url and model")
        return self


class GeneratorSection(EndpointSection):
    """Servers that write `beam` and `sample` in place of transformers."""

    place: ClassVar[str] = "generator"
    base_urls: list[str] = Field(default=[])
    """Addresses of OpenAI-compatible servers that take images (vLLM, …), asked in turn. They must serve the model that
    the stage starts from, which cannot be seen from here. An empty list generates with transformers."""
    timeout: float = Field(default=300.0, gt=0)
    """Seconds to wait for an answer."""
    concurrency: int = Field(default=32, ge=1, le=256)
    """Requests under way at once, over all servers."""

    @staticmethod
    def ways() -> tuple[str, ...]:
        """Return the fields that say how to get answers and not which: they may change while a run is resumed."""
        return ("base_urls", *_WAYS)

    @field_validator("base_urls")
    @classmethod
    def _addresses(cls, values: list[str]) -> list[str]:
        if not all(_ADDRESS.fullmatch(value) for value in values):
            raise ValueError(
                "generator.base_urls must be like [http://localhost:8000/v1], without user, password or query"
            )
        return [value.rstrip("/") for value in values]

    @model_validator(mode="after")
    def _named(self) -> GeneratorSection:
        if self.base_urls and not self.model:
            raise ValueError("generator.base_urls needs generator.model, the name under which the servers know it")
        return self
