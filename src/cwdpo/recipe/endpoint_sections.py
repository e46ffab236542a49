"""Language models behind OpenAI-compatible endpoints: who is asked, within which limits, at which price."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cwdpo.section import Section

__all__ = ["HOW_TO_ASK", "EditorSection", "EndpointSection", "GeneratorSection", "JudgeSection", "WriterSection"]

_ADDRESS = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")

HOW_TO_ASK = (
    *("base_url", "base_urls", "key_variable", "timeout", "attempts", "concurrency", "requests_per_minute"),
    *("answer_limit", "price_input", "price_output", "max_cost"),
)
"""Fields that change how answers are had and not which: they may change while a run is resumed."""


class EndpointSection(Section):
    """An OpenAI-compatible endpoint: limits and prices."""

    place: ClassVar[str]
    """What an error calls this section."""

    model: str = ""
    """Name of the model, as the endpoint calls it."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; if it is unset no key is sent. The key is never written
    anywhere."""
    attempts: int = Field(default=6, ge=1)
    """How often a request is sent while the server is busy, fails or does not answer, with growing pauses."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds within which an answer must be complete."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests in flight at once."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Most requests per minute; null sets no limit."""
    answer_limit: float = Field(default=16.0, gt=0, le=1024)
    """Largest answer of a server in MiB, after decompression; anything larger is refused as it arrives."""
    price_input: float = Field(default=0.0, ge=0)
    """Price of a million input tokens."""
    price_output: float = Field(default=0.0, ge=0)
    """Price of a million output tokens."""
    max_cost: float | None = Field(default=None, gt=0)
    """Spending cap, in the currency of the prices. Nothing is asked if the estimate is above it, and nothing more once
    it is reached."""

    @property
    def urls(self) -> list[str]:
        """Addresses of the servers; every attempt goes to the next one."""
        raise NotImplementedError

    @property
    def usable(self) -> bool:
        """Whether somebody can be asked."""
        return bool(self.urls and self.model)

    @field_validator("key_variable")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):  # the value may be a key: do not repeat it
            raise ValueError(
                f"{cls.place}.key_variable must be the name of an environment variable, in capitals, never the key"
            )
        return value

    @field_validator("base_url", "base_urls", check_fields=False)
    @classmethod
    def _addresses(cls, value: str | list[str]) -> str | list[str]:
        name, urls = ("base_url", [value] if value else []) if isinstance(value, str) else ("base_urls", value)
        if not all(map(_ADDRESS.fullmatch, urls)):  # not repeated either: it may hold a password
            raise ValueError(
                f"{cls.place}.{name} must be like http://localhost:8000/v1, without user, password or query"
            )
        return value.rstrip("/") if isinstance(value, str) else [url.rstrip("/") for url in value]

    @model_validator(mode="after")
    def _priced(self) -> EndpointSection:
        if self.max_cost is not None and not self.price_input + self.price_output:
            raise ValueError(f"{self.place}.max_cost needs price_input and price_output (per million tokens)")
        return self


class WriterSection(EndpointSection):
    """One language model that is asked for JSON."""

    base_url: str = ""
    """Address of the endpoint including its version, for instance http://localhost:8000/v1."""
    images: bool = False
    """Send the image too (vision-capable models only)."""
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    """How the endpoint is told to answer in JSON. Answers are checked in any case."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    max_tokens: int = Field(default=200, ge=16)
    """Longest answer, in tokens."""

    @property
    def urls(self) -> list[str]:
        """The server's address, if one is set."""
        return [self.base_url] if self.base_url else []


class EditorSection(WriterSection):
    """The language model that writes `edit` negatives, rewrites probes and corrects answers."""

    place: ClassVar[str] = "negatives.editor"

    max_changes: int = Field(default=6, ge=1)
    """Most words that an edit may insert, delete or replace, and at most half of the caption's (but always 2)."""
    rewrites: int = Field(default=2, ge=0)
    """How often an unusable answer is sent back with the reason."""


class JudgeSection(WriterSection):
    """The language model that says which of two captions is better."""

    place: ClassVar[str] = "judge"

    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""

    @model_validator(mode="after")
    def _named(self) -> JudgeSection:
        if not self.usable:
            raise ValueError("judge needs base_url and model")
        return self


class GeneratorSection(EndpointSection):
    """Servers that write `beam` and `sample` negatives in place of transformers."""

    place: ClassVar[str] = "generator"

    base_urls: list[str] = Field(default=[])
    """Addresses of OpenAI-compatible servers that take images (vLLM, …). They must serve the model that the stage
    starts from, which cannot be checked from here. An empty list generates with transformers."""
    timeout: float = Field(default=300.0, gt=0)
    """Seconds within which an answer must be complete."""
    concurrency: int = Field(default=32, ge=1, le=256)
    """Requests in flight at once, over all servers."""

    @property
    def urls(self) -> list[str]:
        """Addresses of the servers."""
        return self.base_urls

    @model_validator(mode="after")
    def _named(self) -> GeneratorSection:
        if self.base_urls and not self.model:
            raise ValueError("generator.base_urls needs generator.model, the name under which the servers know it")
        return self
