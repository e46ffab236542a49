"""Where the rejected responses come from."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from cwdpo.recipe.endpoint_sections import EditorSection, GeneratorSection
from cwdpo.section import Section

__all__ = [
    "ON_POLICY",
    "CorrectionSection",
    "FilterSection",
    "NegativesSection",
    "RefreshSection",
    "SchedulePoint",
    "Shares",
    "SourceMix",
    "Stage2Mix",
]

_SOURCES = ("dataset", "other", "beam", "sample", "perturb", "shuffle", "edit")
ON_POLICY = ("beam", "sample")
"""Sources that the model itself writes."""


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


class Shares(Section):
    """How much of each source, as shares that need not add up to 1."""

    dataset: float = Field(default=0.0, ge=0)
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

    def shares(self) -> dict[str, float]:
        """Return the shares above 0, by source."""
        return {name: share for name in _SOURCES if (share := getattr(self, name)) > 0}


class SchedulePoint(Shares):
    """The shares at one moment of a stage."""

    at: float = Field(ge=0, le=1)
    """The moment, as a share of the stage's updates: 0 is the first, 1 the last."""

    @model_validator(mode="after")
    def _some_source(self) -> SchedulePoint:
        if not self.shares():
            raise ValueError(f"schedule: every share at {self.at:g} is 0; give at least one source a share above 0")
        return self

    def portions(self) -> dict[str, float]:
        """Return the shares above 0 so that they add up to 1."""
        shares = self.shares()
        return {name: share / sum(shares.values()) for name, share in shares.items()}


class SourceMix(Shares):
    """Which negatives a stage gets, as shares that need not add up to 1."""

    dataset: float = Field(default=1.0, ge=0)
    """The rejected responses that came with the data."""
    schedule: list[SchedulePoint] = Field(default=[])
    """Shares that change over the updates of the stage, in place of those above, linear between points and constant
    outside of them: [{at: 0, perturb: 1}, {at: 1, beam: 1}] goes from one to the other."""
    per_prompt: int = Field(default=1, ge=1)
    """How many negatives a prompt gets in an update."""
    candidates: int = Field(default=0, ge=0)
    """0: a prompt's negatives are drawn once, before training. Above 0: so many are kept of every source, and every
    update draws anew among them. With a schedule at least `per_prompt` are kept."""
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
    generator: GeneratorSection = GeneratorSection()
    """Servers that write `beam` and `sample`, for many GPUs."""
    perturb_difficulty: list[Literal["hard", "medium", "easy"]] = Field(default=["hard"], min_length=1)
    """What `perturb` makes, drawn from this list: one fact changed, two, or all that can be."""
    filter: FilterSection = FilterSection()
    """Which negatives are dropped."""

    @property
    def pooled(self) -> bool:
        """Whether every update draws anew among the candidates of a prompt."""
        return bool(self.schedule) or self.candidates > 0

    @property
    def most(self) -> int:
        """Most negatives of one source that a prompt keeps."""
        return max(self.per_prompt, self.candidates)

    def sources(self) -> list[str]:
        """Return the sources that have a share, at any moment."""
        points: list[Shares] = [*self.schedule] or [self]
        return [name for name in _SOURCES if any(name in point.shares() for point in points)]

    def shares_at(self, moment: float) -> dict[str, float]:
        """Return the shares at a moment of the stage, 0 the first update and 1 the last."""
        if not self.schedule:
            return self.shares()
        if moment <= self.schedule[0].at:
            return self.schedule[0].portions()
        for before, after in pairwise(self.schedule):
            if moment < after.at:
                way = (moment - before.at) / (after.at - before.at)
                one, other = before.portions(), after.portions()
                mixed = {n: (1 - way) * one.get(n, 0.0) + way * other.get(n, 0.0) for n in self.sources()}
                return {name: share for name, share in mixed.items() if share > 0}
        return self.schedule[-1].portions()

    @model_validator(mode="after")
    def _some_source(self) -> SourceMix:
        if not self.sources():
            raise ValueError("every share is 0; give at least one source a share above 0")
        return self

    @model_validator(mode="after")
    def _scheduled(self) -> SourceMix:
        moments = [point.at for point in self.schedule]
        if len(moments) == 1:
            raise ValueError("schedule: has one point; give two or more, or set constant shares without a schedule")
        if any(b <= a for a, b in pairwise(moments)):
            raise ValueError(f"schedule: the points are at {moments}; `at` must grow from each to the next")
        beside = {name: share for name, share in self.shares().items() if (name, share) != ("dataset", 1.0)}
        if moments and beside:
            name, share = next(iter(beside.items()))
            raise ValueError(f"{name} = {share:g} stands beside a schedule; write the shares into its points")
        return self


