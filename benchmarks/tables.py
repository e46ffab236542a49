"""Rewrite the tables of docs/performance.md from benchmarks/results/*.json.

`python benchmarks/tables.py` fills what stands between `<!-- table: NAME -->` and `<!-- end -->`;
`python benchmarks/tables.py --check` only says whether the page is up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"

Row = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def times(value: Row) -> str:
    """A ratio with its quartiles."""
    return f"{value['median']:.2f} ({value['low']:.2f}–{value['high']:.2f})"


def mib(value: float) -> str:
    return f"{value / 2**20:,.0f}"


def against_trl(result: Row) -> str:
    head = ["trained", "visual tokens", "response tokens", "TRL, s a pair", "ours, s a pair", "times as fast"]
    head += ["kept for backward, MiB: TRL / ours", "share", "allocator's peak, share", "loss, gradient differ by"]
    rows: list[list[str]] = []
    for row in result["rows"]:
        for name, ratio in row["times_as_fast"].items():
            cached = ", features cached" if name.endswith("features") else ""
            seconds, saved = row["seconds_per_pair"], row["saved_bytes"]
            agreement = row["agreement"]
            rows.append(
                [
                    f"{'LoRA' if row['mode'] == 'lora' else 'all'}{cached}",
                    str(row["visual_tokens"]),
                    f"2 × {row['response_tokens']}",
                    f"{seconds['trl']['median']:.2f}",
                    f"{seconds[name]['median']:.2f}",
                    times(ratio),
                    f"{mib(saved['trl'])} / {mib(saved[name])}",
                    f"{row['saved_share'][name]:.2f}",
                    f"{row['peak_share'][name]:.2f}",
                    f"{agreement['loss_difference']:.0e}, {agreement['gradient_difference']:.0e}",
                ]
            )
    return table(head, rows)


def step_costs(result: Row) -> str:
    head = ["question", "trained", "visual tokens", "response tokens", "ratio or share of training time"]
    rows: list[list[str]] = []
    for row in result["rows"]:
        if row["question"] == "probes":
            question = "probes at default settings" + (", features cached" if row["cached_features"] else "")
            value = f"{row['share_of_training_time']:.1%}"
        else:
            question, value = row["question"], times(row["ratio"])
        mode = "LoRA" if row["mode"] == "lora" else "all"
        rows.append([question, mode, str(row["visual_tokens"]), str(row["response_tokens"]), value])
    return table(head, rows)


def growth(result: Row) -> str:
    head = ["what grows", "responses", "visual tokens", "response tokens", "shared, s", "separate, s"]
    head += ["times as fast", "kept for backward, share"]
    rows: list[list[str]] = []
    for row in result["rows"]:
        seconds = row["seconds_per_prompt"]
        sizes = [str(row[name]) for name in ("responses", "visual_tokens", "response_tokens")]
        measured = [f"{seconds[name]['median']:.2f}" for name in ("shared", "separate")]
        rows.append([row["grows"], *sizes, *measured, times(row["times_as_fast"]), f"{row['saved_share']:.2f}"])
    return table(head, rows)


def attention(result: Row) -> str:
    head = ["trained", "visual tokens", "response tokens", "sdpa, s", "shared_prefix, s", "times as fast"]
    head += ["kept for backward, share", "allocator's peak, share", "gradient differs by"]
    rows: list[list[str]] = []
    for row in result["rows"]:
        seconds = [f"{row['seconds_per_pair'][name]['median']:.2f}" for name in ("sdpa", "shared_prefix")]
        sizes = ["LoRA" if row["mode"] == "lora" else "all", str(row["visual_tokens"]), f"2 × {row['response_tokens']}"]
        shares = [f"{row[name]:.2f}" for name in ("saved_share", "peak_share")]
        difference = f"{row['agreement']['gradient_difference']:.0e}"
        rows.append([*sizes, *seconds, times(row["times_as_fast"]), *shares, difference])
    return table(head, rows)


def padding(result: Row) -> str:
    head = ["visual tokens", "features cached", "tokens, padded / packed", "FLOPs", "seconds", "peak, packed / padded"]
    head += ["attended places: padded, packed (in blocks), millions", "gradient differs by"]
    rows: list[list[str]] = []
    for row in result["rows"]:
        tokens, places = row["tokens"], row["places"]
        counted = [f"{places[name] / 1e6:.2f}" for name in ("padded", "packed", "packed_in_blocks")]
        rows.append(
            [
                ", ".join(map(str, row["visual_tokens"])),
                "yes" if row["cached_features"] else "no",
                f"{tokens['padded']} / {tokens['packed']} = {row['tokens_ratio']:.2f}",
                f"{row['flops_ratio']:.2f}",
                times(row["times_as_fast"]),
                f"{row['peak_share']:.2f}",
                f"{counted[0]}, {counted[1]} ({counted[2]})",
                f"{row['agreement']['gradient_difference']:.0e}",
            ]
        )
    return table(head, rows)


def arithmetic(result: Row) -> str:
    head = ["trained", "visual tokens", "response tokens", "TRL, GFLOP", "separate", "ours", "the least"]
    head += ["ours / least", "TRL / ours"]
    rows: list[list[str]] = []
    for row in result["rows"]:
        flops = row["flops"]
        for name in row["least"]:
            cached = ", features cached" if name.endswith("features") else ""
            counted = [flops["trl"], flops["separate"], flops[name], row["least"][name]]
            rows.append(
                [
                    f"{'LoRA' if row['mode'] == 'lora' else 'all'}{cached}",
                    str(row["visual_tokens"]),
                    f"2 × {row['response_tokens']}",
                    *(f"{value / 1e9:.1f}" for value in counted),
                    f"{row['ours_over_least'][name]:.3f}",
                    f"{row['trl_over_ours'][name]:.2f}",
                ]
            )
    return table(head, rows)


def large_models(result: Row) -> str:
    head = ["model", "trained", "side", "pairs", "response tokens", "s a pair", "times as fast", "MFU", "peak, GiB"]
    rows: list[list[str]] = []
    for row in result["rows"]:
        mode = "LoRA" if row["mode"] == "lora" else "all"
        start = [row["model"], mode, row["side"], str(row["pairs"]), f"2 × {row['response_tokens']}"]
        if not row["fits"]:
            rows.append([*start, "does not fit", "", "", ""])
            continue
        ratio = times(row["times_as_fast"]) if "times_as_fast" in row else "1"
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else ""
        seconds = f"{row['seconds_per_pair']['median']:.3f}"
        rows.append([*start, seconds, ratio, mfu, f"{row['peak_bytes'] / 2**30:.1f}"])
    return table(head, rows)


TABLES: dict[str, Callable[[Row], str]] = {
    "against_trl": against_trl,
    "step_costs": step_costs,
    "growth": growth,
    "attention": attention,
    "padding": padding,
    "arithmetic": arithmetic,
    "large_models": large_models,
}


def measured_on(result: Row) -> str:
    """One line: when, on what, with which versions."""
    h = result["hardware"]
    device = h.get("gpu") or f"{h['cpu']}, {h['threads']} of {h['cores']} cores"
    versions = ", ".join(f"{name} {h[name]}" for name in ("torch", "transformers", "peft", "trl") if h[name])
    load = f"load {h['load_before']:.1f} before, {h['load_after']:.1f} after"
    rounds = f"median of {result['settings']['repeats']} rounds (quartiles)"
    return f"{h['date']}, {device}; {versions}; {h['clock']}; {rounds}; {load}."


def filled(page: str) -> str:
    """The page with its tables made anew; a table without a result stays as it is."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        file = RESULTS / f"{name}.json"
        if not file.is_file():
            return match[0]
        result = json.loads(file.read_text(encoding="utf-8"))
        return f"<!-- table: {name} -->\n{measured_on(result)}\n\n{TABLES[name](result)}\n<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>\w+) -->.*?<!-- end -->", replace, page, flags=re.DOTALL)


def missing() -> Iterator[str]:
    """Names of the results that are not there."""
    return (name for name in TABLES if not (RESULTS / f"{name}.json").is_file())


def main() -> None:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; exit 1 where the page is out of date.")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page)
    if options.check:
        sys.exit(int(new != page))
    PAGE.write_text(new, encoding="utf-8")
    for name in missing():
        print(f"no result yet: {name}")


if __name__ == "__main__":
    main()
