"""Where the rejected responses come from."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cwdpo.recipe.section import Section

__all__ = ["EditorSection", "FilterSection", "NegativesSection", "SourceMix"]


class FilterSection(Section):
    """Which negatives are dropped. Texts equal to a gold response always are, but for those that came with the data."""

    logp: float | None = None
    """Drop negatives whose ℓ̄ (nats per token, under the model that the stage starts from) is below this: the paper's
    Negative Filtering. Its threshold is not given; stage2.floor - 2 is ours. null drops none."""
    similarity: float | None = Field(default=None, gt=0, le=1)
    """Drop negatives that may be right: whose similarity to the gold responses is this or more. null drops none."""
    measure: Literal["support", "rouge_l", "exact"] = "support"
    """`support`: share of what a text speaks of (objects, whose colour, actions, …) that some gold response of the
    image speaks of too. `rouge_l`: largest ROUGE-L with a gold response. `exact`: 1 where it is true of the picture,
    for `scenes` only."""
    shortest: float | None = Field(default=None, ge=0)
    """Drop negatives with fewer words than this times the chosen response's. null drops none."""
    longest: float | None = Field(default=None, gt=0)
    """Drop negatives with more words than this times the chosen response's. null drops none."""


class SourceMix(Section):
    """Which negatives a stage gets, as shares that need not add up to 1."""

    dataset: float = Field(default=1.0, ge=0)
    """The rejected responses that came with the data."""
    other: float = Field(default=0.0, ge=0)
    """The chosen response of another image: easy, but there for any data."""
    beam: float = Field(default=0.0, ge=0)
    """On-policy: one hypothesis of a width-5 beam search that is not a gold response (paper, D.1)."""
    sample: float = Field(default=0.0, ge=0)
    """On-policy: a sample at `temperature` that is not a gold response."""
    perturb: float = Field(default=0.0, ge=0)
    """The chosen response with facts changed by a lexicon (objects, colours, numbers, actions, relations); exact on
    `scenes`."""
    shuffle: float = Field(default=0.0, ge=0)
    """The words of the chosen response in another order."""
    edit: float = Field(default=0.0, ge=0)
    """The chosen response with one fact changed by a language model (`negatives.editor`)."""
    per_prompt: int = Field(default=1, ge=1)
    """How many negatives a prompt gets."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of `sample`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of `sample`: the likeliest tokens that have this probability together."""
    beam_width: int = Field(default=5, ge=2)
    """Width of `beam`."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest generated negative, in tokens."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts generated at once."""
    perturb_difficulty: list[Literal["hard", "medium", "easy"]] = Field(default=["hard"], min_length=1)
    """What `perturb` makes, drawn from this list: one fact changed, two, or all that can be."""
    filter: FilterSection = FilterSection()
    """Which negatives are dropped."""

    def shares(self) -> dict[str, float]:
        """Return the shares above 0, by source."""
        sources = ("dataset", "other", "beam", "sample", "perturb", "shuffle", "edit")
        return {name: share for name in sources if (share := getattr(self, name)) > 0}

    @model_validator(mode="after")
    def _some_source(self) -> SourceMix:
        if not self.shares():
            raise ValueError("every share is 0; give at least one source a share above 0")
        return self


class EditorSection(Section):
    """The language model that writes the source `edit`, behind any OpenAI-compatible endpoint."""

    base_url: str = ""
    """Address of the endpoint up to and with its version, for instance http://localhost:8000/v1."""
    model: str = ""
    """Name of the model, as the endpoint calls it."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; where it is not set none is sent. The key is never written
    anywhere."""
    images: bool = False
    """Show the picture to the model, for models that see."""
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    """What the endpoint is asked to hold the answer to. Whatever it sends is checked."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the answers."""
    max_tokens: int = Field(default=200, ge=16)
    """Longest answer, in tokens."""
    max_changes: int = Field(default=6, ge=1)
    """Most words that an edit may insert, delete or exchange."""
    rewrites: int = Field(default=2, ge=0)
    """How often the model is told what is wrong with its answer and asked again."""
    attempts: int = Field(default=6, ge=1)
    """How often a request is sent while the server is busy, fails or does not answer, with growing pauses."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for an answer."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests under way at once."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Most requests begun in a minute; null sets no limit."""
    price_input: float = Field(default=0.0, ge=0)
    """Price of a million tokens that are sent."""
    price_output: float = Field(default=0.0, ge=0)
    """Price of a million tokens that come back."""
    max_cost: float | None = Field(default=None, gt=0)
    """Most that may be spent on a stage, in the currency of the prices. Nothing is asked where the estimate is above
    it, and no more once it is reached."""

    @staticmethod
    def ways() -> tuple[str, ...]:
        """Return the fields that say how to get answers and not which: they may change while a run is resumed."""
        where = ("base_url", "key_variable", "timeout", "attempts", "concurrency", "requests_per_minute")
        return (*where, "price_input", "price_output", "max_cost")

    @field_validator("key_variable")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):  # the value may be a key: it is not repeated
            raise ValueError(
                "negatives.editor.key_variable must be the name of an environment variable, in capitals, never the key"
            )
        return value

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value):
            raise ValueError(
                "negatives.editor.base_url must be like http://localhost:8000/v1, without user, password or query"
            )
        return value.rstrip("/")

    @model_validator(mode="after")
    def _priced(self) -> EditorSection:
        if self.max_cost is not None and not self.price_input + self.price_output:
            raise ValueError("negatives.editor.max_cost needs price_input and price_output (per million tokens)")
        return self


class NegativesSection(Section):
    """Where the rejected responses of each stage come from."""

    stage1: SourceMix = SourceMix()
    """Negatives of SFT-C."""
    stage2: SourceMix = SourceMix()
    """Negatives of the preference stage."""
    editor: EditorSection = EditorSection()
    """Who writes the source `edit`."""
    seed: int = 0
    """Seed of the draw among sources."""

    @model_validator(mode="after")
    def _has_editor(self) -> NegativesSection:
        if (self.stage1.edit or self.stage2.edit) and not (self.editor.base_url and self.editor.model):
            raise ValueError("the source edit needs negatives.editor.base_url and negatives.editor.model")
        return self