class RefreshSection(Section):
    """When the model writes `beam` and `sample` anew while it is trained. At least one of `every` and `below`."""

    every: int | None = Field(default=None, ge=1)
    """After so many updates."""
    below: float | None = Field(default=None, gt=0, lt=1)
    """When mean w_c of the training pairs, as a row of metrics.jsonl has it (`stage2.log_steps`), is below this: the
    negatives have gone easy."""
    wait: int = Field(default=50, ge=1)
    """Fewest updates before `below` asks for a refresh, and from one to the next."""

    @model_validator(mode="after")
    def _some_moment(self) -> RefreshSection:
        if self.every is None and self.below is None:
            raise ValueError("negatives.stage2.refresh needs every (updates) or below (mean w_c)")
        return self


class Stage2Mix(SourceMix):
    """Which negatives the preference stage gets, as shares that need not add up to 1."""

    curriculum: Literal["uniform", "frontier"] = "uniform"
    """How an update draws among `candidates`. `frontier`: likelier where w_c (1 - w_c) is high, that is where
    ℓ̄ is near stage2.floor, ℓ̄ being that of the stage's start or of the last refresh."""
    refresh: RefreshSection | None = None
    """Have the model write `beam` and `sample` anew while it is trained."""

    @model_validator(mode="after")
    def _dynamic(self) -> Stage2Mix:
        if self.curriculum == "frontier" and self.candidates < 2:
            raise ValueError(
                "negatives.stage2.curriculum: frontier chooses among candidates; set negatives.stage2.candidates to 2 "
                "or more"
            )
        if self.refresh is not None and not set(self.sources()) & set(ON_POLICY):
            raise ValueError("negatives.stage2.refresh writes beam and sample anew; give one of them a share above 0")
        if self.refresh is not None and self.generator.base_urls:
            raise ValueError(
                "negatives.stage2.refresh needs the model in training, which generator.base_urls do not serve; "
                "leave one of the two out"
            )
        return self


class CorrectionSection(Section):
    """The model's own answers, and the same answers corrected with as few changes as can be (OPA-DPO).

    Before Stage 1 the model answers every prompt of both stages. A corrected answer is a chosen response beside those
    of the data; what the model had said is what the source `dataset` gives. Answers that are right stay out.
    """

    by: Literal["none", "exact", "editor"] = "none"
    """Who corrects. none: there are no corrections; `exact`: the grammar, on `scenes`; `editor`: the language model of
    `negatives.editor`, which is shown the chosen responses."""
    model: str | None = None
    """The model whose answers these are; null is model.path."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the answers."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the answers: the likeliest tokens that have this probability together."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer, in tokens."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts answered at once."""


class NegativesSection(Section):
    """Where the rejected responses of each stage come from."""

    stage1: SourceMix = SourceMix()
    """Negatives of SFT-C."""
    stage2: Stage2Mix = Stage2Mix()
    """Negatives of the preference stage."""
    editor: EditorSection = EditorSection()
    """Who writes the source `edit`, rewrites probes and corrects answers."""
    correction: CorrectionSection = CorrectionSection()
    """The model's own answers, corrected."""
    seed: int = 0
    """Seed of the draw among sources."""

    @model_validator(mode="after")
    def _has_editor(self) -> NegativesSection:
        asked = "edit" in (*self.stage1.sources(), *self.stage2.sources())
        if asked and not (self.editor.base_url and self.editor.model):
            raise ValueError("the source edit needs negatives.editor.base_url and negatives.editor.model")
        if self.correction.by == "editor" and not (self.editor.base_url and self.editor.model):
            raise ValueError(
                "negatives.correction.by: editor needs negatives.editor.base_url and negatives.editor.model"
            )
        return self
