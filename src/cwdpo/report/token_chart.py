"""The likeliest next tokens at some places of gold responses: at the start of a stage, and now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.report.bars import TokenRow, token_chart
from cwdpo.report.page_blocks import Block, Figure, Panel, run_style
from cwdpo.report.run_record import RunRecord, as_list, as_map, number

__all__ = ["token_figure"]

_MOST_PANELS = 4
_LONGEST = 14
"""Characters of a token that are shown."""

Place = dict[str, float]
"""Probabilities by token."""


def token_figure(runs: Sequence[RunRecord], stage: str) -> Block | None:
    """Return the five likeliest tokens at the place of each chosen prompt that moved most; None if none were kept."""
    having = [(i, run, run.stages[stage].tokens) for i, run in enumerate(runs) if stage in run.stages]
    read = [(i, run, _prompts(tokens)) for i, run, tokens in having]
    read = [item for item in read if item[2]]
    if not read:
        return None
    panels: list[Panel] = []
    shown: dict[str, str] = {}
    for key, first in list(read[0][2].items())[:_MOST_PANELS]:
        same = [(i, run, prompts[key]) for i, run, prompts in read if key in prompts and prompts[key][0] == first[0]]
        panel = _panel(first[0], [(run.label, run_style(i), places) for i, run, (_, places) in same])
        if panel is not None:
            panels.append(panel)
            shown |= {run.label: run_style(i) for i, run, _ in same}
    if not panels:
        return None
    text = (
        "What the model expects next at one place of a gold response: the five likeliest tokens, bar now, tick at the "
        "start of the stage; the gold token is bold. Of each of the first probe prompts the place that moved most: an "
        "extreme, not a typical place."
    )
    if any(run.seeds for _, run, _ in read):
        text += " Of several seeds, the first."
    return Figure("Likeliest tokens, start and now", text, panels, legend=list(shown.items()))


def _prompts(tokens: Mapping[str, Any]) -> dict[str, tuple[list[str], list[tuple[Place, Place]]]]:
    """Return gold tokens and (start, now) at every place, by prompt, of what can be read."""
    found: dict[str, tuple[list[str], list[tuple[Place, Place]]]] = {}
    for start, last in zip(as_list(tokens.get("start")), as_list(tokens.get("last")), strict=False):
        one, other = as_map(start), as_map(last)
        gold = [str(t) for t in as_list(one.get("gold"))]
        places = list(
            zip(map(_place, as_list(one.get("places"))), map(_place, as_list(other.get("places"))), strict=False)
        )
        if gold and len(places) == len(gold):
            found[str(one.get("id"))] = (gold, places)
    return found


def _place(pairs: object) -> Place:
    found: Place = {}
    for pair in map(as_list, as_list(pairs)):
        share = number(pair[1]) if len(pair) == 2 else None
        if share is not None:
            found[str(pair[0])] = min(1.0, max(0.0, share))
    return found


def _panel(gold: Sequence[str], runs: Sequence[tuple[str, str, Sequence[tuple[Place, Place]]]]) -> Panel | None:
    at = max(range(len(gold)), key=lambda i: max(_moved(*places[i]) for _, _, places in runs))
    mass: dict[str, float] = {}
    for _, _, places in runs:
        for side in places[at]:
            for token, share in side.items():
                mass[token] = mass.get(token, 0.0) + share
    tokens = sorted(mass, key=lambda t: -mass[t])[:5]
    if not tokens:
        return None
    rows = [
        TokenRow(
            _shown(token),
            token == gold[at],
            [
                (label, style, places[at][0].get(token, 0.0), places[at][1].get(token, 0.0))
                for label, style, places in runs
            ],
        )
        for token in tokens
    ]
    prefix = " ".join(_shown(t) for t in gold[max(0, at - 5) : at])
    heading = f"after “{'… ' if at > 5 else ''}{prefix}”" if prefix else "the first token"
    said = f"The five likeliest tokens {heading}; the gold token is {_shown(gold[at])}."
    return Panel(heading, "", token_chart(rows, title=f"Likeliest tokens {heading}", description=said))


def _moved(start: Place, now: Place) -> float:
    return 0.5 * sum(abs(start.get(t, 0.0) - now.get(t, 0.0)) for t in {*start, *now})


def _shown(token: str) -> str:
    text = token.strip() or "␣"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
