"""Where the rejected responses come from."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from cwdpo.plugins import user_file
from cwdpo.recipe.endpoint_sections import EditorSection, GeneratorSection
from cwdpo.section import Section

__all__ = [
    "CorrectionSection",
    "FilterSection",
    "NegativesSection",
    "RefreshSection",
    "SchedulePoint",
    "Shares",
    "SourceMix",
    "Stage2Mix",
]


class FilterSection(Section):
    """Which negatives are dropped. Texts equal to a gold response always are, except those that came with the data."""

    logp: float | None = None
    """Drop negatives whose ℓ̄ (nats per token, under the model that the stage starts from) is below this: the paper's
    Negative Filtering, which states no threshold; stage2.floor - 2 is ours. null drops none."""
    similarity: float | None = Field(default=None, gt=0, le=1)
    """Drop negatives that may be right: similarity to the gold responses of at least this. null drops none."""
    measure: Literal["support", "rouge_l", "exact"] = "support"
    """`support`: fraction of what a text mentions (objects, whose colour, actions, …) that some gold response of the
    image mentions too. `rouge_l`: largest ROUGE-L with a gold response. `exact`: 1 if it is true of the picture, for
    `scenes` only."""
    shortest: float | None = Field(default=None, ge=0)
    """Drop negatives with fewer words than this times the chosen response's. null drops none."""
    longest: float | None = Field(default=None, gt=0)
    """Drop negatives with more words than this times the chosen response's. null drops none."""


def _sources(own: Iterable[str] = ()) -> dict[str, Any]:
    """Return the sources that can be named, by key: ours, those of packages, and those in the user's files `own`.

    The registry is looked up when a recipe is read: recipes import no source.
    """
    registry: Any = importlib.import_module("cwdpo.negatives.source").SOURCES
    kinds = {**registry.all(), **{name: registry.find(name) for name in own}}
    return dict(sorted(kinds.items(), key=lambda item: (item[1].order, item[0])))


@functools.cache
def _keys(sources: tuple[tuple[str, Any], ...], whole_mix: bool) -> type[Section]:
    """Return a section of the keys that sources bring: a share each, and in a mix their settings too."""
    shares = {
        name: (float, Field(default=kind.default_share * whole_mix, ge=0, description=kind.words()))
        for name, kind in sources
    }
    settings: dict[str, Any] = {
        name: (info.annotation, info) for _, kind in sources if whole_mix for name, info in kind.model_fields.items()
    }
    return create_model("SourceKeys", __base__=Section, **shares, **settings)


class Shares(Section):
    """Shares of sources, which need not add up to 1: a key for each source, and in a mix for each of their settings."""

    model_config = ConfigDict(extra="allow")
    whole_mix: ClassVar[bool] = True
    """Whether settings may stand beside the shares."""

    @classmethod
    def known_fields(cls) -> Mapping[str, FieldInfo]:
        """Return every key that may stand here (and sources of the user's own)."""
        return {**_keys(tuple(_sources().items()), cls.whole_mix).model_fields, **cls.model_fields}

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        points = values.get("schedule")
        parts: list[Any] = [values, *(points if isinstance(points, list) else ())]
        files = {key for part in parts if isinstance(part, dict) for key in part if user_file(str(key))}
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        keys = _keys(tuple(_sources(files).items()), cls.whole_mix)
        return {**keys.model_validate({k: v for k, v in values.items() if k not in own}).model_dump(), **own}

    @functools.cached_property
    def kinds(self) -> dict[str, Any]:
        """The sources that can be named here, by the key of their share."""
        return _sources(name for name in self.model_extra or () if user_file(name))

    def shares(self) -> dict[str, float]:
        """Return the shares above 0, by the name of the source."""
        return {kind.name: share for key, kind in self.kinds.items() if (share := getattr(self, key, 0.0)) > 0}


class SchedulePoint(Shares):
    """The shares at one moment of a stage."""

    whole_mix: ClassVar[bool] = False

    at: float = Field(ge=0, le=1)
    """The moment as a fraction of the stage's updates: 0 is the first, 1 the last."""

    @model_validator(mode="after")
    def _some_source(self) -> SchedulePoint:
        if not self.shares():
            raise ValueError(f"schedule: every share at {self.at:g} is 0; give at least one source a share above 0")
        return self


