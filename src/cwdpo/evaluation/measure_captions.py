"""All metrics of a set of captions: over all pictures, by domain, and over the hypotheses of a beam."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cwdpo.chat.answer_cache import TextCache
from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.errors import DataError
from cwdpo.evaluation.java import Unavailable
from cwdpo.evaluation.metrics import Captioned, CaptionMetric, Score
from cwdpo.evaluation.tokenize_captions import TOKENS, Tokenizer, tokenize
from cwdpo.files import text_digest

__all__ = ["captioned", "measure", "references_of"]

Figures = dict[str, Score | str]
"""Figures by name; a text says why a metric is unavailable."""


def references_of(groups: Sequence[PromptGroup]) -> list[tuple[str, ...]]:
    """Return the reference captions of each prompt.

    Raises:
        DataError: A prompt has none.
    """
    references = [group.references or tuple(r.text for r in group.by_role(CHOSEN)) for group in groups]
    for group, texts in zip(groups, references, strict=True):
        if not texts:
            raise DataError(f"{group.origin or group.id}: has no reference caption to compare with")
    return references


def captioned(
    groups: Sequence[PromptGroup],
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
) -> list[Captioned]:
    """Return the captions of each rank (the best of every prompt, the second best, …), tokenised in one call."""
    flat = iter(tokenize([text for rows in (*captions, *references) for text in rows], tokenizer))
    tokens = [[next(flat) for _ in rows] for rows in captions]
    gold = [[next(flat) for _ in rows] for rows in references]
    texts, ranked = (list(zip(*table, strict=True)) for table in (captions, tokens))
    return [Captioned(groups, said, cut, gold) for said, cut in zip(texts, ranked, strict=True)]


def measure(
    groups: Sequence[PromptGroup],
    captions: Sequence[Sequence[str]],
    metrics: Sequence[CaptionMetric],
    *,
    kept: Path,
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure captions.

    Args:
        groups: The prompts, with references.
        captions: Of each prompt as many hypotheses, the best first.
        metrics: What is measured.
        kept: JSON-lines file of figures; the same captions and references are not measured twice.
        tokenizer: How captions and references are tokenised.
        progress: Called with the metrics measured and their number.

    Returns:
        As JSON: `metrics`, `beam` where there are several hypotheses, `domains` (NoCaps) and `each` (per picture).
    """
    ranks = captioned(groups, captions, references_of(groups), tokenizer)
    domains = {
        name: [i for i, group in enumerate(groups) if group.facts.get("domain") == name]
        for name in dict.fromkeys(str(g.facts["domain"]) for g in groups if "domain" in g.facts)
    }
    sets = [*ranks, *(ranks[0].part(rows) for rows in domains.values())]
    cache, figures, done = TextCache(kept), list[Figures](), 0
    for one in sets:
        figures.append({})
        for metric in metrics:
            figures[-1] |= _measured(metric, one, cache)
            done += 1
            if progress is not None:
                progress(done, len(metrics) * len(sets))
    overall, parts = figures[: len(ranks)], figures[len(ranks) :]
    result: dict[str, Any] = {
        "pictures": len(groups),
        "references": sum(map(len, ranks[0].references)),
        "tokenizer": TOKENS[tokenizer],
        "metrics": _to_json(overall[0]),
    }
    if len(ranks) > 1:
        result["beam"] = {"hypotheses": len(ranks), "metrics": _over_ranks(overall)}
    if domains:
        result["domains"] = {
            name: {"pictures": len(rows), "metrics": _to_json(part)}
            for (name, rows), part in zip(domains.items(), parts, strict=True)
        }
    each = {name: score.each for name, score in overall[0].items() if isinstance(score, Score) and score.each}
    result["each"] = [{name: values[i] for name, values in each.items()} for i in range(len(groups))]
    return result


def _measured(metric: CaptionMetric, one: Captioned, cache: TextCache) -> Figures:
    gold = ("\n".join(rows) for rows in one.references)
    how = (type(metric).__module__, metric.name, metric.model_dump_json())
    key = text_digest(*how, *(g.id for g in one.groups), *one.texts, *one.tokens, *gold)
    if key not in cache:
        try:
            scores = metric.scores(one)
        except Unavailable as reason:
            return {metric.name: str(reason)}
        cache.add({key: {name: asdict(score) for name, score in scores.items()}})
    return {name: _score(row) for name, row in cache[key].items()}


def _score(row: Mapping[str, Any]) -> Score:
    interval, each = row["interval"], row["each"]
    return Score(row["value"], tuple(interval) if interval else None, tuple(each) if each else None)


def _to_json(figures: Figures) -> dict[str, dict[str, Any]]:
    return {n: s.to_json() if isinstance(s, Score) else {"unavailable": s} for n, s in figures.items()}


def _over_ranks(ranks: Sequence[Figures]) -> dict[str, dict[str, Any]]:
    """Return the mean over hypotheses rank by rank, and of means over pictures also the best hypothesis of each."""
    result: dict[str, dict[str, Any]] = {}
    for name in ranks[0]:
        scores = [score for rank in ranks if isinstance(score := rank.get(name), Score)]
        if len(scores) < len(ranks):
            continue
        each = [score.each for score in scores if score.each is not None]
        if len(each) < len(ranks):
            result[name] = {"mean": {"value": sum(score.value for score in scores) / len(scores)}}
            continue
        pictures = list(zip(*each, strict=True))
        result[name] = {"mean": Score.of_mean([sum(values) / len(values) for values in pictures]).to_json()}
        if name != "length":
            result[name]["best"] = Score.of_mean([max(values) for values in pictures]).to_json()
    return result
