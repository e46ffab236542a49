"""What the figures say, in words. Every word is decided by a number; what went the other way is said too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cwdpo.evaluation.intervals import mean_interval
from cwdpo.recipe.load_recipe import recipe_differences
from cwdpo.report.page_blocks import Statement, Verdict
from cwdpo.report.run_record import RunRecord, as_map, number
from cwdpo.report.ticks import signed, text_of

__all__ = ["compare_runs", "describe_run"]

_SAME = 0.02
"""Two figures without an interval that are closer than this share of the larger one are called about equal."""


_FEW = 30
"""Intervals over fewer pictures than this come with a warning."""


@dataclass(frozen=True)
class _Measure:
    """A figure of the summary: how it is written, which way is better, and what is said either way."""

    key: str
    name: str
    higher: bool
    better: str
    worse: str
    scale: float = 1.0
    decimals: int = 3
    suffix: str = ""
    change: str = ""

    def text(self, value: float) -> str:
        return text_of(value * self.scale, self.decimals) + self.suffix


_ECE = _Measure("ece", "Calibration error (ECE)", False, "ended better calibrated", "ended worse calibrated")
_GOLD = _Measure(
    "logp_chosen",
    "Gold captions, log p per token",
    True,
    "left gold captions likelier",
    "left gold captions less likely",
    change=" nats",
)
_CORRECT = _Measure(
    "correct",
    "Captions wholly right",
    True,
    "got more captions right",
    "got fewer captions right",
    scale=100,
    decimals=1,
    suffix=" %",
    change=" points",
)
_CIDER = _Measure("cider", "CIDEr", True, "scored higher CIDEr", "scored lower CIDEr", decimals=1)
_JUDGED = (_ECE, _GOLD, _CORRECT, _CIDER)

Read = Callable[[str], float | None]
"""Looks up a figure by name."""


def compare_runs(run: RunRecord, base: RunRecord) -> Verdict | None:
    """Say how a run's end differs from another run's end; None if either has no evaluation."""
    if not run.section("after") or not base.section("after"):
        return None
    shared = _shared_rows(run, base)
    statements = _drift(run, base)
    for m in _JUDGED:
        pair = (run.measure("after", m.key), base.measure("after", m.key))
        starts = (run.measure("before", m.key), base.measure("before", m.key))
        differences = [_row_value(a, "after", m) - _row_value(b, "after", m) for a, b in shared if _both(a, b, m)]
        over = _Over("pictures", differences, mean_interval)
        if run.seeds or base.seeds:
            over = _Over("seeds", _seed_differences(run, base, m), mean_interval)
        statements += _judge(m, pair, over, _starts(m, starts))
    statements += _grounding([(run.label, run.section("after")), (base.label, base.section("after"))])
    sentence = _sentence(f"Against {base.label}, {run.label}", statements)
    caveats = _caveats(run, base, len(shared))
    return Verdict(f"{run.label} against {base.label}", sentence, [s for s, _ in statements], caveats)


def describe_run(run: RunRecord) -> Verdict | None:
    """Say what the last stage changed, its end against its start; None if the run has no evaluation."""
    if not run.section("after") or not run.section("before"):
        return None
    stage = "Stage 2" if run.last_stage == "stage2" else "Stage 1"
    statements: list[tuple[Statement, str]] = []
    if (tv := run.measure("after", "tv")) is not None:
        js = run.measure("after", "js")
        text = f"TV {text_of(tv)}" + (f", JS {text_of(js)} bits" if js is not None else "") + " from the stage's start."
        statements.append((Statement("Drift of the token distribution", text), ""))
    for m in _JUDGED:
        pair = (run.measure("after", m.key), run.measure("before", m.key))
        both = [r for r in run.rows if _known(r, "after", m) and _known(r, "before", m)]
        over = _Over("pictures", [_row_value(r, "after", m) - _row_value(r, "before", m) for r in both], mean_interval)
        if run.seeds:
            pairs = [(one.measure("after", m.key), one.measure("before", m.key)) for one in run.seeds]
            over = _Over("seeds", [a - b for a, b in pairs if a is not None and b is not None], mean_interval)
        statements += _judge(m, pair, over, "", joint="after, before")
    statements += _grounding([("After", run.section("after")), ("before", run.section("before"))])
    sentence = _sentence(f"Over {stage}, {run.label}", statements)
    caveat = _MEANS.format(len(run.seeds)) if run.seeds else _SEEDS.replace("One run of each", "One run")
    return Verdict(f"{stage} ({run.label}): end against start", sentence, [s for s, _ in statements], [caveat])


@dataclass(frozen=True)
class _Over:
    """Paired differences, what they are over, and how their 95 % interval is found."""

    what: str
    differences: Sequence[float]
    interval: Callable[[Sequence[float]], tuple[float, float, float]]


_MEANS = "Means over {} seeds; the intervals are over seeds (Student's t), paired by seed."
_SEEDS = "One run of each: the intervals are over held-out pictures and say nothing about other seeds."


# -- single statements -------------------------------------------------------------------------------------------------


def _drift(run: RunRecord, base: RunRecord) -> list[tuple[Statement, str]]:
    """Say how far each run moved from its own start. Less is not better by itself, so it is only stated."""
    a, b = run.measure("after", "tv"), base.measure("after", "tv")
    if a is None or b is None:
        return []
    js = [r.measure("after", "js") for r in (run, base)]
    bits = [f" (JS {text_of(j)} bits)" if j is not None else "" for j in js]
    moved = [f"TV {text_of(v)}{more}" for v, more in zip((a, b), bits, strict=True)]
    if _about_equal(a, b):
        word, phrase = "about as far.", "= drift of the token distribution"
    else:
        less, ratio = a < b, max(a, b) / max(min(a, b), 1e-12)
        word = f"{ratio:.1f} times {'less' if less else 'more'}."
        phrase = f"{'+' if less else '-'} moved the token distribution {'less' if less else 'more'}"
    text = f"{moved[0]} from the stage's start, against {moved[1]}: {word}"
    return [(Statement("Drift of the token distribution", text), phrase)]


def _judge(
    m: _Measure, pair: tuple[float | None, float | None], over: _Over, starts: str, joint: str = ""
) -> list[tuple[Statement, str]]:
    """Say which of two figures is better, with the paired 95 % interval where there are pairs."""
    (a, b), differences = pair, over.differences
    if a is None or b is None:
        return []
    values = f"{m.text(a)} after, {m.text(b)} before" if joint else f"{m.text(a)} against {m.text(b)}"
    gap = signed((a - b) * m.scale, m.decimals) + m.change
    better = a > b if m.higher else a < b
    phrase = f"+ {m.better}" if better else f"- {m.worse}"
    topic = m.name[0].lower() + m.name[1:] if not m.name.startswith("CIDEr") else m.name
    if differences and not any(differences):
        phrase = f"= {topic}"
        text = f"{values}: the same on each of {len(differences):,} {over.what}."
    elif len(set(differences)) > 1:
        _, low, high = (v * m.scale for v in over.interval(differences))
        ends = f"[{text_of(low, m.decimals)}, {text_of(high, m.decimals)}]"
        interval = f"95 % interval {ends}, {len(differences):,} {over.what}"
        if low <= 0 <= high:
            phrase, interval = f"= {topic}", f"{interval}; it includes 0, so no difference is shown"
        text = f"{values}: {gap}, {interval}."
    else:
        if _about_equal(a, b):
            phrase = f"= {topic}"
        word = "about equal" if phrase[0] == "=" else ("higher" if a > b else "lower")
        text = f"{values}: {word}."
    return [(Statement(m.name, f"{text}{starts}", _sign(phrase)), phrase)]


def _grounding(parts: Sequence[tuple[str, dict[str, object]]]) -> list[tuple[Statement, str]]:
    """Say how much likelier gold captions are with their own picture than with another."""
    said: list[str] = []
    for name, part in parts:
        found = as_map(part.get("grounding"))
        gap, low, high = (number(found.get(k)) for k in ("gap", "low", "high"))
        if gap is not None:
            interval = "" if low is None or high is None else f" [{text_of(low)}, {text_of(high)}]"
            said.append(f"{name} {text_of(gap)}{interval}")
    if not said:
        return []
    text = f"{', '.join(said)} nats per token likelier than with another picture (95 % intervals)."
    return [(Statement("Gold captions with their own picture", text), "")]


def _starts(m: _Measure, starts: tuple[float | None, float | None]) -> str:
    a, b = starts
    if a is None or b is None:
        return ""
    if m.text(a) == m.text(b):
        return f" Both started at {m.text(a)}."
    return f" They started at {m.text(a)} and {m.text(b)}."


def _sentence(subject: str, statements: Sequence[tuple[Statement, str]]) -> str:
    """Put the phrases together: what is in favour, what is against, what is open."""
    phrases = [p for _, p in statements if p]
    good, bad, even = ([p[2:] for p in phrases if p[0] == s] for s in "+-=")
    parts: list[str] = []
    if good:
        parts.append(f"{subject} {_join(good)}.")
    if bad:
        parts.append(f"{'But it' if good else subject} {_join(bad)}.")
    if even:
        parts.append(f"No difference is shown in {_join(even)}.")
    return " ".join(parts) or f"{subject}: there is no figure to compare."


def _sign(phrase: str) -> str:
    return {"+": "good", "-": "bad", "=": "open"}[phrase[0]]


def _join(phrases: Sequence[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]


def _about_equal(a: float, b: float) -> bool:
    return abs(a - b) <= _SAME * max(abs(a), abs(b))


# -- rows --------------------------------------------------------------------------------------------------------------


def _shared_rows(run: RunRecord, base: RunRecord) -> list[tuple[dict[str, object], dict[str, object]]]:
    """Return the rows of both runs that show the same prompt."""
    others = {str(r.get("id")): r for r in base.rows}
    return [(r, others[str(r.get("id"))]) for r in run.rows if str(r.get("id")) in others]


def _seed_differences(run: RunRecord, base: RunRecord, m: _Measure) -> list[float]:
    """Return the differences between the ends of runs with the same seed."""
    others = {one.seed: one.measure("after", m.key) for one in base.each}
    pairs = [(one.measure("after", m.key), others.get(one.seed)) for one in run.each]
    return [a - b for a, b in pairs if a is not None and b is not None]


def _known(row: dict[str, object], when: str, m: _Measure) -> bool:
    return _lookup(row, when, m) is not None


def _both(a: dict[str, object], b: dict[str, object], m: _Measure) -> bool:
    return _known(a, "after", m) and _known(b, "after", m)


def _lookup(row: dict[str, object], when: str, m: _Measure) -> float | None:
    part = as_map(row.get(when))
    if m.key == "logp_chosen":
        return number(as_map(part.get("logp")).get("chosen"))
    value = part.get(m.key)
    return float(value) if isinstance(value, bool) else number(value)


def _row_value(row: dict[str, object], when: str, m: _Measure) -> float:
    value = _lookup(row, when, m)
    assert value is not None
    return value


# -- what the reader must know besides ---------------------------------------------------------------------------------


def _caveats(run: RunRecord, base: RunRecord, shared: int) -> list[str]:
    found: list[str] = []
    pooled = run.seeds or base.seeds
    if pooled:
        same = {one.seed for one in run.each} & {one.seed for one in base.each}
        found.append(_MEANS.format(len(run.each)))
        if len(run.each) != len(base.each) or len(same) < len(run.each):
            counts = f"{run.label} has {len(run.each)} seeds, {base.label} {len(base.each)}"
            found.append(f"{counts}; {len(same)} of them are the same, and only these are paired.")
    elif not shared:
        found.append("The two runs were measured on different held-out pictures: compare with care.")
    elif shared < max(len(run.rows), len(base.rows)):
        found.append(f"Intervals are over the {shared:,} held-out pictures that both runs were measured on.")
    if 0 < shared < _FEW:
        found.append(f"{shared} pictures are few: take the intervals as rough.")
    starts = (run.start_digest(), base.start_digest())
    if None not in starts and starts[0] != starts[1]:
        one, two = run.origin, base.origin
        where = f" ({run.label} from {one}, {base.label} from {two})" if one != two else ""
        found.append(f"The last stages started from different weights{where}: this compares the whole routes.")
    ignored = ("name", "stage1.objective", "stage2.objective", "evaluation.samples", "report_to")
    keys = [d.split(" ")[0] for d in recipe_differences(base.recipe, run.recipe)]
    if others := [k for k in keys if k not in ignored]:
        more = f" and {len(others) - 6} more" if len(others) > 6 else ""
        found.append(f"Besides the objective, the recipes differ in {', '.join(others[:6])}{more}.")
    return found if pooled else [*found, _SEEDS]
