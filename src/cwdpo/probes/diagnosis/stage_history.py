"""A stage as the rules of diagnosis see it: readings of the probes, logged rows, and what the recipe asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cwdpo.data.schema import CHOSEN, DIFFICULTIES, REJECTED
from cwdpo.methods.sft_c import SFTC
from cwdpo.recipe import Stage1Section, Stage2Section

__all__ = ["Finding", "Severity", "StageFacts", "Stream", "mean"]

Severity = Literal["note", "warning", "serious"]

_STAGE1 = ("sft", "sft_c")


@dataclass(frozen=True)
class Finding:
    """What a rule has found.

    Attributes:
        rule: Its name.
        severity: `note` (worth knowing), `warning` (change something soon) or `serious` (this run is going wrong).
        sentence: What happens, in plain words, with the figures.
        remedy: What to change in the recipe.
        step: The update at which it was first seen.
        figures: The evidence, by name.
        until: The update of the reading from which on it no longer holds; None while it holds.
    """

    rule: str
    severity: Severity
    sentence: str
    remedy: str
    step: int
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    until: int | None = None

    def ended(self, step: int) -> Finding:
        """Return what is left of it when a later reading no longer shows it: a note."""
        said = f"Was so, since update {step} no longer: {self.sentence}"
        return replace(self, severity="note", sentence=said, until=step)

    def to_json(self) -> dict[str, Any]:
        """Return the row form."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "sentence": self.sentence,
            "remedy": self.remedy,
            "step": self.step,
            "figures": {name: value for name, value in self.figures.items() if math.isfinite(value)},
            **({} if self.until is None else {"until": self.until}),
        }

    @property
    def line(self) -> str:
        """One line for a terminal, without the remedy."""
        return f"{self.severity}: {self.rule} (since update {self.step}): {self.sentence}"


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What a rule needs to know of the recipe. The defaults are those of plain DPO, for trainers that are not ours.

    Attributes:
        objective: `sft`, `sft_c`, or one of Stage 2 (`cwdpo methods`).
        regularizer: Of `sft_c`.
        nll_floor: C of Eq. 4, in the unit of `nll_reduction`.
        nll_reduction: `mean` or `sum`.
        floor: ℓ_floor of Eq. 6, nats per token.
        beta: β of the implicit rewards.
        on_policy: Responses are sampled; no pairs are compared.
        has_reference: Of Stage 2: pairs are compared against a reference.
        learning_rate: Peak learning rate.
    """

    objective: str = "dpo"
    regularizer: str = "none"
    nll_floor: float = 4.0
    nll_reduction: str = "mean"
    floor: float = -3.0
    beta: float = 0.1
    on_policy: bool = False
    has_reference: bool = True
    learning_rate: float = math.nan

    @classmethod
    def of(cls, section: Stage1Section | Stage2Section) -> StageFacts:
        """Return the facts of a stage of a recipe."""
        method = section.method
        if isinstance(section, Stage1Section):
            plain = cls(objective=section.objective, learning_rate=section.learning_rate)
            if not isinstance(method, SFTC):
                return plain
            return replace(
                plain,
                regularizer=method.regularizer,
                nll_floor=method.nll_floor,
                nll_reduction=method.nll_reduction,
            )
        return cls(
            objective=section.objective,
            floor=section.floor,
            beta=method.reward_scale,
            on_policy=method.on_policy,
            has_reference=method.needs.reference,
            learning_rate=section.learning_rate,
        )

    @property
    def stage(self) -> Literal["stage1", "stage2"]:
        """Which section of the recipe a remedy names."""
        return "stage1" if self.objective in _STAGE1 else "stage2"

    @property
    def preference(self) -> bool:
        """Whether pairs are compared."""
        return self.stage == "stage2" and not self.on_policy

    @property
    def reference(self) -> bool:
        """Whether pairs are compared against a reference."""
        return self.preference and self.has_reference


@dataclass(frozen=True)
class Stream:
    """The rows of a stage so far.

    Attributes:
        probes: Rows of `probes.jsonl`, in order; the first is the stage's start.
        metrics: Logged rows, in order; those of probes and summaries are ignored.
    """

    probes: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]

    @property
    def kinds(self) -> list[str]:
        """Kinds of response that every reading has."""
        first = self.probes[0]["kinds"] if self.probes else {}
        return [kind for kind in first if all(kind in row["kinds"] for row in self.probes)]

    @property
    def negatives(self) -> list[str]:
        """The kinds among them that stand for rejected responses."""
        return [kind for kind in self.kinds if kind in (*DIFFICULTIES, REJECTED)]

    @property
    def later(self) -> int:
        """Readings after the start."""
        return max(0, len(self.probes) - 1)

    @property
    def last_step(self) -> int:
        """The last update that anything is known of."""
        return max((int(row.get("step", 0)) for row in (*self.probes[-1:], *self.metrics[-1:])), default=0)

    def kind(self, kind: str, name: str) -> list[float]:
        """Return a figure of a kind at every reading."""
        return [float(row["kinds"][kind][name]) for row in self.probes]

    def change(self, kind: str, name: str = "logp_mean") -> list[float]:
        """Return how far a figure of a kind is from the start, at every reading."""
        values = self.kind(kind, name)
        return [value - values[0] for value in values]

    def mean_change(self, kinds: Sequence[str], name: str) -> list[float]:
        """Return the mean over kinds of how far a figure is from the start, at every reading."""
        columns = [self.change(kind, name) for kind in kinds]
        return [mean(values) for values in zip(*columns, strict=True)]

    def negatives_change(self) -> list[float]:
        """Return the mean change of log p per token over the kinds of negatives, at every reading."""
        return self.mean_change(self.negatives, "logp_mean")

    def probe(self, name: str) -> list[float]:
        """Return a figure of the chosen responses at every reading; empty where a reading lacks it."""
        return [float(row[name]) for row in self.probes] if all(name in row for row in self.probes) else []

    def metric(self, name: str) -> list[tuple[int, float]]:
        """Return (update, value) wherever a figure was logged."""
        found: list[tuple[int, float]] = []
        for row in self.metrics:
            value = row.get(name)
            if isinstance(value, int | float) and "train_runtime" not in row:
                found.append((int(row.get("step", 0)), float(value)))
        return found

    def first_step(self, holds: Callable[[int], bool]) -> int:
        """Return the update of the first reading from which on `holds(index)` is true at all readings."""
        index = len(self.probes) - 1
        while index > 0 and holds(index - 1):
            index -= 1
        return int(self.probes[index]["step"])

    @property
    def has_chosen(self) -> bool:
        """Whether there are readings of chosen responses."""
        return CHOSEN in self.kinds


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan
