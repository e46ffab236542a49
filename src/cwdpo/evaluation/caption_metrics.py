"""The measures of captions: pycocoevalcap's, a scene-graph F-score, diversity, length. All × 100 but length."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cwdpo.evaluation.cider import cider_of_tokens
from cwdpo.evaluation.intervals import bootstrap, bootstrap_mean
from cwdpo.evaluation.java import Unavailable, java_first
from cwdpo.evaluation.scene_graph import SceneGraphs
from cwdpo.evaluation.spice import spice

__all__ = ["METRICS", "CaptionScorer", "Score"]

METRICS: Mapping[str, str] = {
    "bleu": "BLEU-1 to BLEU-4 of the whole set (closest reference length)",
    "meteor": "METEOR 1.5 of the whole set (Java)",
    "rouge_l": "ROUGE-L, β = 1.2, mean over pictures",
    "cider": "CIDEr-D, mean over pictures; document frequencies from the references of the set",
    "spice": "SPICE 1.0, mean over pictures (Java 8 to 14 and Stanford CoreNLP 3.6.0)",
    "scene_graph_f": "F-score of objects, attributes and relations (spaCy, WordNet), mean over pictures; not SPICE",
    "distinct": "different n-grams to all n-grams of the captions, n = 1 and 2",
    "length": "tokens of a caption, mean",
}
"""What can be measured."""

Captions = Sequence[str]
References = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Score:
    """A measure of one set of captions.

    Attributes:
        value: The figure; × 100 but for length.
        interval: Its 95 % interval over pictures, where there is one.
        each: The measure of every picture, where the figure is their mean.
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


class CaptionScorer:
    """Measures captions against references. What is costly to start (METEOR, spaCy) is started once.

    Args:
        spice_jars: Folder of Stanford CoreNLP's jars; None looks beside pycocoevalcap's SPICE.
    """

    def __init__(self, spice_jars: Path | None = None) -> None:
        self._meteor_process: Any = None
        self._graphs: SceneGraphs | None = None
        self._ways: dict[str, Callable[[Captions, References], dict[str, Score]]] = {
            "bleu": _bleu,
            "meteor": self._meteor,
            "rouge_l": _rouge_l,
            "cider": lambda c, r: {"cider": Score.of_mean(cider_of_tokens(c, r)[1])},
            "spice": lambda c, r: {"spice": Score.of_mean(spice(c, r, spice_jars))},
            "scene_graph_f": self._scene_graph_f,
            "distinct": lambda c, _: {f"distinct_{n}": Score(_distinct(c, n)) for n in (1, 2)},
            "length": lambda c, _: {"length": Score.of_mean([len(text.split()) for text in c])},
        }
        assert self._ways.keys() == METRICS.keys()

    def measure(self, metric: str, captions: Captions, references: References) -> dict[str, Score]:
        """Measure one set.

        Args:
            metric: A key of `METRICS`.
            captions: One per picture, tokenised.
            references: Of each picture at least one, tokenised in the same way.

        Returns:
            The figures of the metric by name: `bleu_1` to `bleu_4` for `bleu`, else mostly one.

        Raises:
            Unavailable: It needs what is not here; the text says what.
        """
        assert captions and all(references)
        return self._ways[metric](captions, references)

    def _meteor(self, captions: Captions, references: References) -> dict[str, Score]:
        from pycocoevalcap.meteor.meteor import Meteor

        if self._meteor_process is None:
            with java_first():
                self._meteor_process = Meteor()
        gold = {i: [r.replace("|||", "") for r in rows] for i, rows in enumerate(references)}
        try:
            value, _ = self._meteor_process.compute_score(gold, {i: [c] for i, c in enumerate(captions)})
        except (OSError, ValueError) as error:  # it has ended, or writes no number
            broken, self._meteor_process = self._meteor_process, None
            broken.lock.release()  # it is still held, and its end would wait for it
            with contextlib.suppress(OSError):
                broken.meteor_p.stdin.close()
            raise Unavailable("METEOR's Java ended or failed; it needs 2 GB of memory") from error
        return {"meteor": Score(100 * float(value))}

    def _scene_graph_f(self, captions: Captions, references: References) -> dict[str, Score]:
        self._graphs = self._graphs or SceneGraphs()
        each = self._graphs.f_scores(captions, references)
        return {"scene_graph_f": Score.of_mean([100 * value for value in each])}


def _bleu(captions: Captions, references: References) -> dict[str, Score]:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for caption, gold in zip(captions, references, strict=True):
        scorer += (caption, list(gold))
    values, _ = scorer.compute_score(option="closest", verbose=0)
    rows = [
        [*one["correct"], *one["guess"], one["testlen"], min((abs(n - one["testlen"]), n) for n in one["reflen"])[1]]
        for one in scorer.ctest
    ]
    return {
        f"bleu_{n}": Score(100 * value, bootstrap(rows, lambda sums, n=n: 100 * _bleu_of(sums, n)))
        for n, value in enumerate(values, 1)
    }


def _bleu_of(sums: np.ndarray, n: int) -> np.ndarray:
    """Return BLEU-n from sums `[draws, 10]` of matches, n-grams, length and reference length, as pycocoevalcap does."""
    precision = (sums[:, :n] + 1e-15) / (sums[:, 4 : 4 + n] + 1e-9)
    ratio = (sums[:, 8] + 1e-15) / (sums[:, 9] + 1e-9)
    return precision.prod(1) ** (1 / n) * np.exp(np.minimum(0, 1 - 1 / ratio))


def _rouge_l(captions: Captions, references: References) -> dict[str, Score]:
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    each = [rouge.calc_score([c], list(gold)) for c, gold in zip(captions, references, strict=True)]
    return {"rouge_l": Score.of_mean([100 * float(value) for value in each])}


def _distinct(captions: Captions, n: int) -> float:
    grams = [tuple(tokens[i : i + n]) for tokens in map(str.split, captions) for i in range(len(tokens) - n + 1)]
    return 100 * len(set(grams)) / len(grams) if grams else 0.0
