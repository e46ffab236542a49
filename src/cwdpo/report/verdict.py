"""What the figures say, in words. Every word is decided by a number; what went the other way is said too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cwdpo.evaluation.intervals import mean_interval, paired_share_interval
from cwdpo.probes.figures import EVALUATED, Figure
from cwdpo.recipe.load_recipe import recipe_differences
from cwdpo.report.page_blocks import Statement, Verdict
from cwdpo.report.run_record import STAGES, RunRecord, measured
from cwdpo.report.ticks import signed, text_of
from cwdpo.report.values import as_map, number

__all__ = ["compare_runs", "describe_run"]

_SAME = 0.02
"""Two figures without an interval that are closer than this share of the larger one are called about equal."""

_FEW = 30
"""Intervals over fewer pictures than this come with a warning."""

_FEW_CAPTIONS = 10
"""Fewer captions than this may be the same by chance."""

_JUDGED = {
    "ece": ("ended better calibrated", "ended worse calibrated"),
    "logp_chosen": ("left gold captions likelier", "left gold captions less likely"),
    "correct": ("got more captions right", "got fewer captions right"),
    "cider": ("scored higher CIDEr", "scored lower CIDEr"),
}
"""What is judged, and what is said where it got better or worse."""

_MEANS = "Means over {} seeds; the intervals are over seeds (Student's t), paired by seed."
_SEEDS = "{}: the intervals are over held-out pictures and say nothing about other seeds."

_Said = tuple[Statement, str]
"""A statement, and its phrase for the sentence: `+` in favour, `-` against, `=` open, or nothing."""


@dataclass(frozen=True)
class _Pair:
    """Two measurements of a figure, and their paired differences.

    Attributes:
        one: A run's, or the end's.
        other: Another run's, or the start's.
        differences: One minus the other, a value each picture or seed.
        what: What the differences are over.
    """

    one: float | None
    other: float | None
    differences: Sequence[float]
    what: str

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the mean difference; NaN where the differences have no spread."""
        if self.what == "pictures" and set(self.differences) <= {-1.0, 0.0, 1.0}:
            return paired_share_interval(self.differences)
        return mean_interval(self.differences)[1:]


def compare_runs(run: RunRecord, base: RunRecord) -> Verdict | None:
    """Say how a run's end differs from another run's end; None if either has no evaluation."""
    if not run.summary.get("after") or not base.summary.get("after"):
        return None
    others = {str(r.get("id")): r for r in base.evaluated}
    shared = [(r, others[str(r.get("id"))]) for r in run.evaluated if str(r.get("id")) in others]
    said = _drift(run, base)
    for name in _JUDGED:
        ends = run.measure("after", name), base.measure("after", name)
        if run.seeds or base.seeds:
            seeds = {one.seed: one.measure("after", name) for one in base.each}
            pairs = [(one.measure("after", name), seeds.get(one.seed)) for one in run.each]
        else:
            pairs = [(_of_row(a, "after", name), _of_row(b, "after", name)) for a, b in shared]
        starts = run.measure("before", name), base.measure("before", name)
        said += _judge(name, _pair(ends, pairs, run, base), "against", "", _starts(EVALUATED[name], *starts))
    said += _grounding([(run.label, run.summary["after"]), (base.label, base.summary["after"])])
    sentence = _sentence(f"Against {base.label}, {run.label}", said)
    return Verdict(
        f"{run.label} against {base.label}", sentence, [s for s, _ in said], _caveats(run, base, len(shared))
    )


def describe_run(run: RunRecord) -> Verdict | None:
    """Say what each stage changed on the same held-out prompts, from the base on; None without an evaluation."""
    if not run.summary.get("after") or not run.summary.get("before"):
        return None
    stage = STAGES[run.last_stage]
    said: list[_Said] = []
    if (moved := _moved(run)) is not None:
        said.append((Statement("Drift of the token distribution", f"{moved} from the stage's start."), ""))
    changed = _changed(run, "before", "after")
    said += changed
    said += _grounding([("After", run.summary["after"]), ("before", run.summary["before"])])
    caveat = _MEANS.format(len(run.seeds)) if run.seeds else _SEEDS.format("One run")
    sentence = _sentence(f"Over {stage}, {run.label}", said) + _plainly(stage, changed)
    heading, statements = f"{stage} ({run.label}): end against start", [s for s, _ in said]
    if run.after_stage1 and (first := _changed(run, "base", "before")):
        sentence = f"{_sentence(f'Over Stage 1, {run.label}', first)}{_plainly('Stage 1', first)} {sentence}"
        heading = f"Base → Stage 1 → Stage 2 ({run.label}), on the same held-out prompts"
        statements = [*(replace(s, measure=f"Stage 1: {s.measure}") for s, _ in first), *statements]
    return Verdict(heading, _blind(run) + sentence, statements, [caveat])


