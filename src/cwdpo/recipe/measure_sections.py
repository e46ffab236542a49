"""What is measured while training and at the end."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cwdpo.section import Section

__all__ = ["EarlyStopSection", "EvaluationSection", "InfluenceSection", "ProbeSection"]

ResponseKind = Literal[
    "own",
    "chosen_paraphrase",
    "chosen_form",
    "rejected_paraphrase",
    "rejected_form",
    "other_train",
    "other_test",
    "random",
    "shuffled",
    "random_shuffled",
]
"""Kinds of response that a probe can make up for itself."""


class EarlyStopSection(Section):
    """When a stage stops before its last update."""

    signal: str = "accuracy"
    """A figure of the probes that has a direction. `accuracy`: share of gold tokens that are the likeliest; `chosen`:
    log p per token of the chosen responses; `ranking`: share of pairs with the chosen response likelier; `gap`: log p
    of chosen minus hard; `ece`: calibration error; `tv`, `js`: drift; or one of `probes.figures`."""
    patience: int = Field(default=5, ge=1)
    """Readings without an improvement after which to stop."""
    min_delta: float = Field(default=0.0, ge=0)
    """By how much a reading must be better to count as an improvement."""
    stages: list[Literal["stage1", "stage2"]] = Field(default=["stage2"])
    """Which stages may stop early."""


class InfluenceSection(Section):
    """How one update on a sample moves others, followed through training (paper, G)."""

    updates: int = Field(default=3, ge=1)
    """Training prompts that a step is taken on (and undone)."""
    observed: int = Field(default=4, ge=1)
    """Probe prompts whose chosen responses are observed."""
    eta: float = Field(default=1e-4, gt=0)
    """Size of the step (plain gradient descent)."""


class ProbeSection(Section):
    """What is measured on held-out prompts while training."""

    every: int = Field(default=50, ge=0)
    """Updates between probes; 0 turns them off."""
    prompts: int = Field(default=64, ge=1)
    """Held-out prompts, the same ones throughout a run."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts per forward pass of a probe."""
    distributions: bool = True
    """Keep the start's token distributions to measure TV and JS against (prompts × tokens × vocabulary numbers)."""
    tokens: int = Field(default=4, ge=0)
    """Of so many prompts, keep the likeliest tokens at every place of the gold response, at the start and now."""
    path: str | None = None
    """Your own probe prompts: a data file whose responses may have any role (`cwdpo probes` writes such files).
    Default: the first held-out rows."""
    digest: str | None = None
    """Content of that file as `cwdpo probes` prints it; another content is refused. null takes any."""
    kinds: list[ResponseKind] = Field(default=[])
    """Further kinds of response to follow beside chosen and rejected: the model's own sample, the chosen and the
    hardest rejected response in other words or with something else said in its form, the answer to another training
    or held-out prompt, a training answer of equal length, the shuffled words of the chosen one and of that."""
    rewriter: Literal["rules", "editor"] = "rules"
    """Who writes the kinds that say something in other words or in the same form: `rules` (the grammar of `scenes`, a
    lexicon elsewhere), or the language model of `negatives.editor`."""
    seed: int = 0
    """Seed of the draws that these kinds need."""
    figures: list[str | dict[str, dict[str, Any]]] = Field(default=[])
    """Figures of your own: `my_figures.py:MyFigure`, with settings `{my_figures.py:MyFigure: {threshold: 0.5}}`, or
    the name under which an installed package offers one."""
    captions: int = Field(default=0, ge=0)
    """Write answers (the five best of a beam search) to so many probe prompts at every reading, for CIDEr against the
    references, length and, on `scenes`, exact correctness. Takes longer than the rest of a reading."""
    on_diagnosis: Literal["warn", "stop"] = "warn"
    """What to do about a serious finding (squeezing, divergence, …): say it, or stop after a checkpoint."""
    early_stop: EarlyStopSection | None = None
    """Stop a stage when a signal of the probes no longer improves, and end with the best reading's weights."""
    influence: InfluenceSection | None = None
    """Follow the one-step influence of some training prompts on some probe prompts, at every probe."""

    @model_validator(mode="after")
    def _digest_of_a_file(self) -> ProbeSection:
        if self.digest is not None and self.path is None:
            raise ValueError("probes.digest is the content of probes.path; give that file too, or leave both out")
        return self


class EvaluationSection(Section):
    """What is measured at the end, before against after Stage 2."""

    prompts: int = Field(default=256, ge=0)
    """Held-out prompts that are captioned and scored; 0 leaves the step out."""
    likelihoods: bool = True
    """Score the held-out responses too: log p by kind, calibration, drift, grounding. false leaves it at captions."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts at once."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest caption, in tokens."""
    metrics: list[str | dict[str, dict[str, Any]]] = Field(default=["cider"])
    """Caption metrics: names as for `cwdpo evaluate --metrics`, `my_metric.py:Name`, or `{name: {setting: value}}`."""
    tokenizer: Literal["words", "ptb", "auto"] = "words"
    """How they cut captions: plain words, COCO's PTB tokens (Java), or PTB where there is Java."""
    samples: int = Field(default=12, ge=0)
    """Pictures with captions before and after that the report shows."""
