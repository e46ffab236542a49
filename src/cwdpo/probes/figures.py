"""Every figure that is measured, logged or shown: name, title, unit, direction, format. And figures of your own.

Probes, trackers, terminal, report, evaluation tables and early stopping read these things here and nowhere else. A
figure of your own (`probes.figures`) is a subclass of `ProbeFigure` or a plain function; it is described in the run
directory (`probe_start.json`), so that a report shows it without importing your file.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cwdpo.errors import RecipeError, one_line
from cwdpo.plugins import Registry
from cwdpo.section import Section

if TYPE_CHECKING:
    from cwdpo.probes.diagnosis.stage_history import Finding, StageFacts, Stream
    from cwdpo.probes.reading import Probed

__all__ = [
    "BY_KIND",
    "EVALUATED",
    "FIGURES",
    "OVERALL",
    "Better",
    "Figure",
    "ProbeFigure",
    "as_figure",
    "load_figures",
    "signals",
]

Better = Literal["higher", "lower", "none"]


@dataclass(frozen=True)
class Figure:
    """How a figure is called and written.

    Attributes:
        name: Its key in rows and trackers.
        title: Its name for people; heading of a chart.
        short: Its name where there is little room: heading of a column.
        unit: Written beside an axis; empty for a plain number.
        better: Which way is better; `none` where it depends.
        decimals: Digits after the point.
        about: One sentence: what it is.
        percent: Written as a percentage.
    """

    name: str
    title: str
    short: str = ""
    unit: str = ""
    better: Better = "none"
    decimals: int = 3
    about: str = ""
    percent: bool = False

    @property
    def heading(self) -> str:
        """The short name, with the sign of a percentage."""
        return (self.short or self.title) + (", %" if self.percent else "")

    def scaled(self, value: float) -> float:
        """Return the value as it is written."""
        return 100 * value if self.percent else value

    def text(self, value: float, *, signed: bool = False) -> str:
        """Return the value with its decimals, without the unit."""
        return f"{self.scaled(value):{'+' if signed else ''}.{self.decimals}f}"


_NATS = "nats per token"


def _table(*figures: Figure) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


OVERALL = _table(
    Figure("tv", "TV from the start", "TV", "", "lower", 3, "Total variation, gold tokens"),
    Figure("js", "JS from the start", "JS", "bits", "lower", 4, "Jensen–Shannon divergence, gold tokens"),
    Figure("ece", "Calibration error (ECE)", "ECE", "", "lower", 3, "Expected calibration error, 15 bins, gold tokens"),
    Figure("entropy", "Entropy", "entropy", _NATS, "none", 3, "Predictive entropy, gold tokens"),
    Figure("top1", "Top-1 probability", "top-1", "", "none", 3, "Probability of the likeliest token, mean"),
    Figure("accuracy", "Gold token is the likeliest", "argmax is gold", "share", "higher"),
    Figure("ranking", "Chosen above rejected", "ranked", "share of pairs", "higher"),
    Figure("gap", "Gap chosen − hard", "gap", _NATS, "higher", 3, "Log p of chosen minus that of hard negatives"),
    Figure("correct_top5", "Captions wholly right", "right", "share of 5 beams", "higher"),
    Figure("cider_top5", "CIDEr, mean of 5 beams", "CIDEr", "", "higher", 1),
    Figure("answer_words", "Length of its own answers", "length", "words", "none", 1, "Of the best beam"),
)
"""Figures of a reading, in the order in which they are shown."""

BY_KIND = _table(
    Figure("logp_mean", "Log p of held-out responses", "log p", _NATS),
    Figure("delta_start", "Change of log p since the start", "Δ start", _NATS),
    Figure("delta_last", "Change of log p since the last reading", "Δ last", _NATS),
    OVERALL["entropy"],
    OVERALL["top1"],
    Figure("argmax_logp", "Log p of the likeliest tokens", "argmax", "nats"),
    Figure("cooling_weight", "Cooling weight", "w_c", "", "none", 2, "w_c of Eq. 6"),
)
"""Figures of a reading for each kind of response, as trackers get them."""

LOGGED = _table(
    Figure("loss", "Loss", "loss"),
    Figure("grad_norm", "Gradient norm", "grad"),
    Figure("rewards/margins", "Reward margin", "margin", "", "higher"),
    Figure("rewards/accuracies", "Pairs ranked right", "acc", "share", "higher"),
    Figure("cooling/weight", "Cooling weight of the pairs", "w_c"),
    Figure("nll/chosen", "NLL of chosen", "nll+", _NATS, "lower"),
    Figure("nll/rejected", "NLL of negatives", "nll-", _NATS),
    Figure("sft_c/active", "Penalty active", "active", "share"),
    Figure("reward", "Reward of sampled answers", "reward", "", "higher"),
    Figure("kl", "KL to the reference", "KL", _NATS),
)
"""What training logs and the terminal and the report show, in this order."""

_GROUNDING = "How much likelier gold captions are with their own picture than with another, nats per token"

EVALUATED = _table(
    *(OVERALL[name] for name in ("tv", "js", "ece", "entropy", "top1")),
    Figure("logp_chosen", "Gold captions, log p per token", "log p gold", _NATS, "higher"),
    *(Figure(f"logp_{kind}", f"Log p of {kind} negatives", kind, _NATS) for kind in ("hard", "medium", "easy")),
    Figure("grounding", "Gold captions with their own picture", "picture", _NATS, "higher", 3, _GROUNDING),
    Figure("correct", "Captions wholly right", "right", "", "higher", 1, "Share of greedy captions", percent=True),
    Figure("cider", "CIDEr", "CIDEr", "", "higher", 1, "CIDEr-D × 100 against all references"),
)
"""What an evaluation measures before and after, in the order of its tables."""


def evaluated(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of a run's `evaluation/summary.json` by name, with those of its own caption metrics."""
    return EVALUATED | {row["name"]: Figure(**row) for row in summary.get("figures", ())}