def _blind(run: RunRecord) -> str:
    """Say it first where a model says the same whatever the picture."""
    signs: list[str] = []
    gap, low, high = (number(run.summary["after"], "grounding", key) for key in ("gap", "low", "high"))
    if gap is not None and low is not None and low <= 0:
        ends = f"[{text_of(low)}, {text_of(high)}]"
        signs.append(f"gold captions are not likelier with their own picture than with another ({text_of(gap)} {ends})")
    captions = [c for row in run.evaluated if isinstance(c := as_map(row, "after").get("caption"), str)]
    most = max(Counter(captions).values(), default=0)
    if len(captions) >= _FEW_CAPTIONS and 2 * most > len(captions):
        signs.append(f"{most} of {len(captions)} captions are the same")
    if not signs:
        return ""
    others = f"negatives.{run.last_stage}.other"
    remedy = "Make sure that rows have their own pictures (`cwdpo check`)"
    remedy += (
        "." if number(run.recipe, *others.split(".")) else f", and train with {others}, answers to other pictures."
    )
    return f"{run.label} does not show that it looks at the picture: {_join(signs)}. {remedy} "


def _changed(run: RunRecord, start: str, end: str) -> list[_Said]:
    """Say how every judged figure changed between two models of a run, on the same prompts."""
    said: list[_Said] = []
    for name in _JUDGED:
        ends = run.measure(end, name), run.measure(start, name)
        if run.seeds:
            pairs = [(one.measure(end, name), one.measure(start, name)) for one in run.seeds]
        else:
            pairs = [(_of_row(r, end, name), _of_row(r, start, name)) for r in run.evaluated]
        said += _judge(name, _pair(ends, pairs, run), "after,", " before")
    return said


def _plainly(stage: str, said: Sequence[_Said]) -> str:
    """Say it where nothing speaks for a stage."""
    signs = {phrase[0] for _, phrase in said if phrase}
    if "+" in signs or not signs:
        return ""
    return (
        f" {stage} made it worse: the model before it is the better one."
        if "-" in signs
        else (f" {stage} made no difference that is shown: stopping before it would have done.")
    )


def _pair(
    ends: tuple[float | None, float | None], pairs: Sequence[tuple[float | None, float | None]], *runs: RunRecord
) -> _Pair:
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return _Pair(*ends, differences, "seeds" if any(run.seeds for run in runs) else "pictures")


def _of_row(row: Mapping[str, Any], when: str, name: str) -> float | None:
    part = row.get(when)
    return measured(part, name) if isinstance(part, Mapping) else None


# -- single statements -------------------------------------------------------------------------------------------------


def _moved(run: RunRecord) -> str | None:
    tv, js = (run.measure("after", name) for name in ("tv", "js"))
    return None if tv is None else f"TV {text_of(tv)}" + ("" if js is None else f" (JS {text_of(js)} bits)")


def _drift(run: RunRecord, base: RunRecord) -> list[_Said]:
    """Say how far each run moved from its own start. Less is not better by itself, so it is only stated."""
    a, b = run.measure("after", "tv"), base.measure("after", "tv")
    if a is None or b is None:
        return []
    word, phrase = "about as far.", "= drift of the token distribution"
    if not _about_equal(a, b):
        less, ratio = a < b, max(a, b) / max(min(a, b), 1e-12)
        word = f"{ratio:.1f} times {'less' if less else 'more'}."
        phrase = f"{'+' if less else '-'} moved the token distribution {'less' if less else 'more'}"
    text = f"{_moved(run)} from the stage's start, against {_moved(base)}: {word}"
    return [(Statement("Drift of the token distribution", text), phrase)]


