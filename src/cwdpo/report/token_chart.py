"""The likeliest next tokens at some places of gold responses: at the start of a stage, and now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.report.bars import TokenRow, token_chart
from cwdpo.report.page_blocks import Block, Chart, Panel, run_style
from cwdpo.report.run_record import RunRecord
from cwdpo.report.values import as_list, as_map, number

__all__ = ["token_charts"]

_MOST_PANELS = 4
_LONGEST = 14
"""Characters of a token that are shown."""

Place = dict[str, float]
"""Probabilities by token."""


def token_charts(runs: Sequence[RunRecord], stage: str) -> list[Block]:
    """Return the five likeliest tokens at the place of each prompt that moved most; nothing if none were kept."""
    read = [(i, run, _prompts(run.json(f"{stage}/probe_tokens.json"))) for i, run in enumerate(runs)]
    read = [item for item in read if item[2]]
    panels: list[Panel] = []
    legend: dict[str, str] = {}
    for key, (gold, _) in list(read[0][2].items())[:_MOST_PANELS] if read else []:
        same = [(i, run, prompts[key][1]) for i, run, prompts in read if key in prompts and prompts[key][0] == gold]
        panel = _panel(gold, [(run.label, run_style(i), places) for i, run, places in same])
        if panel is not None:
            panels.append(panel)
            legend |= {run.label: run_style(i) for i, run, _ in same}
    if not panels:
        return []
    text = (
        "What the model expects next at one place of a gold response: the five likeliest tokens, bar now, tick at the "
        "start of the stage; the gold token is bold. Of each of the first probe prompts the place that moved most: an "
        "extreme, not a typical place."
    )
    if any(run.seeds for _, run, _ in read):
        text += " Of several seeds, the first."
    return [Chart("Likeliest tokens, start and now", text, panels, legend=list(legend.items()))]


def _prompts(tokens: Mapping[str, Any]) -> dict[str, tuple[list[str], list[tuple[Place, Place]]]]:
    """Return gold tokens and (start, now) at every place, by prompt, of what can be read."""
    prompts: dict[str, tuple[list[str], list[tuple[Place, Place]]]] = {}
    for start, last in zip(as_list(tokens.get("start")), as_list(tokens.get("last")), strict=False):
        gold = [str(t) for t in as_list(start, "gold")]
        sides = ([_place(place) for place in as_list(side, "places")] for side in (start, last))
        places = list(zip(*sides, strict=False))
        if gold and len(places) == len(gold):
            prompts[str(as_map(start).get("id"))] = (gold, places)
    return prompts


def _place(pairs: object) -> Place:
    known = [(str(p[0]), number(p[1])) for p in map(as_list, as_list(pairs)) if len(p) == 2]
    return {token: min(1.0, max(0.0, share)) for token, share in known if share is not None}


def _panel(gold: Sequence[str], runs: Sequence[tuple[str, str, Sequence[tuple[Place, Place]]]]) -> Panel | None:
    at = max(range(len(gold)), key=lambda i: max(_moved(*places[i]) for _, _, places in runs))
    mass: dict[str, float] = {}
    for side in (side for _, _, places in runs for side in places[at]):
        for token, share in side.items():
            mass[token] = mass.get(token, 0.0) + share
    tokens = sorted(mass, key=lambda t: -mass[t])[:5]
    if not tokens:
        return None
    rows: list[TokenRow] = []
    for token in tokens:
        sides = [(label, style, *places[at]) for label, style, places in runs]
        shares = [(label, style, start.get(token, 0.0), now.get(token, 0.0)) for label, style, start, now in sides]
        rows.append(TokenRow(_shown(token), token == gold[at], shares))
    prefix = " ".join(_shown(t) for t in gold[max(0, at - 5) : at])
    heading = f"after “{'… ' if at > 5 else ''}{prefix}”" if prefix else "the first token"
    said = f"The five likeliest tokens {heading}; the gold token is {_shown(gold[at])}."
    return Panel(heading, "", token_chart(rows, title=f"Likeliest tokens {heading}", description=said))


def _moved(start: Place, now: Place) -> float:
    return 0.5 * sum(abs(start.get(t, 0.0) - now.get(t, 0.0)) for t in {*start, *now})


def _shown(token: str) -> str:
    text = token.strip() or "␣"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
