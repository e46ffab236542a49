"""Which negatives on `scenes`: beam, sample, perturb, mixed, under DPO and CW-DPO, over seeds (paper, Table 5 and D).

    python benchmarks/negatives_on_scenes.py --out runs/negatives --seeds 5

Stage 1 is trained once a seed and shared by the arms of that seed. Every arm is a run directory: stopped at any moment,
the same command goes on, and what is done is not done again. Prints and writes `table.json`: correctness, CIDEr, TV,
ECE of each arm over seeds with 95 % intervals, and paired differences CW-DPO minus DPO.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from cwdpo.report.seeds import seed_interval

SOURCES: dict[str, dict[str, Any]] = {
    "dataset": {"dataset": 1},
    "perturb": {"perturb": 1},
    "beam": {"beam": 1},
    "beam filtered": {"beam": 1, "perturb": 1e-6, "filter": {"similarity": 1.0, "measure": "support"}},
    "beam exact": {"beam": 1, "perturb": 1e-6, "filter": {"similarity": 1.0, "measure": "exact"}},
    "sample": {"sample": 1},
    "mixed": {"dataset": 1, "perturb": 1, "beam": 1, "sample": 1},
}
CHANGING: dict[str, dict[str, Any]] = {
    "scheduled": {"schedule": [{"at": 0, "perturb": 1}, {"at": 1, "beam": 1}]},
    "candidates": {"perturb": 1, "beam": 1, "candidates": 4},
    "frontier": {"perturb": 1, "beam": 1, "candidates": 4, "curriculum": "frontier"},
    "fresh": {"beam": 1, "refresh": {"every": 75}},
}
"""Negatives that change while Stage 2 is trained; asked for with `--sources`. `candidates` is what `frontier` is to be
held against, and `beam` what `fresh` is."""
OBJECTIVES = ("dpo", "cw_dpo")
MEASURES = ("correct", "cider", "tv", "ece")


def recipe(seed: int, source: str, objective: str, size: int, prompts: int) -> dict[str, Any]:
    stage = {"learning_rate": 3e-4, "batch_size": 32, "micro_batch_size": 32, "log_steps": 20, "save_steps": 1000}
    mix = {"dataset": 0, "max_new_tokens": 24, "batch_size": 64, **(SOURCES | CHANGING)[source]}
    return {
        "name": f"{source} {objective} {seed}",
        "seed": seed,
        "model": {"path": "scenes"},
        "data": {"path": "scenes", "size": size, "held_out": prompts + 64, "split_seed": seed},
        "negatives": {"stage2": mix, "seed": seed},
        "stage1": {**stage, "objective": "sft_c"},
        "stage2": {**stage, "objective": objective, "epochs": 2},
        "probes": {"every": 0},
        "evaluation": {"prompts": prompts, "batch_size": 250, "max_new_tokens": 24},
    }


def run_arm(folder: Path, base: Path | None, values: dict[str, Any]) -> dict[str, Any]:
    """Run one arm; data and Stage 1 are taken from `base`, an arm of the same seed."""
    from cwdpo.pipeline import Run
    from cwdpo.recipe import Recipe

    done = folder / "evaluation" / "summary.json"
    if base is not None and not (folder / "stage1" / "done.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for part in ("data", "negatives/stage1", "stage1"):
            if (base / part).exists():
                shutil.copytree(base / part, folder / part)
    Run(folder, Recipe.model_validate(values)).execute()
    summary = json.loads(done.read_text(encoding="utf-8"))
    return {"after": summary["after"], "before": summary["before"]}


def interval(values: list[float]) -> dict[str, float]:
    return dict(zip(("mean", "low", "high"), seed_interval(values), strict=True)) | {"seeds": len(values)}


def table(found: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    arms = {
        arm: {m: interval([r["after"][m] for r in seeds.values() if m in r["after"]]) for m in MEASURES}
        for arm, seeds in found.items()
    }
    paired: dict[str, Any] = {}
    for source in [*SOURCES, *CHANGING]:
        one, other = found.get(f"{source} / cw_dpo", {}), found.get(f"{source} / dpo", {})
        both = sorted(set(one) & set(other))
        if both:
            paired[source] = {m: interval([one[s]["after"][m] - other[s]["after"][m] for s in both]) for m in MEASURES}
    return {"arms": arms, "cw_dpo minus dpo": paired}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/negatives"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=4800)
    parser.add_argument("--prompts", type=int, default=1000, help="held-out pictures")
    parser.add_argument("--sources", nargs="*", default=list(SOURCES), choices=[*SOURCES, *CHANGING])
    args = parser.parse_args()
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in range(args.seeds):
        base: Path | None = None
        for source in args.sources:
            for objective in OBJECTIVES:
                folder = args.out / f"{seed}-{source.replace(' ', '-')}-{objective}"
                values = recipe(seed, source, objective, args.size, args.prompts)
                result = run_arm(folder, base, values)
                base = base or folder
                found.setdefault(f"{source} / {objective}", {})[seed] = result
                shown = {m: round(result["after"][m], 4) for m in MEASURES if m in result["after"]}
                print(f"seed {seed}  {source:14s} {objective:7s} {shown}", flush=True)
        machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
        text = json.dumps(
            {**table(found), "settings": {**vars(args), "out": str(args.out)}, "machine": machine}, indent=2
        )
        (args.out / "table.json").write_text(text + "\n", encoding="utf-8")
    print((args.out / "table.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
