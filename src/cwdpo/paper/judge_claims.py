"""Whether claims hold, from finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.evaluation.intervals import interval_text, mean_row
from cwdpo.files import read_json, read_jsonl
from cwdpo.paper.arms import ARMS
from cwdpo.paper.claims import CLAIMS, Contrast
from cwdpo.paper.execute_runs import choose_rates
from cwdpo.paper.paper_tables import TABLES
from cwdpo.paper.results import MEASURES, differences
from cwdpo.paper.run_plan import Workshop
from cwdpo.report.prompt_weights import ordered_prompts

__all__ = ["HOLDS", "MISSING", "UNTESTED", "evidence", "judge", "judge_together", "ledger"]

HOLDS, PART, NOT, OPEN, MISSING, UNTESTED = (
    "holds",
    "holds in part",
    "does not hold",
    "not shown",
    "not run",
    "not testable here",
)
"""Verdicts. Not shown: the interval holds zero, or there are fewer than three seeds. Does not hold: it lies on
the other side of what is claimed."""


_LEAST_SEEDS = 3
"""With fewer, an interval says more of the seeds than of the claim."""


def judge(effect: Mapping[str, float], sign: int) -> str:
    """Return the verdict on one contrast from the mean and its interval over seeds."""
    if "low" not in effect:
        return OPEN
    if sign * effect["low"] > 0 and sign * effect["high"] > 0:
        return HOLDS
    if sign * effect["low"] < 0 and sign * effect["high"] < 0:
        return NOT
    return OPEN


def ledger(shop: Workshop, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row per claim: what was measured, effects with intervals, the verdict."""
    rates = choose_rates(shop, TABLES["table1"].entries)
    rows: list[dict[str, Any]] = []
    for claim in CLAIMS:
        row: dict[str, Any] = {"where": claim.where, "claim": claim.sentence, "source": list(claim.source)}
        if claim.reason:
            found: list[dict[str, Any]] = [{"text": claim.reason, "verdict": UNTESTED}]
        elif claim.other:
            found = _OTHERS[claim.other](shop, seeds)
        else:
            found = [_measured(shop, contrast, seeds, rates if contrast.tuned else {}) for contrast in claim.contrasts]
        rows.append(
            {**row, "evidence": found, "verdict": judge_together([f["verdict"] for f in found], every=claim.every)}
        )
    return rows


def judge_together(verdicts: Sequence[str], *, every: bool) -> str:
    """Return the verdict on a claim from those on its contrasts; `every`: it says something of each."""
    known = set(verdicts)
    if MISSING in known or not known:
        return MISSING
    if len(known) == 1:
        return verdicts[0]
    if every and NOT in known:
        return NOT
    return PART if HOLDS in known else NOT if NOT in known else OPEN


def _measured(shop: Workshop, c: Contrast, seeds: Sequence[int], rates: Mapping[str, float]) -> dict[str, Any]:
    chosen = not c.tuned or all(e in rates for e in (c.one, c.other) if e in ARMS)
    pair = differences(shop, c.one, c.other, c.measure, seeds, rates) if chosen else None
    return evidence(c, pair[0] if pair is not None else [])


def evidence(c: Contrast, values: Sequence[float]) -> dict[str, Any]:
    """Return what differences by seed say of a contrast: effect with its interval, text, verdict."""
    name, factor, decimals = MEASURES[c.measure]
    claimed = "higher" if c.sign > 0 else "lower"
    said = {"one": c.one, "other": c.other, "measure": c.measure, "claimed": claimed, "tuned": c.tuned}
    if not values:
        return {**said, "text": f"{c.one} - {c.other}: not run", "verdict": MISSING}
    effect, form = mean_row(values) | {"seeds": len(values)}, f"+.{decimals}f"
    ends = f" {interval_text(effect, form, factor)}" if "low" in effect else ""
    mean = f"{factor * effect['mean']:{form}}"
    text = f"{c.one} - {c.other}, {name}: {mean}{ends} ({len(values)} seed{'s' * (len(values) > 1)})"
    verdict = judge(effect, c.sign) if len(values) >= _LEAST_SEEDS else OPEN
    return {**said, "values": list(values), "effect": effect, "text": text, "verdict": verdict}


def _costs(shop: Workshop, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The paper's words: SFT-C about 2×, CW-DPO 1×; within a tenth counts as the same."""
    path = shop.folder / "table7.json"
    if not path.is_file():
        return [{"text": "table7: not run", "verdict": MISSING}]
    ratios = {row["entry"]: row["ratio"]["median"] for row in read_json(path)["rows"]}
    found: list[dict[str, Any]] = []
    for entry, other, claimed in (("sft_c", "sft", 2.0), ("cw_dpo", "dpo", 1.0)):
        close = abs(ratios[entry] / claimed - 1) < 0.1
        text = f"{entry} / {other}: {ratios[entry]:.2f}× (claimed {claimed:g}×)"
        found.append({"text": text, "verdict": HOLDS if close else NOT})
    return found


def _influence(shop: Workshop, seeds: Sequence[int]) -> list[dict[str, Any]]:
    path = shop.folder / "fig5.json"
    if not path.is_file():
        return [{"text": "fig5: not run", "verdict": MISSING}]
    notes: list[str] = read_json(path)["shows"]
    return [{"text": note, "verdict": NOT if note.endswith("does not hold") else HOLDS} for note in notes]


def _order(shop: Workshop, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Nine prompts in ten are asked for."""
    counts = [
        ordered_prompts(list(read_jsonl(path)))
        for seed in seeds
        if (path := _followed(shop, "cw_dpo_followed", seed) / "probe_prompts.jsonl").is_file()
    ]
    if not counts:
        return [{"text": "fig6: not run", "verdict": MISSING}]
    always, last, total = (sum(column) for column in zip(*counts, strict=True))
    share = always / total
    text = f"ordered at every reading for {always} of {total} prompts ({share:.0%}), at the last for {last / total:.0%}"
    return [{"text": text, "verdict": HOLDS if share >= 0.9 else PART if share >= 0.5 else NOT}]


def _steps(shop: Workshop, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Updates until the share of held-out pairs with the chosen response likelier is DPO's best of that seed."""
    values: list[float] = []
    never = 0
    for seed in seeds:
        paths = [_followed(shop, f"{arm}_followed", seed) / "probes.jsonl" for arm in ("dpo", "cw_dpo")]
        if not all(path.is_file() for path in paths):
            continue
        dpo, cooled = ([(r["step"], r["ranking"]) for r in read_jsonl(path)] for path in paths)
        target = max(value for _, value in dpo)
        reached = [next((step for step, value in rows if value >= target), None) for rows in (dpo, cooled)]
        if reached[1] is None:
            never += 1
        elif reached[0] is not None:
            values.append(reached[1] - reached[0])
    if not values and not never:
        return [{"text": "fig4: not run", "verdict": MISSING}]
    text = (
        "updates until held-out pairs are ranked as well as DPO ever does, CW-DPO's less DPO's, seed by seed: "
        f"{', '.join(f'{value:+g}' for value in values) or 'none'}; not reached in {never} seeds"
    )
    fewer = sum(value < 0 for value in values)
    total = len(values) + never
    return [{"text": text, "verdict": HOLDS if fewer == total else PART if fewer else NOT}]


def _followed(shop: Workshop, entry: str, seed: int) -> Any:
    return shop.run_folder(shop.job(entry, seed, {})) / "stage2"


_OTHERS: Mapping[str, Any] = {"costs": _costs, "influence": _influence, "order": _order, "steps": _steps}
