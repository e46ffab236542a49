"""Every objective of Stage 2 on `scenes`, from the same Stage 1, on the same pairs, for as many updates.

    python benchmarks/baselines_on_scenes.py cwdpo-demo --out runs/baselines

Takes a finished `cwdpo demo` (its pictures and its Stage 1) and trains each objective as the demo trains its own. Every
arm is a run directory: stopped at any moment, the same command goes on, and what is done is not done again. Data,
negatives and reference log-probabilities are computed by the first arm and copied to the others. Writes `table.json`
and `table.md` after every arm: drift (TV, JS), calibration (ECE), log p of gold and of negatives, the share of right
captions, CIDEr, and differences to DPO over the same pictures with 95 % intervals.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from cwdpo.demo import demo_recipe, paired
from cwdpo.files import atomic_directory, write_json, write_text
from cwdpo.pipeline import Run
from cwdpo.recipe import METHODS, STAGE2_METHODS, Recipe

ARMS: dict[str, dict[str, Any]] = {name: {"objective": name} for name in STAGE2_METHODS} | {
    "cw_dpo, renormalised": {"objective": "cw_dpo", "renormalise": True},
    "cw_dpo, bounded": {"objective": "cw_dpo", "bound_pull": True},
    "cw_dpo, differing span": {"objective": "cw_dpo", "cooling_span": "differing"},
}
STARTS = {"sft_dpo": "SFT", "cw_dpo": "SFT-C"}
"""Arm of the demo whose Stage 1 is taken, and what that is."""

SHARED = ("data", "negatives", "reference")
"""What depends on the start alone; the reference log-probabilities are kept by content."""

COLUMNS = {
    "tv": ("TV", "{:.3f}"),
    "js": ("JS", "{:.4f}"),
    "ece": ("ECE", "{:.3f}"),
    "logp_chosen": ("log p gold", "{:.3f}"),
    "logp_hard": ("hard", "{:.3f}"),
    "logp_easy": ("easy", "{:.3f}"),
    "correct": ("right", "{:.1%}"),
    "cider": ("CIDEr", "{:.1f}"),
}


def recipe(args: argparse.Namespace, start: str, arm: str, rate: float) -> Recipe:
    values = demo_recipe(start, (args.demo / "data").absolute(), args.seed).model_dump()
    values["name"] = f"{STARTS[start]} → {arm}"
    values["model"]["path"] = str((args.demo / start / "stage1" / "model").absolute())
    values["stage1"]["enabled"] = False
    for name in {name for m in METHODS for name in m.defaults}:
        del values["stage2"][name]  # the method's own
    values["stage2"] |= {"learning_rate": rate, "max_steps": args.updates, **ARMS[arm]}
    values["probes"] |= {"every": max(1, args.updates // 4)}
    values["evaluation"]["prompts"] = args.prompts
    return Recipe.model_validate(values)


def take_over(first: Path, folder: Path) -> None:
    """Copy what the first arm of a start computed for all of them."""
    for part in SHARED:
        if (first / part).is_dir() and not (folder / part).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_directory(folder / part) as temporary:
                shutil.copytree(first / part, temporary, dirs_exist_ok=True)


def figures(part: dict[str, Any]) -> dict[str, float]:
    found = {name: part[name] for name in ("tv", "js", "ece", "correct", "cider") if name in part}
    return found | {f"logp_{kind}": value for kind, value in part["logp"].items()}


def markdown(rows: list[dict[str, Any]]) -> str:
    heads = ["start", "Stage 2", "rate", *(name for name, _ in COLUMNS.values()), "right − DPO", "log p gold − DPO"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["start"], row["arm"], f"{row['rate']:g}" if "rate" in row else ""]
        cells += [form.format(row[key]) if key in row else "" for key, (_, form) in COLUMNS.items()]
        for key, scale, form in (
            ("correct", 100, "{:+.1f} [{:+.1f}, {:+.1f}]"),
            ("logp_chosen", 1, "{:+.3f} [{:+.3f}, {:+.3f}]"),
        ):
            d = row.get("minus_dpo", {}).get(key)
            cells.append(form.format(*(scale * d[name] for name in ("mean", "low", "high"))) if d else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4], help="learning rates, the same for all")
    parser.add_argument("--updates", type=int, default=152, help="as many as the demo makes")
    parser.add_argument("--prompts", type=int, default=1000, help="held-out pictures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    settings = {**vars(args), "demo": str(args.demo), "out": str(args.out)}
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__}
    for start in args.starts:
        first: Path | None = None
        for rate in args.rates:
            dpo = args.out / f"{start}-dpo-{rate:g}"
            for arm in sorted(args.arms, key=lambda name: name != "dpo"):  # what the others are compared with
                folder = args.out / f"{start}-{arm.replace(', ', '-').replace(' ', '-')}-{rate:g}"
                if first is not None:
                    take_over(first, folder)
                summary = Run(folder, recipe(args, start, arm, rate)).execute()
                if first is None:
                    first = folder
                    rows.append({"start": STARTS[start], "arm": "(before)", **figures(summary["before"])})
                row = {"start": STARTS[start], "arm": arm, "rate": rate, **figures(summary["after"])}
                if folder != dpo and "dpo" in args.arms:
                    row["minus_dpo"] = paired(dpo, folder)
                rows.append(row)
                found = {"date": str(datetime.date.today()), "settings": settings, "machine": machine, "rows": rows}
                write_json(args.out / "table.json", found)
                write_text(args.out / "table.md", markdown(rows))
                print(markdown(rows).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
