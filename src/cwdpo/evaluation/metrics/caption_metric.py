"""What a caption metric is: a class in a file of its own, or a function in yours. And its figures."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cwdpo.data.schema import PromptGroup
from cwdpo.errors import RecipeError, UserError, one_line
from cwdpo.evaluation.intervals import bootstrap_mean
from cwdpo.evaluation.java import Unavailable
from cwdpo.plugins import Registry
from cwdpo.probes.figures import Better, Figure
from cwdpo.section import Section

__all__ = ["METRICS", "CaptionMetric", "Captioned", "Score"]


@dataclass(frozen=True)
class Captioned:
    """Captions, one per picture, and what they are measured against.

    Attributes:
        groups: The prompts, with their pictures and facts.
        texts: The captions as written.
        tokens: The captions tokenised: tokens with one space between.
        references: Reference captions of each picture, at least one, tokenised in the same way.
    """

    groups: Sequence[PromptGroup]
    texts: Sequence[str]
    tokens: Sequence[str]
    references: Sequence[Sequence[str]]

    def part(self, rows: Sequence[int]) -> Captioned:
        """Return some of the pictures."""
        groups, texts = [self.groups[i] for i in rows], [self.texts[i] for i in rows]
        return Captioned(groups, texts, [self.tokens[i] for i in rows], [self.references[i] for i in rows])


@dataclass(frozen=True)
class Score:
    """A figure of one set of captions.

    Attributes:
        value: The figure.
        interval: Its 95 % interval over pictures, where there is one.
        each: The value of every picture, where the figure is their mean.
    """

    value: float
    interval: tuple[float, float] | None = None
    each: tuple[float, ...] | None = None

    @classmethod
    def of_mean(cls, each: Sequence[float]) -> Score:
        """Return the mean over pictures with its interval."""
        return cls(float(np.mean(each)), bootstrap_mean(each), tuple(map(float, each)))

    def to_json(self) -> dict[str, float]:
        """Return value and interval."""
        low_high = {} if self.interval is None else {"low": self.interval[0], "high": self.interval[1]}
        return {"value": self.value, **low_high}


Measured = float | Sequence[float] | Score
"""A figure of the whole set, or one per picture, whose mean it is."""


class CaptionMetric(Section):
    """A caption metric. Fields of the class are its settings: `{my_metrics.py:MyMetric: {threshold: 0.5}}`.

    Attributes:
        name: What it is asked for by; also the name of its figure where there is one.
        about: What it measures, in one line.
        better: `higher`, `lower` or `none`.
        decimals: Digits after the point.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    better: ClassVar[Better] = "higher"
    decimals: ClassVar[int] = 1

    @classmethod
    def applies(cls, groups: Sequence[PromptGroup]) -> bool:
        """Whether these prompts have what it needs; else it is left out where all metrics are asked for."""
        return True

    def measure(self, captioned: Captioned) -> Measured | Mapping[str, Measured]:
        """Return the figure, or figures by name.

        Raises:
            Unavailable: It needs something that is missing here; the text says what.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no measure(self, captioned)")

    def figure(self, name: str) -> Figure:
        """Return how one of its figures is called and written."""
        title = name.replace("_", " ")
        return Figure(name=name, title=title, better=self.better, decimals=self.decimals, about=self.about)

    def scores(self, captioned: Captioned) -> dict[str, Score]:
        """Return the figures with their intervals.

        Raises:
            Unavailable: It needs something that is missing here.
            RecipeError: A metric of yours fails, or returns something else.
        """
        try:
            measured = self.measure(captioned)
            figures = measured if isinstance(measured, Mapping) else {self.name: measured}
            return {str(name): _score(value, len(captioned.tokens)) for name, value in figures.items()}
        except (Unavailable, UserError):
            raise
        except Exception as error:
            if type(self).__module__.startswith("cwdpo."):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise RecipeError(
                f"metric {self.name}: failed at {frame.filename}:{frame.lineno}: {type(error).__name__}: "
                f"{one_line(error, 200)}; it must return a number, one number per picture, or figures by name"
            ) from error


def _score(value: Measured, pictures: int) -> Score:
    if isinstance(value, Score):
        return value
    each = np.asarray(value, dtype=float)
    if each.ndim == 0:
        return Score(float(each))
    if each.shape != (pictures,):
        raise ValueError(f"{each.shape} numbers for {pictures} pictures")
    return Score.of_mean(each.tolist())


def _from_function(function: Callable[..., Any]) -> type[CaptionMetric]:
    """Return a metric that calls a function with the captions and their references, both tokenised."""

    class Called(CaptionMetric):
        name = function.__name__
        about = one_line((function.__doc__ or function.__name__).partition("\n")[0])

        def measure(self, captioned: Captioned) -> Any:
            return function(captioned.tokens, captioned.references)

    Called.__module__ = function.__module__
    return Called


METRICS = Registry("caption metric", "cwdpo.evaluation.metrics", CaptionMetric, _from_function)
"""All caption metrics by name."""
