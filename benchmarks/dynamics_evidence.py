"""Evidence for the learning dynamics on the embedded world, for N seeds; takes up where it was stopped.

    python benchmarks/dynamics_evidence.py --out evidence --seeds 5

Per seed: SFT → DPO and SFT-C → CW-DPO with probes every 10 updates, per-prompt weights, influence and diagnosis; then a
run a rule that should provoke it. From them: intervals over seeds for Figures 3, 4 and 6, the trend of every part of
Figure 5, what early stopping would have saved for each signal and patience, and which rules spoke where. One JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from cwdpo.dynamics.stopping import SIGNALS, signal_value, watch
from cwdpo.files import read_json, read_jsonl, write_json
from cwdpo.pipeline import Run, Silent
from cwdpo.recipe import Recipe
from cwdpo.report.figures import draw_figure

ARMS = {"sft_dpo": ("sft", "dpo"), "sftc_cw": ("sft_c", "cw_dpo")}
STAGE: dict[str, Any] = {
    "learning_rate": 3e-4,
    "batch_size": 32,
    "micro_batch_size": 32,
    "schedule": "constant_with_warmup",
    "save_steps": 50,
}
PROVOKED: dict[str, dict[str, Any]] = {
    "healthy": {"stage2": {"objective": "cw_dpo", "learning_rate": 1e-4}},
    "squeezing": {"stage2": {"objective": "dpo", "learning_rate": 1e-3}},
    "dead_negatives": {"stage2": {"objective": "cw_dpo", "floor": 5.0}},
    "over_cooling": {"stage2": {"objective": "cw_dpo", "floor": 4.0, "learning_rate": 3e-5}},
    "no_learning": {"stage2": {"objective": "dpo", "learning_rate": 1e-9}},
    "divergence": {"stage2": {"objective": "dpo", "learning_rate": 3e-2}},
    "false_negatives": {"stage2": {"objective": "dpo"}, "swap": True},
    "penalty_never_active": {"stage1": {"nll_reduction": "sum", "nll_floor": 0.5}, "only": "stage1"},
    "penalty_always_active": {"stage1": {"nll_floor": 50.0}, "only": "stage1"},
}
"""What should provoke a rule; everything else is as in the runs above."""


class Loud(Silent):
    def step(self, name: str, text: str) -> None:
        print(f"  {text}", flush=True)


def recipe(seed: int, size: int, held_out: int, one: dict[str, Any], two: dict[str, Any], **more: Any) -> Recipe:
    probes = {"every": 10, "prompts": 256, "batch_size": 64, "influence": {}, **more.pop("probes", {})}
    return Recipe.model_validate(
        {
            "seed": seed,
            "data": {"size": size, "held_out": held_out, "split_seed": seed},
            "negatives": {"seed": seed},
            "stage1": {**STAGE, "epochs": 1, **one},
            "stage2": {**STAGE, "epochs": 4, **two},
            "probes": probes,
            "evaluation": {"prompts": 1000, "batch_size": 250, "max_new_tokens": 24},
            **more,
        }
    )


def swapped(folder: Path, seed: int, size: int) -> str:
    """Write a data set in which chosen and hard negative have changed places, and return its path."""
    from cwdpo.scenes.rows import write_rows

    rows = write_rows(folder, size, seed, "train")
    for row in rows:
        gold, hard = row["responses"][0], row["responses"][1]
        gold["text"], hard["text"] = hard["text"], gold["text"]
        row["responses"] = [gold, hard]
    path = folder / "swapped.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def provoke(out: Path, size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, changes in PROVOKED.items():
        folder = out / "provoked" / name
        one, two = dict(changes.get("stage1", {})), dict(changes.get("stage2", {}))
        only = changes.get("only", "stage2")
        one["enabled"], two["enabled"] = only == "stage1", only == "stage2"
        more: dict[str, Any] = {"evaluation": {"prompts": 0}, "probes": {"influence": None, "prompts": 64}}
        if changes.get("swap"):
            data = {"path": swapped(folder / "source", 0, size), "held_out": 64}
            more["data"] = {**data, "format": "cwdpo", "check_images": False}
        asked = recipe(0, size, 64, {"objective": "sft_c", **one, "max_steps": 40}, {**two, "max_steps": 60}, **more)
        Run(folder / "run", asked, Loud()).execute()
        findings = read_json(folder / "run" / only / "diagnosis.json")["findings"]
        found[name] = [f"{f['severity']}: {f['rule']} @{f['step']}" for f in findings]
        print(f"provoke {name}: {found[name]}", flush=True)
    return found


def saved_steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What stopping early would have saved, for each signal and patience."""
    found: list[dict[str, Any]] = []
    for signal, higher in SIGNALS.items():
        values = [signal_value(row, signal) for row in rows]
        for patience in (2, 3, 5, 8):
            verdict = watch(values, higher=higher, patience=patience)
            end = rows[verdict.stop]["step"] if verdict.stop is not None else rows[-1]["step"]
            found.append(
                {
                    "signal": signal,
                    "patience": patience,
                    "saved": 1 - end / rows[-1]["step"],
                    "best_step": rows[verdict.best]["step"],
                    "accuracy_best": rows[verdict.best]["accuracy"],
                    "accuracy_end": rows[-1]["accuracy"],
                }
            )
    return found


def interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds with its 95 % interval (Student's t)."""
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}
    n = len(values)
    mean = statistics.fmean(values)
    half = t.get(n, 1.96) * statistics.stdev(values) / math.sqrt(n) if n > 1 else float("nan")
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": n}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=4800)
    parser.add_argument("--skip-provoked", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    per_seed: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    folders: dict[str, list[Path]] = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):
        for arm, (one, two) in ARMS.items():
            folder = args.out / f"{arm}_{seed}"
            print(f"{arm}, seed {seed}", flush=True)
            asked = recipe(seed, args.size, 1256, {"objective": one}, {"objective": two}, name=arm)
            summary = Run(folder, asked, Loud()).execute()
            rows = list(read_jsonl(folder / "stage2" / "probes.jsonl"))
            findings = {s: read_json(folder / s / "diagnosis.json")["findings"] for s in ("stage1", "stage2")}
            entropy = [row["entropy"] for row in read_jsonl(folder / "stage1" / "probes.jsonl")]
            after = {k: summary["after"][k] for k in ("tv", "js", "ece", "entropy", "cider", "correct")}
            per_seed[arm].append(
                {
                    "after": after | {"logp_chosen": summary["after"]["logp"]["chosen"]},
                    "stage1_entropy": {"start": entropy[0], "end": entropy[-1]},
                    "findings": {s: [f"{f['severity']}: {f['rule']}" for f in fs] for s, fs in findings.items()},
                    "early_stop": saved_steps(rows),
                }
            )
            folders[arm].append(folder)
    runs = [folder for arm in ARMS for folder in folders[arm]]
    notes = {str(n): draw_figure(n, runs, args.out / f"figure{n}.png") for n in (3, 4)}
    notes |= {str(n): draw_figure(n, folders["sftc_cw"], args.out / f"figure{n}.png") for n in (5, 6)}
    result = {
        "machine": {"platform": platform.platform(), "torch": torch.__version__, "threads": 1},
        "seeds": args.seeds,
        "per_seed": per_seed,
        "intervals": {
            arm: {key: interval([row["after"][key] for row in rows]) for key in rows[0]["after"]}
            for arm, rows in per_seed.items()
        },
        "figures": notes,
        "provoked": {} if args.skip_provoked else provoke(args.out, 1200),
    }
    write_json(args.out / "dynamics_evidence.json", result)
    print(json.dumps({k: result[k] for k in ("intervals", "figures", "provoked")}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
