"""Evidence for the learning dynamics on the embedded world, for N seeds; takes up where it was stopped.

    python benchmarks/dynamics_evidence.py --seeds 5 --out benchmarks/results/dynamics_evidence.json

Per seed: SFT → DPO and SFT-C → CW-DPO with probes every 10 updates, per-prompt weights, influence and diagnosis; the
same DPO stage once more, stopped early; then, once, a run for every rule that should provoke it and healthy ones that
should not. From them: intervals over seeds (Student's t) of every arm at the end of both stages, of the differences
between arms paired by seed, of what early stopping saves and costs; Figures 3 to 6 and what they show in words; which
rules spoke where. Every run is a directory: stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as notices

from common import hardware
from cwdpo.evaluation.intervals import mean_interval
from cwdpo.files import read_json, read_jsonl, write_json
from cwdpo.paper.paper_figures import draw_figure
from cwdpo.probes.figures import signals
from cwdpo.recipe import Recipe
from cwdpo.run import Run
from cwdpo.training.callbacks.early_stopping import follow
from provocations import HEALTHY, PROVOKED, run_provocation

ARMS = {"sft_dpo": ("sft", "dpo"), "sftc_cw": ("sft_c", "cw_dpo")}
EARLY = "dpo_early"
EARLY_STOP = {"signal": "accuracy", "patience": 3}
"""Decided before any of these runs was made: the default signal, three readings of patience."""
MEASURES = ("tv", "js", "ece", "entropy", "cider", "correct")
STAGE: dict[str, Any] = {
    "learning_rate": 3e-4,
    "batch_size": 32,
    "micro_batch_size": 32,
    "schedule": "constant_with_warmup",
    "save_steps": 50,
}
Row = dict[str, Any]


def recipe(name: str, seed: int, one: Row, two: Row, options: argparse.Namespace, **more: Any) -> Recipe:
    """The recipe of an arm; the data depend on the seed alone."""
    probes = {"every": options.every, "prompts": options.probes, "batch_size": 64}
    steps = {"max_steps": options.steps} if options.steps else {}
    return Recipe.model_validate(
        {
            "name": name,
            "seed": seed,
            "data": {"size": options.size, "held_out": options.held_out, "split_seed": seed},
            "negatives": {"seed": seed},
            "stage1": {**STAGE, "epochs": 1, **steps, **one},
            "stage2": {**STAGE, "epochs": 4, **steps, **two},
            "evaluation": {"prompts": options.evaluated, "batch_size": 250, "max_new_tokens": 24},
            **more,
            "probes": probes | more.get("probes", {}),
        }
    )


def run_arm(folder: Path, asked: Recipe) -> Row:
    """Run an arm, or take it up, and return what it found."""
    began = time.process_time()
    summary = Run(folder, asked).execute()
    found: Row = {"before": _measured(summary["before"]), "after": _measured(summary["after"]), "findings": {}}
    for stage in ("stage1", "stage2"):
        path = folder / stage / "diagnosis.json"
        if path.is_file():
            findings = read_json(path)["findings"]
            found["findings"][stage] = [f"{f['severity']}: {f['rule']} @{f['step']}" for f in findings]
    found["updates"] = read_json(folder / "stage2" / "done.json")["updates"]
    print(f"{folder.name}: {time.process_time() - began:.0f} processor seconds in this call", flush=True)
    return found


def _measured(part: Row) -> Row:
    values = {key: part[key] for key in MEASURES if part.get(key) is not None}
    return values | {f"logp_{kind}": value for kind, value in part["logp"].items()}


def run_seed(runs: Path, seed: int, options: argparse.Namespace) -> Row:
    """Run the arms of a seed."""
    found: Row = {"seed": seed}
    for arm, (one, two) in ARMS.items():
        asked = recipe(
            arm,
            seed,
            {"objective": one},
            {"objective": two},
            options,
            probes={"influence": {"updates": 2, "observed": 3}},
        )
        found[arm] = run_arm(runs / f"{arm}_{seed}", asked)
    full = runs / f"sft_dpo_{seed}"
    rows = list(read_jsonl(full / "stage2" / "probes.jsonl"))
    found["would_save"] = saved_steps(rows)
    early = recipe(
        EARLY,
        seed,
        {"objective": "sft", "enabled": False},
        {"objective": "dpo"},
        options,
        model={"path": str(full / "stage1" / "model")},
        probes={"early_stop": EARLY_STOP},
    )
    found[EARLY] = run_arm(runs / f"{EARLY}_{seed}", early)
    found[EARLY]["saved"] = 1 - found[EARLY]["updates"] / found["sft_dpo"]["updates"]
    return found


def saved_steps(rows: list[Row]) -> list[Row]:
    """What stopping early would have saved in a run that went on, for each signal and patience."""
    found: list[Row] = []
    for signal in ("accuracy", "chosen", "ranking", "ece", "tv"):
        higher = signals()[signal].better == "higher"
        for patience in (2, 3, 5, 8):
            verdict = follow(rows, signal, higher=higher, patience=patience, min_delta=0.0)
            end = rows[verdict.stop]["step"] if verdict.stop is not None else rows[-1]["step"]
            best = rows[verdict.best]
            found.append(
                {
                    "signal": signal,
                    "patience": patience,
                    "saved": 1 - end / rows[-1]["step"],
                    "best_step": best["step"],
                    "accuracy_best": best["accuracy"],
                    "accuracy_end": rows[-1]["accuracy"],
                }
            )
    return found


def intervals(seeds: list[Row], read: Callable[[Row], float | None]) -> Row:
    """Mean over seeds with its 95 % interval; no ends of one seed."""
    values = [v for row in seeds if (v := read(row)) is not None]
    mean, low, high = mean_interval(values)
    ends = {} if math.isnan(low) else {"low": low, "high": high}
    return {"mean": mean, **ends, "seeds": len(values)}


def summarise(seeds: list[Row]) -> Row:
    """Arms at the start and end of Stage 2, differences paired by seed, and early stopping."""
    arms = [*ARMS, EARLY]
    keys = list(seeds[0]["sft_dpo"]["after"])

    def both(one: str, other: str, when: str) -> Row:
        def difference(row: Row, key: str) -> float | None:
            a, b = row[one][when].get(key), row[other][when].get(key)
            return None if a is None or b is None else a - b

        known = [k for k in keys if difference(seeds[0], k) is not None]
        return {k: intervals(seeds, lambda row, k=k: difference(row, k)) for k in known}

    def ends(arm: str, when: str) -> Row:
        return {k: intervals(seeds, lambda row, k=k: row[arm][when].get(k)) for k in seeds[0][arm][when]}

    return {
        "arms": {arm: {when: ends(arm, when) for when in ("before", "after")} for arm in arms},
        "after Stage 1, SFT-C minus SFT": both("sftc_cw", "sft_dpo", "before"),
        "after Stage 2, CW-DPO minus DPO": both("sftc_cw", "sft_dpo", "after"),
        "stopped early minus not, DPO": both(EARLY, "sft_dpo", "after"),
        "steps saved by stopping early": intervals(seeds, lambda row: row[EARLY]["saved"]),
    }


def figures(runs: Path, seeds: int) -> dict[str, list[str]]:
    """Draw the figures and return what they show in words."""
    folders = {arm: [runs / f"{arm}_{seed}" for seed in range(seeds)] for arm in ARMS}
    both = [folder for arm in ARMS for folder in folders[arm]]
    notes = {f"figure {n}": draw_figure(f"fig{n}", both, runs / f"figure{n}.png") for n in (3, 4)}
    for arm, name in (("sft_dpo", "DPO"), ("sftc_cw", "CW-DPO")):
        notes |= {
            f"figure {n}, {name}": draw_figure(f"fig{n}", folders[arm], runs / f"figure{n}_{arm}.png") for n in (5, 6)
        }
    return notes


def provoke(folder: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Return what the diagnosis said of each provoking and healthy run."""
    found: dict[str, list[str]] = {}
    for name in names:
        found[name] = [f"{f['severity']}: {f['rule']} @{f['step']}" for f in run_provocation(folder, name)]
        print(f"{name}: {found[name]}", flush=True)
    return found


