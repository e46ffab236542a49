"""Every figure that is measured, logged or shown: name, title, unit, direction, format. And figures of your own.

Probes, trackers, terminal, report, evaluation tables and early stopping read these things here and nowhere else. A
figure of your own (`probes.figures`) is a subclass of `ProbeFigure` or a plain function; it is described in the run
directory (`probe_start.json`), so that a report shows it without importing your file.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    "Figure",
    "ProbeFigure",
    "as_figure",
    "load_figures",
    "signals",
]

Better = Literal["higher", "lower", "none"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How a figure is called and written.

    Attributes:
        name: Its key in rows and trackers.
        title: Its name for people; heading of a chart.
        short: Its name where there is little room: heading of a column.
        unit: Written beside an axis; empty for a plain number.
        better: Which way is better; `none` where it depends.
        decimals: Digits after the point.
        percent: Written as a percentage.
        about: One sentence: what it is.
    """

    name: str
    title: str
    short: str = ""
    unit: str = ""
    better: Better = "none"
    decimals: int = 3
    percent: bool = False
    about: str = ""

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

    def to_json(self) -> dict[str, Any]:
        """Return the row form; `Figure(**row)` reads it back."""
        return asdict(self)


_NATS = "nats per token"


def _table(*figures: Figure) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


OVERALL = _table(
    Figure(name="tv", title="TV from the start", short="TV", better="lower", about="Total variation, gold tokens"),
    Figure(
        name="js",
        title="JS from the start",
        short="JS",
        unit="bits",
        better="lower",
        decimals=4,
        about="Jensen–Shannon divergence, gold tokens",
    ),
    Figure(
        name="ece",
        title="Calibration error (ECE)",
        short="ECE",
        better="lower",
        about="Expected calibration error of the next gold token, 15 bins",
    ),
    Figure(name="entropy", title="Entropy", short="entropy", unit=_NATS, about="Predictive entropy, gold tokens"),
    Figure(name="top1", title="Top-1 probability", short="top-1", about="Probability of the likeliest token, mean"),
    Figure(
        name="accuracy",
        title="Gold token is the likeliest",
        unit="share",
        better="higher",
        about="Share of gold tokens that are the argmax",
    ),
    Figure(
        name="ranking",
        title="Chosen above rejected",
        unit="share of pairs",
        better="higher",
        about="Share of pairs whose chosen response is likelier per token",
    ),
    Figure(
        name="gap",
        title="Gap chosen − hard",
        unit=_NATS,
        better="higher",
        about="Log p of chosen minus log p of hard negatives",
    ),
    Figure(
        name="correct_top5",
        title="Captions wholly right",
        unit="share of 5 beams",
        better="higher",
        about="Share of the five best beams that are wholly right",
    ),
    Figure(
        name="cider_top5",
        title="CIDEr, mean of 5 beams",
        better="higher",
        decimals=1,
        about="CIDEr-D × 100 of the five best beams",
    ),
    Figure(name="answer_words", title="Length of its own answers", unit="words", decimals=1, about="Of the best beam"),
)
"""Figures of a reading, in the order in which they are shown."""

BY_KIND = _table(
    Figure(name="logp_mean", title="Log p of held-out responses", short="log p", unit=_NATS, better="none"),
    Figure(name="delta_start", title="Change of log p since the start", short="Δ start", unit=_NATS),
    Figure(name="delta_last", title="Change of log p since the last reading", short="Δ last", unit=_NATS),
    OVERALL["entropy"],
    OVERALL["top1"],
    Figure(name="argmax_logp", title="Log p of the likeliest tokens", unit="nats"),
    Figure(name="cooling_weight", title="Cooling weight", short="w_c", decimals=2, about="w_c of Eq. 6"),
)
"""Figures of a reading for each kind of response, as trackers get them."""

LOGGED = _table(
    Figure(name="loss", title="Loss", short="loss"),
    Figure(name="grad_norm", title="Gradient norm", short="grad"),
    Figure(name="rewards/margins", title="Reward margin", short="margin", better="higher"),
    Figure(name="rewards/accuracies", title="Pairs ranked right", short="acc", unit="share", better="higher"),
    Figure(name="cooling/weight", title="Cooling weight of the pairs", short="w_c"),
    Figure(name="nll/chosen", title="NLL of chosen", short="nll+", unit=_NATS, better="lower"),
    Figure(name="nll/rejected", title="NLL of negatives", short="nll-", unit=_NATS),
    Figure(name="sft_c/active", title="Penalty active", short="active", unit="share"),
    Figure(name="reward", title="Reward of sampled answers", short="reward", better="higher"),
    Figure(name="kl", title="KL to the reference", short="KL", unit=_NATS),
)
"""What training logs and the terminal and the report show, in this order."""

EVALUATED = _table(
    *(OVERALL[name] for name in ("tv", "js", "ece", "entropy", "top1")),
    Figure(
        name="logp_chosen",
        title="Gold captions, log p per token",
        short="log p gold",
        unit=_NATS,
        better="higher",
        about="Log-probability of gold captions, nats per token",
    ),
    *(
        Figure(
            name=f"logp_{kind}",
            title=f"Log p of {kind} negatives",
            short=kind,
            unit=_NATS,
            about=f"Log-probability of {kind} negatives, nats per token",
        )
        for kind in ("hard", "medium", "easy")
    ),
    Figure(
        name="grounding",
        title="Gold captions with their own picture",
        short="picture",
        unit=_NATS,
        better="higher",
        about="How much likelier gold captions are with their own picture than with another, nats per token",
    ),
    Figure(
        name="correct",
        title="Captions wholly right",
        short="right",
        better="higher",
        decimals=1,
        percent=True,
        about="Greedy captions that are wholly right",
    ),
    Figure(
        name="cider",
        title="CIDEr",
        short="CIDEr",
        better="higher",
        decimals=1,
        about="CIDEr-D × 100 against all references",
    ),
)
"""What an evaluation measures before and after, in the order of its tables."""

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
        how: dict[str, Any] = {"unit": self.unit, "better": self.better, "decimals": self.decimals}
        return [Figure(name=self.name, title=title, short=self.name, about=about, **how)]

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
    chosen = Figure(name="chosen", title="Log p of the chosen responses", unit=_NATS, better="higher")
    return {f.name: f for f in (chosen, *OVERALL.values(), *more) if f.better != "none"}
