"""All measures of a set of captions: over all pictures, by domain, and over the hypotheses of a beam."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cwdpo.chat.answer_cache import TextCache
from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.errors import DataError
from cwdpo.evaluation.caption_metrics import CaptionScorer, Score
from cwdpo.evaluation.java import Unavailable
from cwdpo.evaluation.tokenize_captions import PTB, WORDS, Tokenizer, tokenize
from cwdpo.files import text_digest
from cwdpo.scenes.grammar import is_correct
from cwdpo.scenes.world import Scene

__all__ = ["Measurement", "references_of"]

Results = dict[str, Score | str]
"""Figures by name; text is why a measure cannot be had."""


def references_of(groups: Sequence[PromptGroup]) -> list[tuple[str, ...]]:
    """Return the gold captions of each prompt.

    Raises:
        DataError: A prompt has none.
    """
    found = [group.references or tuple(r.text for r in group.by_role(CHOSEN)) for group in groups]
    for group, texts in zip(groups, found, strict=True):
        if not texts:
            raise DataError(f"{group.origin or group.id}: has no reference caption to compare with")
    return found


class Measurement:
    """Measures of captions, each kept as soon as it is known.

    Args:
        groups: The prompts, with references.
        captions: Of each prompt as many hypotheses, the best first.
        metrics: Keys of `METRICS`.
        kept: JSON-lines file that keeps figures; the same captions and references are not measured twice.
        tokenizer: How captions and references are cut into tokens.
        scorer: Measures.
        progress: Called with measures done and their number.
    """

    def __init__(
        self,
        groups: Sequence[PromptGroup],
        captions: Sequence[Sequence[str]],
        metrics: Sequence[str],
        *,
        kept: Path,
        tokenizer: Tokenizer,
        scorer: CaptionScorer,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        references = references_of(groups)
        self._metrics, self._scorer, self._kept = metrics, scorer, TextCache(kept)
        flat = iter(tokenize([t for rows in (*captions, *references) for t in rows], tokenizer))
        self._captions = [[next(flat) for _ in rows] for rows in captions]
        self._references = [[next(flat) for _ in rows] for rows in references]
        self._groups, self._raw, self._tokenizer = groups, captions, tokenizer
        self.domains = {
            name: [i for i, group in enumerate(groups) if group.facts.get("domain") == name]
            for name in dict.fromkeys(str(g.facts["domain"]) for g in groups if "domain" in g.facts)
        }
        self._progress, self._done = progress, 0
        self._total = len(metrics) * (len(captions[0]) + len(self.domains))

    def run(self) -> dict[str, Any]:
        """Return everything as JSON: `metrics`, `beam` where there are several hypotheses, `domains`, `each`."""
        everything = range(len(self._groups))
        ranks = [self._measure(everything, rank) for rank in range(len(self._captions[0]))]
        found: dict[str, Any] = {
            "pictures": len(self._groups),
            "references": sum(map(len, self._references)),
            "tokenizer": PTB if self._tokenizer == "ptb" else WORDS,
            "metrics": _to_json(ranks[0]),
        }
        if len(ranks) > 1:
            found["beam"] = {"hypotheses": len(ranks), "metrics": _over_ranks(ranks)}
        if self.domains:
            parts = {name: (len(rows), self._measure(rows, 0)) for name, rows in self.domains.items()}
            found["domains"] = {n: {"pictures": count, "metrics": _to_json(part)} for n, (count, part) in parts.items()}
        each = {name: score.each for name, score in ranks[0].items() if isinstance(score, Score) and score.each}
        found["each"] = [{name: values[i] for name, values in each.items()} for i in everything]
        return found

    def _measure(self, pictures: Sequence[int], rank: int) -> Results:
        captions = [self._captions[i][rank] for i in pictures]
        references = [self._references[i] for i in pictures]
        found: Results = {}
        for metric in self._metrics:
            try:
                found |= self._one(metric, captions, references)
            except Unavailable as reason:
                found[metric] = str(reason)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
        if all("scene" in self._groups[i].facts for i in pictures):
            scenes = [Scene.from_json(self._groups[i].facts["scene"]) for i in pictures]
            texts = [self._raw[i][rank] for i in pictures]
            right = [100.0 * is_correct(text, scene) for text, scene in zip(texts, scenes, strict=True)]
            found["correct"] = Score.of_mean(right)
        return found

    def _one(self, metric: str, captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
        key = text_digest(metric, *captions, *("\n".join(rows) for rows in references))
        if key not in self._kept:
            scores = self._scorer.measure(metric, captions, references)
            self._kept.add({key: {name: asdict(score) for name, score in scores.items()}})
        return {name: _score(row) for name, row in self._kept[key].items()}


def _score(row: Mapping[str, Any]) -> Score:
    interval, each = row["interval"], row["each"]
    return Score(row["value"], tuple(interval) if interval else None, tuple(each) if each else None)


def _to_json(results: Results) -> dict[str, dict[str, Any]]:
    return {n: s.to_json() if isinstance(s, Score) else {"unavailable": s} for n, s in results.items()}


def _over_ranks(ranks: Sequence[Results]) -> dict[str, dict[str, Any]]:
    """Return the mean over hypotheses rank by rank, and of means over pictures also the best hypothesis of each."""
    found: dict[str, dict[str, Any]] = {}
    for name, first in ranks[0].items():
        scores = [score for rank in ranks if isinstance(score := rank[name], Score)]
        if not isinstance(first, Score) or len(scores) < len(ranks):
            continue
        each = [score.each for score in scores if score.each is not None]
        if not each:
            found[name] = {"mean": {"value": sum(score.value for score in scores) / len(scores)}}
            continue
        pictures = list(zip(*each, strict=True))
        found[name] = {"mean": Score.of_mean([sum(values) / len(values) for values in pictures]).to_json()}
        if name != "length":
            found[name]["best"] = Score.of_mean([max(values) for values in pictures]).to_json()
    return found