def main(argv: list[str] | None = None) -> Row:
    """Run everything and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="Where the run directories go.")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write; default: in --runs.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--size", type=int, default=4800, help="Training pictures.")
    parser.add_argument("--tiny", action="store_true", help="Few pictures and updates, to see that the script runs.")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    notices.set_verbosity_error()
    notices.disable_progress_bar()
    logging.disable(logging.WARNING)
    options.every, options.probes, options.evaluated, options.steps = 10, 256, 1000, 0
    if options.tiny:
        options.size, options.every, options.probes, options.evaluated, options.steps = 96, 1, 6, 8, 4
    options.held_out = options.probes + options.evaluated
    machine = hardware()
    seeds = [run_seed(options.runs, seed, options) for seed in range(options.seeds)]
    result = {
        "question": "What do the learning dynamics of SFT, SFT-C, DPO and CW-DPO show on the embedded world?",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "out"},
        "hardware": machine,
        "early_stop": EARLY_STOP,
        "rows": seeds,
        "intervals": summarise(seeds),
        "figures": figures(options.runs, options.seeds),
        "provoked": provoke(
            options.runs / "provoked", ("penalty_never_active",) if options.tiny else (*HEALTHY, *PROVOKED)
        ),
    }
    write_json(options.out or options.runs / "dynamics_evidence.json", result)
    return result


if __name__ == "__main__":
    main()