FIGURES: Mapping[str, Figure] = {**EVALUATED, **LOGGED, **BY_KIND, **OVERALL}
"""Every figure by name."""


class ProbeFigure(Section):
    """A figure of your own, read with the probes.

    Subclass it in a file of yours, give it a `name`, write `measure`, and list it in the recipe:
    `probes.figures: [my_figures.py:MyFigure]`. Fields of the class are its settings:
    `probes.figures: [{my_figures.py:MyFigure: {threshold: 0.5}}]`.

    Attributes:
        name: Its key in `probes.jsonl` and in trackers (`probe/name`).
        title: Its name for people; default `name`.
        unit: Of its axis.
        better: `higher`, `lower` or `none`; with a direction it can be the signal of early stopping.
        decimals: Digits after the point.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    better: ClassVar[Better] = "none"
    decimals: ClassVar[int] = 3

    def measure(self, probed: Probed) -> float | Mapping[str, float]:
        """Return the figure, or one number for each kind of response. Weights must stay as they are."""
        raise NotImplementedError

    def rule(self, stream: Stream, facts: StageFacts) -> Finding | None:
        """Return what the diagnosis says of the readings so far, if anything."""
        return None

    def figures(self) -> Sequence[Figure]:
        """Return the descriptions of what it measures."""
        about = one_line((type(self).__doc__ or "").partition("\n")[0], 200)
        title = self.title or self.name.replace("_", " ")
        return [Figure(self.name, title, self.name, self.unit, self.better, self.decimals, about)]

    def values(self, probed: Probed) -> Mapping[str, float | Mapping[str, float]]:
        """Return what it measures by name.

        Raises:
            RecipeError: `measure` failed, or gave something that is no number.
        """
        try:
            value = self.measure(probed)
            if isinstance(value, Mapping):
                return {self.name: {str(kind): float(number) for kind, number in value.items()}}
            return {self.name: float(value)}
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename}:{frame.lineno}"
            raise RecipeError(
                f"probes.figures: {self.name} failed at {where}: {type(error).__name__}: {one_line(error, 200)}; it "
                "must return a number, or a number for each kind of response"
            ) from error


def as_figure(function: Callable[..., Any]) -> type[ProbeFigure]:
    """Return a figure that calls a function; its name and the first line of its docstring describe it."""

    class Called(ProbeFigure):
        __doc__ = function.__doc__
        name = function.__name__

        def measure(self, probed: Probed) -> float | Mapping[str, float]:
            return function(probed)

    return Called


_REGISTRY = Registry("probe figure", "cwdpo.probes", ProbeFigure, as_figure)


def load_figures(asked: Iterable[str | Mapping[str, Mapping[str, Any]]]) -> list[ProbeFigure]:
    """Return the figures that a recipe lists in `probes.figures`.

    Raises:
        RecipeError: One is not found, has other settings, or a name is taken.
    """
    found = _REGISTRY.make(asked, "probes.figures")
    names = [figure.name for source in found for figure in source.figures()]
    for name in names:
        if names.count(name) > 1 or name in OVERALL or name in BY_KIND or not name.isidentifier():
            raise RecipeError(f"probes.figures: the name {name!r} is taken or no plain word; give the figure another")
    return found


def signals(more: Iterable[Figure] = ()) -> dict[str, Figure]:
    """Return the figures that early stopping can follow, by name: those of a reading that have a direction."""
    chosen = Figure("chosen", "Log p of the chosen responses", "chosen", _NATS, "higher")
    return {f.name: f for f in (chosen, *OVERALL.values(), *more) if f.better != "none"}