def _judge(name: str, pair: _Pair, word: str, last: str, starts: str = "") -> list[_Said]:
    """Say which of two values is better, with the paired 95 % interval where there are pairs."""
    figure, (better, worse) = EVALUATED[name], _JUDGED[name]
    a, b, differences = pair.one, pair.other, pair.differences
    if a is None or b is None:
        return []
    phrase = f"+ {better}" if (a > b) == (figure.better == "higher") else f"- {worse}"
    topic = figure.title if figure.title.startswith("CIDEr") else figure.title[0].lower() + figure.title[1:]
    count = f"{len(differences):,} {pair.what}"
    unit = "points" if figure.percent else figure.unit.partition(" ")[0]
    gap = f"{signed(figure.scaled(a - b), figure.decimals)} {unit}".rstrip()
    if differences and not any(differences):
        phrase, text = f"= {topic}", f"the same on each of {count}."
    elif len(differences) > 1 and not math.isnan((ends := pair.interval())[0]):
        low, high = ends
        text = f"{gap}, 95 % interval [{', '.join(text_of(figure.scaled(v), figure.decimals) for v in ends)}], {count}"
        if low <= 0 <= high:
            phrase, text = f"= {topic}", f"{text}; it includes 0, so no difference is shown"
        text += "."
    elif len(differences) > 1:
        text = f"{gap} on each of {count}."
    else:
        phrase = f"= {topic}" if _about_equal(a, b) else phrase
        text = "about equal." if phrase[0] == "=" else ("higher." if a > b else "lower.")
    text = f"{_text(figure, a)} {word} {_text(figure, b)}{last}: {text}{starts}"
    return [(Statement(figure.title, text, {"+": "good", "-": "bad", "=": "open"}[phrase[0]]), phrase)]


def _text(figure: Figure, value: float) -> str:
    return text_of(figure.scaled(value), figure.decimals) + (" %" if figure.percent else "")


def _grounding(parts: Sequence[tuple[str, Any]]) -> list[_Said]:
    """Say how much likelier gold captions are with their own picture than with another."""
    said: list[str] = []
    for name, part in parts:
        gap, low, high = (number(part, "grounding", key) for key in ("gap", "low", "high"))
        if gap is not None:
            ends = "" if low is None or high is None else f" [{text_of(low)}, {text_of(high)}]"
            said.append(f"{name} {text_of(gap)}{ends}")
    if not said:
        return []
    text = f"{', '.join(said)} nats per token likelier than with another picture (95 % intervals)."
    return [(Statement(EVALUATED["grounding"].title, text), "")]


def _starts(figure: Figure, a: float | None, b: float | None) -> str:
    if a is None or b is None:
        return ""
    one, two = _text(figure, a), _text(figure, b)
    return f" Both started at {one}." if one == two else f" They started at {one} and {two}."


def _sentence(subject: str, said: Sequence[_Said]) -> str:
    """Put the phrases together: what is in favour, what is against, what is open."""
    phrases = [p for _, p in said if p]
    good, bad, even = ([p[2:] for p in phrases if p[0] == s] for s in "+-=")
    parts = [f"{subject} {_join(good)}."] if good else []
    if bad:
        parts.append(f"{'But it' if good else subject} {_join(bad)}.")
    if even:
        parts.append(f"No difference is shown in {_join(even)}.")
    return " ".join(parts) or f"{subject}: there is no figure to compare."


def _join(phrases: Sequence[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]


def _about_equal(a: float, b: float) -> bool:
    return abs(a - b) <= _SAME * max(abs(a), abs(b))


# -- what the reader must know besides ---------------------------------------------------------------------------------


def _caveats(run: RunRecord, base: RunRecord, shared: int) -> list[str]:
    said: list[str] = []
    if run.seeds or base.seeds:
        same = {one.seed for one in run.each} & {one.seed for one in base.each}
        said.append(_MEANS.format(len(run.each)))
        if len(run.each) != len(base.each) or len(same) < len(run.each):
            counts = f"{run.label} has {len(run.each)} seeds, {base.label} {len(base.each)}"
            said.append(f"{counts}; {len(same)} of them are the same, and only these are paired.")
    elif not shared:
        said.append("The two runs were measured on different held-out pictures: compare with care.")
    elif shared < max(len(run.evaluated), len(base.evaluated)):
        said.append(f"Intervals are over the {shared:,} held-out pictures that both runs were measured on.")
    if 0 < shared < _FEW:
        said.append(f"{shared} pictures are few: take the intervals as rough.")
    starts = run.start_digest(), base.start_digest()
    if None not in starts and starts[0] != starts[1]:
        one, two = run.origin, base.origin
        where = f" ({run.label} from {one}, {base.label} from {two})" if one != two else ""
        said.append(f"The last stages started from different weights{where}: this compares the whole routes.")
    ignored = ("name", "stage1.objective", "stage2.objective", "evaluation.samples", "report_to")
    keys = [d.split(" ")[0] for d in recipe_differences(base.recipe, run.recipe)]
    if others := [k for k in keys if k not in ignored]:
        more = f" and {len(others) - 6} more" if len(others) > 6 else ""
        said.append(f"Besides the objective, the recipes differ in {', '.join(others[:6])}{more}.")
    return said if run.seeds or base.seeds else [*said, _SEEDS.format("One run of each")]