class SourceMix(Shares):
    """Which negatives a stage gets."""

    schedule: list[SchedulePoint] = Field(default=[])
    """Shares that change over the stage's updates, in place of those above; linear between points and constant outside:
    [{at: 0, perturb: 1}, {at: 1, beam: 1}] goes from one to the other."""
    per_prompt: int = Field(default=1, ge=1)
    """Negatives per prompt and update."""
    candidates: int = Field(default=0, ge=0)
    """0: a prompt's negatives are drawn once, before training. Above 0: so many are kept of every source, and every
    update draws again. With a schedule at least `per_prompt` are kept."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest generated negative, in tokens."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts per batch when generating and scoring."""
    generator: GeneratorSection = GeneratorSection()
    """Servers that write `beam` and `sample`, for many GPUs."""
    filter: FilterSection = FilterSection()
    """Which negatives are dropped."""

    @property
    def pooled(self) -> bool:
        """Whether every update draws again among a prompt's candidates."""
        return bool(self.schedule) or self.candidates > 0

    @property
    def most(self) -> int:
        """Most negatives of one source that a prompt keeps."""
        return max(self.per_prompt, self.candidates)

    @functools.cached_property
    def sources(self) -> dict[str, Any]:
        """The sources with a share at any moment, by name (`cwdpo.negatives.source.Source`)."""
        used = {name for point in self.schedule or [self] for name in point.shares()}
        kinds = [kind for kind in self.kinds.values() if kind.name in used]
        return {kind.name: kind(**{key: getattr(self, key) for key in kind.model_fields}) for kind in kinds}

    @property
    def on_policy(self) -> list[str]:
        """Names of the sources in use that the model itself writes."""
        return [name for name, source in self.sources.items() if source.on_policy]

    def shares_at(self, moment: float) -> dict[str, float]:
        """Return the shares at a moment of the stage, 0 the first update and 1 the last."""
        if not self.schedule:
            return self.shares()
        points = [point.shares() for point in self.schedule]
        mixed: dict[str, float] = {}
        for name in self.sources:
            portions = [point.get(name, 0.0) / sum(point.values()) for point in points]
            mixed[name] = float(np.interp(moment, [point.at for point in self.schedule], portions))
        return {name: share for name, share in mixed.items() if share > 0}

    @model_validator(mode="after")
    def _fitting(self) -> SourceMix:
        moments = [point.at for point in self.schedule]
        if not self.sources:
            raise ValueError("every share is 0; give at least one source a share above 0")
        if len(moments) == 1:
            raise ValueError("schedule: has one point; give two or more, or set constant shares without a schedule")
        if any(b <= a for a, b in pairwise(moments)):
            raise ValueError(f"schedule: the points are at {moments}; `at` must grow from each to the next")
        defaults = {kind.name: kind.default_share for kind in self.kinds.values()}
        for name, share in self.shares().items() if moments else ():
            if share != defaults[name]:
                raise ValueError(f"{name} = {share:g} stands beside a schedule; write the shares into its points")
        return self


class RefreshSection(Section):
    """When the model writes `beam` and `sample` again while it is trained. At least one of `every` and `below`."""

    every: int | None = Field(default=None, ge=1)
    """After so many updates."""
    below: float | None = Field(default=None, gt=0, lt=1)
    """When mean w_c of the training pairs in a row of metrics.jsonl (`stage2.log_steps`) is below this: the negatives
    have become easy."""
    wait: int = Field(default=50, ge=1)
    """Fewest updates before `below` asks for a refresh, and between two."""

    @model_validator(mode="after")
    def _some_moment(self) -> RefreshSection:
        if self.every is None and self.below is None:
            raise ValueError("negatives.stage2.refresh needs every (updates) or below (mean w_c)")
        return self


class Stage2Mix(SourceMix):
    """Which negatives the preference stage gets."""

    curriculum: Literal["uniform", "frontier"] = "uniform"
    """How an update draws among `candidates`. `frontier` prefers high w_c (1 - w_c): ℓ̄ near stage2.floor, as measured
    at the stage's start or at the last refresh."""
    refresh: RefreshSection | None = None
    """Have the model write `beam` and `sample` again while it is trained."""

    @model_validator(mode="after")
    def _dynamic(self) -> Stage2Mix:
        if self.curriculum == "frontier" and self.candidates < 2:
            raise ValueError(
                "negatives.stage2.curriculum: frontier chooses among candidates; set negatives.stage2.candidates to 2 "
                "or more"
            )
        if self.refresh is not None and not self.on_policy:
            raise ValueError(
                "negatives.stage2.refresh has the model write beam and sample again; give one of them a share above 0"
            )
        if self.refresh is not None and self.generator.base_urls:
            raise ValueError(
                "negatives.stage2.refresh needs the model in training, which generator.base_urls do not serve; "
                "leave one of the two out"
            )
        return self


class CorrectionSection(Section):
    """The model's own answers, and the same answers corrected with as few changes as possible (OPA-DPO).

    Before Stage 1 the model answers every prompt of both stages. A corrected answer becomes a chosen response beside
    those of the data, and what the model had said is what the source `dataset` gives. Right answers are left out.
    """

    by: Literal["none", "exact", "editor"] = "none"
    """`none`: no corrections; `exact`: by the grammar, on `scenes`; `editor`: by the language model of
    `negatives.editor`, which sees the chosen responses."""
    model: str | None = None
    """The model that answers; null is model.path."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the answers."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Top-p (nucleus) sampling of the answers."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer, in tokens."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts per batch."""


class NegativesSection(Section):
    """Where the rejected responses of each stage come from."""

    stage1: SourceMix = Field(default_factory=SourceMix)
    """Negatives of SFT-C."""
    stage2: Stage2Mix = Field(default_factory=Stage2Mix)
    """Negatives of the preference stage."""
    editor: EditorSection = EditorSection()
    """LLM endpoint used for `edit` negatives, probe rewrites and corrections."""
    correction: CorrectionSection = CorrectionSection()
    """The model's own answers, corrected."""
    seed: int = 0
    """Seed of every draw among sources and candidates."""

    @model_validator(mode="after")
    def _has_editor(self) -> NegativesSection:
        asking = [f"the source {n}" for m in (self.stage1, self.stage2) for n, s in m.sources.items() if s.needs_editor]
        if self.correction.by == "editor":
            asking.append("negatives.correction.by: editor")
        if asking and not self.editor.usable:
            raise ValueError(f"{asking[0]} needs negatives.editor.base_url and negatives.editor.model")
        return self
